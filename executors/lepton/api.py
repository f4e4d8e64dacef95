"""Lepton's service, asked through its SDK: bounded waiting, few repeats, and one named error for each way it fails."""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from executors.base import UnreachableError

if TYPE_CHECKING:
    from leptonai.api.v1.types.dedicated_node_group import DedicatedNodeGroup, Node
    from leptonai.api.v1.types.job import LeptonJob
    from leptonai.api.v1.types.replica import Replica
    from leptonai.api.v2.client import APIClient

_T = TypeVar("_T")
_LOGIN = (
    "Log in with `lep login`, or set LEPTON_WORKSPACE_ID, LEPTON_WORKSPACE_URL and LEPTON_WORKSPACE_TOKEN; "
    "the workspace's page for tokens issues a new one."
)
#: A log that says nothing for this long has said what it has; one that goes on is left after `_ENOUGH_SECONDS`.
_QUIET_SECONDS = 1.0
_ENOUGH_SECONDS = 2.0
_ENDED_QUIET_SECONDS = 5.0  # of an ended job, whose log the service should close
_LONGEST_SECONDS = 60.0
_HISTORY_LINES = 10_000


class NotThereError(Exception):
    """The service knows no such thing (404)."""


class NameTakenError(Exception):
    """The service has a job of that name already (409)."""


@dataclass(frozen=True, kw_only=True)
class LeptonApi:
    """Every call makes a client of its own from the login of the moment. All raise UnreachableError."""

    timeout: float = 20.0  # seconds for one answer
    tries: int = 3
    pause: float = 0.5  # seconds before the first repeat; doubles

    def client(self) -> "APIClient":
        """The SDK's client. Raises UnreachableError `lepton_login_missing`; asks nothing of the service."""
        from leptonai.api.v2.client import APIClient
        from leptonai.api.v2.utils import WorkspaceConfigurationError

        try:
            client = APIClient()
        except (WorkspaceConfigurationError, TypeError) as error:  # TypeError: the SDK slices a token that is None
            cause = "There is no login for a Lepton workspace here."
            raise UnreachableError("lepton_login_missing", cause, _LOGIN) from error
        client._timeout = self.timeout  # its default is 120 s, and no public name sets it
        return client

    def create(self, job: "LeptonJob") -> "LeptonJob":
        """Create a job, once. Raises NameTakenError."""
        return self._call("creating the job", lambda client: client.job.create(job), tries=1)

    def job(self, name: str, *, tries: int | None = None) -> "LeptonJob | None":
        """A job by its id; None where there is none."""
        with suppress(NotThereError):
            return self._call("asking for the job", lambda client: client.job.get(name), tries=tries)
        return None

    def jobs(self) -> "list[LeptonJob]":
        """All jobs that are not archived."""
        return self._call("listing the jobs", lambda client: client.job.list_all())

    def stop(self, name: str) -> None:
        """End a job and keep it, with its logs."""
        spec: Any = {"spec": {"stopped": True}}
        with suppress(NotThereError):
            self._call("stopping the job", lambda client: client.job.update(name, spec=spec))

    def node_groups(self) -> "list[DedicatedNodeGroup]":
        return self._call("listing the node groups", lambda client: client.nodegroup.list_all())

    def nodes(self, group_id: str) -> "list[Node]":
        return self._call("listing the nodes", lambda client: client.nodegroup.list_nodes(group_id))

    def secret_names(self) -> list[str]:
        return self._call("listing the secrets", lambda client: [item.name for item in client.secret.list_all()])

    def node_group_id(self, name: str) -> str:
        """The id of the node group `name`. Raises UnreachableError `no_node_group` that names those there are."""
        ids = {group.metadata.name: group.metadata.id_ for group in self.node_groups()}
        found = ids.get(name)
        if not found:
            there = ", ".join(sorted(filter(None, ids))) or "none"
            cause = f"The workspace has no node group {name}."
            raise UnreachableError("no_node_group", cause, f"Set executor.node_group; there are: {there}.")
        return str(found)

    def log(self, name: str, index: int, offset: int, *, whole: bool = False) -> bytes:
        """What the newest replica `index` of a job has printed, from byte `offset` on.

        Of a job that runs on, what is there within about two seconds; with `whole`, of an ended job,
        all of it. Once its pods are gone, the lines that the workspace collected.
        """
        try:
            replicas: list[Replica] = self._call("listing the replicas", lambda client: client.job.get_replicas(name))
        except NotThereError:
            return b""
        own = re.compile(rf"{re.escape(name)}-{index}(-|$)")
        found = [replica for replica in replicas if own.match(replica.metadata.id_ or "")]
        if not found:
            return b""
        replica_id = str(max(found, key=lambda replica: replica.metadata.created_at or 0).metadata.id_)
        try:
            return self._call("reading the log", lambda client: _stream(client, name, replica_id, offset, whole, self))
        except NotThereError:
            return self._history(name, replica_id)[offset:]

    def _history(self, name: str, replica_id: str) -> bytes:
        """The last lines that the workspace's log store has of a replica; empty where it collects none."""
        job = self.job(name)
        if job is None or job.status is None or not job.status.creation_time:
            return b""
        span = {"start": job.status.creation_time * 10**6, "end": time.time_ns()}
        answer: Any = self._call(
            "reading the log history",
            lambda client: client.log.get_log(name_or_job=name, replica=replica_id, limit=_HISTORY_LINES, **span),
        )
        if isinstance(answer, str):
            answer = json.loads(answer)
        streams = (answer.get("data") or {}).get("result") or []
        lines = sorted(
            (int(at), number, line) for stream in streams for number, (at, line) in enumerate(stream["values"])
        )
        return "".join(f"{line}\n" for _at, _number, line in lines).encode()

    def attempts(self, tries: int) -> Iterator[bool]:
        """One after another, with a pause behind each that doubles; whether it is the last."""
        for attempt in range(1, tries + 1):
            yield attempt == tries
            time.sleep(self.pause * 2 ** (attempt - 1))

    def _call(self, what: str, request: "Callable[[APIClient], _T]", *, tries: int | None = None) -> _T:
        """The answer to `request`; the service's own failures and lost connections are tried again."""
        client = self.client()
        for last in self.attempts(tries or self.tries):
            try:
                return request(client)
            except Exception as error:
                failure = _failure(error, what, client, self.timeout)
                again = isinstance(failure, _PassingError) and failure.name != "lepton_timeout"  # that was long enough
                if last or not again:
                    raise failure from error
        raise AssertionError(tries)


class _PassingError(UnreachableError):
    """A failure that may be gone on the next try."""


def may_have_happened(error: UnreachableError) -> bool:
    """Whether the service may have done what was asked although it did not say so."""
    return isinstance(error, _PassingError)


def _failure(error: Exception, what: str, client: "APIClient", timeout: float) -> Exception:
    """The SDK's error as one of ours; what it is not about comes back as it is."""
    from leptonai.api.v1.api_resource import ClientError, ServerError
    from requests import exceptions

    url = client.url
    if isinstance(error, exceptions.Timeout):
        cause = f"{url} gave no answer within {timeout:g} s ({what})."
        return _PassingError("lepton_timeout", cause, "Try again; see whether the workspace's page answers.")
    if isinstance(error, (exceptions.ConnectionError, exceptions.ChunkedEncodingError)):
        cause = f"{url} cannot be reached ({what})."
        return _PassingError("lepton_unreachable", cause, "Check LEPTON_WORKSPACE_URL and the network.")
    if isinstance(error, exceptions.RequestException):
        return UnreachableError("lepton_unreachable", f"{url}: {error} ({what}).", "Check LEPTON_WORKSPACE_URL.")
    if not isinstance(error, (ClientError, ServerError)):
        if isinstance(error, (RuntimeError, ValueError, KeyError)):  # how the SDK tells of an answer it cannot read
            first = str(error).partition("\n")[0]
            cause = f"{url} answered what the SDK cannot read ({what}): {first[:200]}"
            return UnreachableError("lepton_answer_unreadable", cause, "Check LEPTON_WORKSPACE_URL.")
        return error
    said, status = " ".join(error.response.text.split())[:200], error.response.status_code
    if status == 404:
        return NotThereError(said)
    if status == 409:
        return NameTakenError(said)
    if status in (401, 403):
        cause = f"Workspace {client.workspace_id} refuses the token with {status} ({what})."
        return UnreachableError("lepton_unauthorized", cause, _LOGIN)
    if status >= 500 or status == 429:
        cause = f"{url} answered {status} ({what}): {said}"
        return _PassingError("lepton_server_error", cause, "The service is at fault; try again later.")
    cause = f"{url} refused with {status} ({what}): {said}"
    return UnreachableError("lepton_refused", cause, "Compare the profile with what the workspace offers.")


def _stream(client: "APIClient", name: str, replica_id: str, offset: int, whole: bool, api: LeptonApi) -> bytes:
    """Read a replica's log as bytes.

    Not by the SDK's own `get_log`: it decodes every piece for itself, which fails where one ends inside
    a character, and it waits without end for a job that prints nothing.
    """
    from requests import exceptions

    quiet = _ENDED_QUIET_SECONDS if whole else _QUIET_SECONDS
    began = time.monotonic()
    try:
        response = client._get(f"/jobs/{name}/replicas/{replica_id}/log", stream=True, timeout=(api.timeout, quiet))
    except exceptions.ReadTimeout:
        if whole:
            raise
        return b""  # the service may hold its answer back until the job prints something
    data = bytearray()
    with closing(response):
        client.job._raise_if_not_ok(response)
        # It ends by itself, breaks off, or is silent for as long as the request allows: a ConnectionError too.
        with suppress(exceptions.ConnectionError, exceptions.ChunkedEncodingError):
            for piece in response.iter_content(chunk_size=None):
                data += piece
                waited = time.monotonic() - began
                if waited > _LONGEST_SECONDS or (not whole and waited > _ENOUGH_SECONDS and len(data) > offset):
                    break
    return bytes(data[offset:])
