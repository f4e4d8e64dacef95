"""`nemo experiment mcp`: the commands as tools of a Model Context Protocol server, for agents.

Each tool is a command with `--json`, in a process of its own; its answer is the document that the command prints.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from recipes.cli.document import REFUSED, envelope, exits
from scripts.run.problems import JobError, Problem, ProblemsError, install

_SECONDS = 600
_ABOUT = """Quantize, prune, distill, export and score language models with NVIDIA Model Optimizer, here or elsewhere.

Begin with `recipes`; `recipe` says what the values of one mean. `plan` checks a job and says what it needs, without a
GPU: values are words such as args.hf_model_id=Qwen/Qwen3-8B, executor=slurm and executor.nodes=2. Every
answer has `data`, `outcome` (done, refused, failed) and `problems`, each with what would be right."""


def mcp(
    submits: Annotated[
        bool, typer.Option("--submit", help="A tool that submits jobs too; without it nothing is begun or changed.")
    ] = False,
) -> None:
    """Serve the commands to an agent over standard input and output (Model Context Protocol).

    Example: nemo experiment mcp

    In an agent's configuration: {"command": "mor", "args": ["mcp"]}. It runs until its input ends.
    """
    with exits():
        try:
            server = _server()
        except ModuleNotFoundError as error:
            cause = f"{error.name} is not installed in this Python"
            raise ProblemsError(
                [Problem(name="tool_not_installed", key="mcp", value=None, cause=cause, remedy=install("mcp"))]
            ) from None
    for tool in (*READING, *((submit,) if submits else ())):
        server.add_tool(tool)
    server.run()


def _server() -> Any:
    from mcp.server.fastmcp import FastMCP

    return FastMCP("modelopt-recipes", instructions=_ABOUT)


def _said(command: str, *words: str) -> dict[str, Any]:
    """The answer of a command."""
    argv = [sys.executable, "-m", "recipes.cli.program", *command.split(), "--json", *words]
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS)
        found: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError:  # a command line that no command has, or a crash
        return envelope(command, None, status=REFUSED, error=JobError("wrong_usage", done.stderr.strip()))
    except (OSError, ValueError) as error:  # more than a command line holds, NUL, half characters
        return envelope(command, None, status=REFUSED, error=JobError("wrong_usage", str(error)))
    return found


def recipes() -> dict[str, Any]:
    """Every recipe: name, algorithm, summary, what it takes and leaves, and what carries it out on this machine."""
    return _said("recipes")


def recipe(name: str) -> dict[str, Any]:
    """One recipe: its values with their types and meaning, strategies, errors, releases of NVIDIA's script."""
    return _said("recipes", "--", name)


def plan(recipe: str, values: list[str] | None = None) -> dict[str, Any]:
    """Whether a job fits, where its memory goes, what each rank would run, and every problem. Nothing is written."""
    return _with("plan", recipe, values)


def dry_run(recipe: str, values: list[str] | None = None) -> dict[str, Any]:
    """All values of a job and the exact script or request that would be submitted. Nothing is written."""
    return _with("run", recipe, values, "--dryrun")


def ps(ended: bool = False) -> dict[str, Any]:
    """The runs that were submitted from this machine, as they stand; with `ended` those that have ended too."""
    return _said("ps", *(["--all"] if ended else []))


def status(run: str) -> dict[str, Any]:
    """One run: state, phase, values, versions, outputs with digests, and the cause and remedy of a failure.

    `run` is its id, any part of it that no other run has, `latest`, or `latest:RECIPE`."""
    return _said("status", "--", run)


def logs(run: str, rank: int = 0) -> dict[str, Any]:
    """The end of a rank's log."""
    return _said("logs", "--", run, str(rank))


def artifacts(type: str | None = None) -> dict[str, Any]:
    """What runs left (all, or of a type such as checkpoint_hf): reference, path, size, digest.

    `${artifact:REFERENCE}` in a value of a recipe names one."""
    return _said("artifacts", *(["--", type] if type else []))


def lineage(artifact: str) -> dict[str, Any]:
    """What an artifact was made of, and that of what, back to the model or the data that no run here made."""
    return _said("artifacts lineage", "--", artifact)


def inspect(path: str) -> dict[str, Any]:
    """What a checkpoint's path holds: kind, parameters, dtypes, quantization, and what is wrong with it."""
    return _said("inspect", "--", path)


def explain(name: str) -> dict[str, Any]:
    """What the name of a problem or an error means, and what to do about it."""
    return _said("explain", "--", name)


def executors() -> dict[str, Any]:
    """The executor profiles: where jobs can run, and what is still to be set in them."""
    return _said("executors")


def submit(recipe: str, values: list[str] | None = None) -> dict[str, Any]:
    """Check a job and submit it, detached. The document has the run's id, for `status` and `logs`."""
    return _with("run", recipe, values, "--detach", "--yes")


#: What begins nothing and changes nothing.
READING: tuple[Callable[..., dict[str, Any]], ...] = (
    *(recipes, recipe, plan, dry_run, ps, status, logs, artifacts, lineage, inspect, explain, executors),
)


def _with(command: str, recipe: str, values: list[str] | None, *options: str) -> dict[str, Any]:
    """A command on a recipe. An option among the values could submit, or force what was refused: it is none."""
    strange = [value for value in (recipe, *(values or [])) if value.startswith("-")]
    if strange:
        cause, remedy = "an option is no value", "Write KEY=VALUE."
        found = [Problem(name="not_an_override", key=one, value=None, cause=cause, remedy=remedy) for one in strange]
        return envelope(command, None, status=REFUSED, problems=found)
    return _said(command, *options, recipe, *(values or []))
