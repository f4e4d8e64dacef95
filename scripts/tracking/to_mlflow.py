"""MLflow, by its client. The server's address, experiment and credentials are in the variables that MLflow has."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from scripts.run.problems import JobError
from scripts.tracking.known import MLFLOW_URI
from scripts.tracking.told import Point, Told
from scripts.tracking.tracker import Tracker, Where

_EXPERIMENT = "modelopt-recipes"
#: MLflow's own patience is a quarter of an hour.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
_STATUS = {"succeeded": "FINISHED", "failed": "FAILED"}
#: What a name of MLflow's cannot have, and how many entities one request, as its server says.
_FOREIGN = re.compile(r"[^\w\-. /:]", re.ASCII)
_NAME, _VALUE, _METRICS, _OTHERS = 250, 6000, 1000, 100


class Mlflow(Tracker):
    """A run of an MLflow server."""

    def begin(self, told: Told) -> Where:
        uri = _address()
        os.environ |= {name: value for name, value in _PATIENCE.items() if name not in os.environ}
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient(tracking_uri=uri)
        experiment = self._experiment()
        tags = {"modelopt_recipes." + key: value for key, value in _named(told.facts)}
        run = self._client.create_run(experiment, round(told.began * 1000), tags, told.id)
        self._id = run.info.run_id
        params = [Param(key, str(value)[:_VALUE]) for key, value in _named(told.values)]
        for some in _parts(params, _OTHERS):
            self._client.log_batch(self._id, params=some)
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

    def measure(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(_name(one.name), one.value, round(one.time * 1000), one.step) for one in points]
        for some in _parts(metrics, _METRICS):
            self._client.log_batch(self._id, metrics=some)

    def end(self, told: Told) -> None:
        from mlflow.entities import Metric, RunTag

        ended = round((told.ended or told.began) * 1000)
        tags = {"modelopt_recipes." + key: value for key, value in _named(told.facts)}
        for number, output in enumerate(told.outputs):
            facts = {f"{key}": output[key] for key in ("type", "path", "bytes", "digest") if key in output}
            tags |= {f"modelopt_recipes.output.{number}.{key}": str(value)[:_VALUE] for key, value in facts.items()}
        for some in _parts([RunTag(key, value) for key, value in tags.items()], _OTHERS):
            self._client.log_batch(self._id, tags=some)
        figures = [Metric(_name(f"report/{name}"), value, ended, 0) for name, value in told.figures.items()]
        for some in _parts(figures, _METRICS):
            self._client.log_batch(self._id, metrics=some)
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


def _parts(items: list[Any], most: int) -> Iterable[list[Any]]:
    return (items[at : at + most] for at in range(0, len(items), most))
