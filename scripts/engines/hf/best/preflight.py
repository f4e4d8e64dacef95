"""What can be wrong with a search before anything is loaded; where it is submitted, and on the node."""

from collections.abc import Iterator
from typing import Any

from scripts.args.best import BestArgs
from scripts.args.serve import ServerName
from scripts.checkpoints.quantization import MIXED
from scripts.engines.hf.best.decisions import half_of
from scripts.engines.installed import missing_tool
from scripts.formats import FORMATS, MIXABLE
from scripts.run.problems import Problem, nearest
from scripts.run.registry import check
from scripts.serving.servers import SERVERS


def loadable(name: str, server: ServerName | None) -> bool:
    """Whether a server loads what a format exports; any server, where none is meant."""
    return server is None or FORMATS[name].quant_algo.upper() in SERVERS[server].formats


def tried(args: BestArgs) -> list[str]:
    """The formats of the arguments that the server loads."""
    return [name for name in args.makes() if name in MIXABLE and loadable(name, args.server)]


def may_mix(args: BestArgs) -> bool:
    """Whether the server loads several formats in one checkpoint."""
    return args.server is None or MIXED in SERVERS[args.server].formats


def least_trials(formats: int) -> int:
    """Each format on few samples, the better half on all, and a mixture."""
    return formats + half_of(formats) + 1


@check("no_limit", "no_output", args=BestArgs, where="both")
def limits_of_search(job: Any) -> Iterator[Problem]:
    """Something says what passes, and there will be something to hold it to."""
    if not job.resolved.export_dir:
        cause, remedy = "the size of the winner is that of its export", "Set args.export_dir to a folder."
        yield Problem(name="no_output", key="args.export_dir", value=None, cause=cause, remedy=remedy)
    if not job.resolved.limits:
        cause = "nothing says what passes, and every recipe does"
        remedy = "Set one of args.max_kl, args.max_increase, args.min_agreement, args.target_size."
        yield Problem(key="args.max_kl", value=None, cause=cause, remedy=remedy)


@check("unsupported_quant_recipe", "missing_value", "unservable_checkpoint", args=BestArgs, where="both")
def formats_to_mix(job: Any) -> Iterator[Problem]:
    """There are some, and the server that is meant loads them."""
    args: BestArgs = job.resolved
    if args.formats is not None and not args.formats:
        remedy = f"Name some of {', '.join(MIXABLE)}, or leave it null."
        yield Problem(name="missing_value", key="args.formats", value="[]", cause="it names no format", remedy=remedy)
    for name in args.formats or ():
        if name not in MIXABLE:
            yield Problem(
                key="args.formats", value=args.formats, cause=f"no format: {name!r}", remedy=nearest(name, MIXABLE)
            )
        elif not loadable(name, args.server):
            cause = f"{args.server} does not load {name}"
            able = ", ".join(one for one in MIXABLE if loadable(one, args.server))
            remedy = f"It loads {able}; or another args.server."
            yield Problem(
                name="unservable_checkpoint", key="args.formats", value=args.formats, cause=cause, remedy=remedy
            )


@check("out_of_range", args=BestArgs, where="both")
def trials_of_search(job: Any) -> Iterator[Problem]:
    """Enough for one round of each."""
    args: BestArgs = job.resolved
    if any(formats_to_mix(job)):
        return
    if args.trials < (least := least_trials(len(tried(args)))):
        cause = f"each of {len(tried(args))} formats, the better half again, and a mixture are {least}"
        yield Problem(
            key="args.trials", value=args.trials, cause=cause, remedy=f"Use {least} or more, or fewer formats."
        )


@check("search_not_installed", args=BestArgs, where="both")
def optimizer(job: Any) -> Iterator[Problem]:
    """The Python that is to run it has Optuna."""
    if job.in_this_python and (missing := missing_tool(BestArgs)):
        cause = "Optuna, which decides what is tried, is not installed in this Python"
        yield Problem(key="executor", value=None, cause=cause, remedy=missing)
