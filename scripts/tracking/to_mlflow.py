"""MLflow, by its client. The server's address, experiment and credentials are in the variables that MLflow has."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from scripts.run.problems import JobError
from scripts.tracking.known import MLFLOW_URI
from scripts.tracking.told import Point, Told, Tracker, Where

_EXPERIMENT = "modelopt-recipes"
#: MLflow's own patience is a quarter of an hour.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
_STATUS = {"succeeded": "FINISHED", "failed": "FAILED"}
#: What a name of MLflow's cannot have, and how many entities one request, as its server says.
_FOREIGN = re.compile(r"[^\w\-. /:]", re.ASCII)
_NAME, _VALUE, _AT_A_TIME = 250, 6000, 100


class Mlflow(Tracker):
    """A run of an MLflow server."""

    _id = ""

    def begin(self, told: Told) -> Where:
        uri = _address()
        os.environ |= {name: value for name, value in _PATIENCE.items() if name not in os.environ}
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient(tracking_uri=uri)
        experiment = self._experiment()
        tags = {"modelopt_recipes." + key: value for key, value in _named(told.facts)}
        if not self._id:  # else what came after it failed, and is tried again
            self._id = self._client.create_run(experiment, round(told.began * 1000), tags, told.id).info.run_id
        self._tell("params", [Param(key, str(value)[:_VALUE]) for key, value in _named(told.values)])
        shown = f"{uri.rstrip('/')}/#/experiments/{experiment}/runs/{self._id}"
        return Where(id=self._id, url=shown if uri.startswith(("http://", "https://")) else None)

    def _experiment(self) -> str:
        if known := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return known
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _EXPERIMENT
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except Exception:  # another run has made it this moment
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _tell(self, kind: str, entities: list[Any]) -> None:
        for at in range(0, len(entities), _AT_A_TIME):
            self._client.log_batch(self._id, **{kind: entities[at : at + _AT_A_TIME]})

    def measure(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        rows = [Metric(_name(one.name), one.value, round(one.time * 1000), one.step) for one in points]
        self._tell("metrics", rows)

    def end(self, told: Told) -> None:
        from mlflow.entities import Metric, RunTag

        ended = round((told.ended or told.began) * 1000)
        tags = {"modelopt_recipes." + key: value for key, value in _named(told.facts)}
        for number, output in enumerate(told.outputs):
            facts = ((key, str(output.get(key))[:_VALUE]) for key in ("type", "path", "bytes", "digest"))
            tags |= {f"modelopt_recipes.output.{number}.{key}": value for key, value in facts}
        self._tell("tags", [RunTag(key, value) for key, value in tags.items()])
        figures = told.figures.items()
        self._tell("metrics", [Metric(_name(f"report/{name}"), value, ended, 0) for name, value in figures])
        if told.outputs:
            self._client.log_dict(self._id, {"outputs": list(told.outputs)}, "outputs.json")
        for path in told.report:
            inside = path.parent.relative_to(told.report_folder).as_posix()
            self._client.log_artifact(self._id, str(path), f"report/{inside}".removesuffix("/."))
        self._client.set_terminated(self._id, _STATUS.get(told.state, "KILLED"), ended)


def _address() -> str:
    """The server's, without a password: where MLflow reads one instead, nothing that it prints has it."""
    uri = os.environ.get(MLFLOW_URI)
    if not uri:
        raise JobError("tracker_not_set", f"{MLFLOW_URI} is not set where the job runs.")
    parts = urlsplit(uri)
    if parts.username is not None:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
        uri = os.environ[MLFLOW_URI] = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return uri


def _named(values: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    return ((_name(key), value) for key, value in values.items())


def _name(name: str) -> str:
    return _FOREIGN.sub("_", name)[:_NAME]
