"""What a job asks of the Docker API, word for word and without an engine.

NeMo-Run's code and docker-py's run as they would; only the connection is one that writes down what
is sent and answers that all went well.
"""

import copy
import json
from typing import Any
from urllib.parse import unquote

_API = "1.41"  # of Docker 20.10; newer ones take the same requests


def api_requests(container: Any, request_id: str) -> list[dict[str, Any]]:
    """The requests that make `container` (a nemo_run DockerContainer), without what they leave empty."""
    import docker
    import requests

    sent: list[dict[str, Any]] = []

    class Recorder(requests.adapters.BaseAdapter):
        def send(self, request: Any, *_: Any, **__: Any) -> requests.Response:
            if request.method == "POST":
                path = unquote(request.path_url.removeprefix(f"/v{_API}"))
                body = json.loads(request.body) if request.body else {}
                if not path.endswith("/start"):
                    sent.append({"request": f"POST {path}", "body": _told(body)})
            response = requests.Response()
            response.status_code = 200
            response.request, response.url = request, request.url
            response._content = b'{"Id": "0"}'
            return response

        def close(self) -> None: ...

    client = docker.DockerClient(base_url="unix:///nowhere", version=_API)
    client.api.mount("http+docker://", Recorder())
    container.run(client=client, id=request_id)
    return sent


def as_scheduled(container: Any, job_dir: str) -> Any:
    """A copy of a dry run's container with the mount that NeMo-Run adds while it schedules it."""
    from nemo_run.config import RUNDIR_NAME, RUNDIR_SPECIAL_NAME

    container = copy.deepcopy(container)
    volumes = [
        volume.replace(RUNDIR_SPECIAL_NAME, job_dir, 1) if volume.startswith(RUNDIR_SPECIAL_NAME) else volume
        for volume in container.executor.volumes
    ]
    container.executor.volumes = [*volumes, f"{job_dir}:/{RUNDIR_NAME}"]
    return container


def _told(value: Any) -> Any:
    """Without the nulls, false and empty values that mean the engine's default."""
    if isinstance(value, dict):
        return {key: told for key, item in value.items() if (told := _told(item)) not in (None, False, "", [], {})}
    return value
