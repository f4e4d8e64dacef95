"""The process of one rank of the bridge engine: what to do is its one word, in JSON."""

import json
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from scripts.args.meaning import ScriptArgs
from scripts.engines import cpu_runtime
from scripts.run.files import write_json
from scripts.run.problems import JobError


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a rank is to do."""

    args: Any  # of the class that names the work; outputs are where they are to be written now
    called: str  # the model, as the user named it
    report: Path  # the folder for what a person reads
    not_shown: tuple[str, ...]  # what this machine cannot show

    def leave(self, name: str, **facts: Any) -> None:
        """Write a file of the report about the model."""
        self.report.mkdir(parents=True, exist_ok=True)
        write_json(self.report / name, {"model": self.called, **facts})


def main() -> None:
    """Do it. A JobError goes to the file that the engine reads; any other error is a traceback."""
    told = json.loads(sys.argv[1])
    try:
        on_cpu = _runs_on_cpu(told["runtime"])
        kind: type[ScriptArgs] = _named(told["args"])
        if on_cpu:
            cpu_runtime.start(te_layers=kind.TE_LAYERS)
        work = Work(
            args=kind(**told["values"]),
            called=told["called"],
            report=Path(told["report"]),
            not_shown=cpu_runtime.LIMITS if on_cpu else (),
        )
        _named(kind.BRIDGE)(work)
    except JobError as error:
        write_json(Path(told["error"]), error.as_data())
        sys.exit(f"failed: {error}")


def _runs_on_cpu(runtime: str) -> bool:
    """Raises JobError `no_gpu` where a GPU is needed and there is none."""
    if runtime == "cpu":
        return True
    import torch

    if not torch.cuda.is_available():
        cause = "PyTorch finds no CUDA GPU on this machine."
        raise JobError("no_gpu", cause, "script.runtime=cpu does the job without one, slowly: for a small model.")
    return False


def _named(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


if __name__ == "__main__":
    main()
