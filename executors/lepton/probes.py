"""Whether a job could really run in a Lepton workspace: one question after another, until one makes the rest moot."""

from collections.abc import Iterator, Sequence

from executors.base import Probe, UnreachableError
from executors.lepton.api import LeptonApi, NotThereError
from executors.lepton.profile import LeptonProfile, secret_references
from scripts.run.problems import Problem


def probe_workspace(profile: LeptonProfile, api: LeptonApi, problems: Sequence[Problem]) -> Iterator[Probe]:
    """The probes of `nemo experiment executors check`, ending at the first failure that nothing can follow."""
    for problem in problems:
        where = problem.key if problem.value is None else f"{problem.key}={problem.value}"
        yield Probe("profile", False, f"{where}: {problem.cause}", problem.remedy)
    if not problems:
        yield Probe("profile", True, f"nothing missing; {profile.nemo_run_dir} is on a mount")
    try:
        yield Probe("login", True, f"workspace {api.client().workspace_id}")
        groups = {group.metadata.name: group.metadata.id_ for group in api.node_groups()}
    except UnreachableError as error:
        yield _failed("login" if error.name == "lepton_login_missing" else "service", error)
        return
    yield Probe("service", True, f"{len(groups)} node groups")
    group_id = groups.get(profile.node_group)
    if group_id:
        yield Probe("node group", True, profile.node_group)
        yield _nodes(profile, api, group_id)
    else:
        there = ", ".join(sorted(filter(None, groups))) or "none"
        detail = f"the workspace has no node group {profile.node_group or '(none given)'}"
        yield Probe("node group", False, detail, f"Set node_group; there are: {there}.")
    if profile.secrets:
        yield _secrets(profile, api)


def _nodes(profile: LeptonProfile, api: LeptonApi, group_id: str) -> Probe:
    try:
        nodes = api.nodes(group_id)
    except (UnreachableError, NotThereError) as error:
        return _failed("nodes", error)
    ready = [n for n in nodes if not n.spec.unschedulable and n.status and "Ready" in (n.status.status or [])]
    needed = profile.nodes or 1
    detail = f"{len(ready)} of {len(nodes)} ready, {needed} needed"
    return Probe("nodes", len(ready) >= needed, detail, "A job would wait; see the node group's page, or lower nodes.")


def _secrets(profile: LeptonProfile, api: LeptonApi) -> Probe:
    try:
        there = set(api.secret_names())
    except (UnreachableError, NotThereError) as error:
        return _failed("secrets", error)
    wanted = secret_references(profile).values()
    missing = ", ".join(sorted({*wanted} - there))
    remedy = "Make them on the workspace's page for secrets, or name those that are there in secret_names."
    return Probe("secrets", not missing, f"not in the workspace: {missing}" if missing else ", ".join(wanted), remedy)


def _failed(name: str, error: Exception) -> Probe:
    if isinstance(error, UnreachableError):
        return Probe(name, False, f"{error.name}: {error.cause}", error.remedy)
    return Probe(name, False, f"the service has no such list: {error}")
