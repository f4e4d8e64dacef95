"""A Docker engine, asked through its own API: what NeMo-Run's answers leave out or get wrong."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

from executors.base import SubmitError, UnreachableError

#: NeMo-Run labels its containers with the experiment's id.
LABEL = "nemo-run/experiment-id"
_ANSWER_SECONDS = 60
_PULL_SECONDS = 900  # between two words of progress, not for the whole image
#: Bash as PID 1 passes no signal on, and its `tee` has to outlive the job's last words. So: every child of
#: tee's parent except tee. That is the job's Python, or torchrun, which tells its own ranks.
_TERMINATE = r"""
exec 2>/dev/null  # processes come and go
names() { tr '\0' ' ' < "/proc/$1/cmdline"; }
parent() { local line rest; read -r line < "/proc/$1/stat"; rest=(${line##*) }); echo "${rest[1]}"; }
for entry in /proc/[0-9]*; do
  case "$(names "${entry#/proc/}")" in "tee -a /nemo_run/log_"*) tee=${entry#/proc/}; break;; esac
done
[ -n "$tee" ] || exit 3
shell=$(parent "$tee")
for entry in /proc/[0-9]*; do
  pid=${entry#/proc/}
  [ "$pid" != "$tee" ] && [ "$(parent "$pid")" = "$shell" ] && kill -TERM "$pid"
done
exit 0
"""


@contextmanager
def client_of(host: str | None) -> Iterator[Any]:
    """A client of the engine at `host`, else of the one that DOCKER_HOST names. Raises UnreachableError."""
    import docker
    import requests
    import urllib3  # type: ignore[import-untyped]

    environment = {**os.environ, **({"DOCKER_HOST": host} if host else {})}
    where = address(host)

    def silent(said: str, error: Exception) -> UnreachableError:
        remedy = "Is it running, and may you use it? Try: docker info.  Another one: executor.host=unix:///PATH."
        return UnreachableError("docker_unreachable", f"{said}: {reason(error)}.", remedy)

    try:
        client = docker.from_env(environment=environment, timeout=_ANSWER_SECONDS)
    except docker.errors.DockerException as error:
        raise silent(f"no Docker engine answers at {where}", error) from error
    try:
        yield client
    except docker.errors.APIError:
        raise  # the engine did answer
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
        raise silent(f"the Docker engine at {where} stopped answering", error) from error
    finally:
        client.close()


def address(host: str | None) -> str:
    """Where the engine is asked."""
    return host or os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"


def explain(error: Exception) -> str:
    """An engine's refusal in its own words, without the HTTP around them."""
    return str(getattr(error, "explanation", None) or error).strip().rstrip(".")


def reason(error: Exception) -> str:
    """The innermost cause, which is the one that says what happened."""
    inner: BaseException = error
    while (deeper := inner.__cause__ or inner.__context__) is not None:
        inner = deeper
    return str(inner).rstrip(".")


def hint(failure: str) -> str:
    """What to do about a container that could not be started."""
    for sign, remedy in (
        ("could not select device driver", "The engine has no GPU support; install the NVIDIA Container Toolkit."),
        ("unknown or invalid runtime", "Correct executor.runtime, or leave it out."),
        ("unknown runtime", "Correct executor.runtime, or leave it out."),
        ("rlimit", "The engine may not raise it that far; correct executor.ulimits."),
        ("executable file not found", "NeMo-Run starts jobs with bash; use an image that has it."),
        ("python: command not found", "The image has no `python`; use another one, or set PATH in executor.env."),
        ("unable to find user", "Give user as UID:GID in numbers, or a name that the image has."),
    ):
        if sign in failure.lower():
            return remedy
    return "nemo experiment executors check NAME tries one thing after another."


def image_id(client: Any, name: str, pull: Literal["missing", "always", "never"]) -> str:
    """The id of image `name`, pulled first as `pull` says. Raises SubmitError.

    NeMo-Run asks a registry about every image that it is given by name, and goes on with whatever
    is there when that fails; it takes an id as it is.
    """
    from docker.errors import APIError, ImageNotFound

    if pull != "always":
        try:
            return str(client.images.get(name).id)
        except ImageNotFound:
            if pull == "never" or name.startswith("sha256:"):
                why = "(executor.pull=never)" if pull == "never" else "by id"
                cause = f"the engine has no image {name}, and nothing is pulled {why}."
                raise SubmitError("image_missing", cause, f"docker load or docker pull {name} first.") from None
        except APIError as error:
            raise SubmitError("wrong_image", f"{name}: {explain(error)}.", "Correct executor.image.") from error
    client.api.timeout = _PULL_SECONDS
    try:
        return str(client.images.pull(name).id)
    except APIError as error:
        cause = f"{name} cannot be pulled: {explain(error)}."
        raise SubmitError("image_missing", cause, pull_remedy(name)) from error


def pull_remedy(name: str) -> str:
    """What to do about an image that a registry does not give."""
    return f"Try: docker pull {name}.  Does the registry need docker login?"


def seen(client: Any) -> dict[str, Any]:
    """By name, what the engine says about every container of NeMo-Run's, ended ones too."""
    found = client.api.containers(all=True, filters={"label": LABEL})
    return {name.lstrip("/"): entry for entry in found for name in entry["Names"]}


def exit_of(client: Any, container: str) -> tuple[int | None, bool]:
    """The exit status of a container that has ended, and whether the kernel killed anything in it for memory.

    NeMo-Run has its containers removed as they end, so the engine's recent events are asked as
    well; after a while, or a restart, it has forgotten them: then None.
    """
    from docker.errors import NotFound

    code, out_of_memory = None, False
    with suppress(NotFound):  # removed as it ended: its events are what is left of it
        state = client.api.inspect_container(container)["State"]
        if state["Status"] in ("exited", "dead"):
            code, out_of_memory = int(state["ExitCode"]), bool(state["OOMKilled"])
    only = {"type": "container", "container": container}
    for event in client.events(since=1, until=f"{time.time():.9f}", filters=only, decode=True):
        if event["Action"] == "oom":
            out_of_memory = True
        elif event["Action"] == "die":
            code = int(event["Actor"]["Attributes"]["exitCode"])
    return code, out_of_memory


def terminate(client: Any, container: str, grace_seconds: float) -> None:
    """SIGTERM to the job in a container, time to record that, then the end of the container. Idempotent."""
    from docker.errors import APIError, NotFound

    told, deadline = False, time.monotonic() + grace_seconds
    try:
        running = client.containers.get(container)
        while not told and time.monotonic() < deadline:
            told = running.exec_run(["bash", "-c", _TERMINATE]).exit_code == 0
            time.sleep(0 if told else 0.2)  # it has not come to its `tee` yet
    except NotFound:
        return  # it ended, and was removed, before it could be told
    except APIError:
        pass  # ended this moment, paused, or never begun: it is removed untold, and that raises what is really wrong
    while told and time.monotonic() < deadline:
        if not client.containers.list(filters={"id": running.id, "status": "running"}):
            break
        time.sleep(0.1)
    remove(client, running.id)


def remove(client: Any, container: str) -> None:
    """The end of a container, by its name or id; one that is gone, or going, is no error."""
    from docker.errors import APIError

    try:
        client.containers.get(container).remove(force=True)
    except APIError as error:
        if error.status_code not in (404, 409):  # gone, or its removal is in progress
            raise
