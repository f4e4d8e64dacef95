"""`python -m recipes.supervisor RUN_DIR ID`: sees a detached local run to its end."""

import sys
from pathlib import Path

from executors.profiles import profile_from_record
from recipes.submission import Run, launch
from scripts.record import observe


def main(run_dir: Path, run_id: str) -> None:
    """Launch the recorded submission in `run_dir` and wait for it."""
    sys.stdin.read()  # until the submitter has named this process in run.json, or is gone
    from nemo_run.core.serialization.zlib_json import ZlibJSONSerializer

    partial = ZlibJSONSerializer().deserialize((run_dir / "partial.zlib").read_text(encoding="utf-8"))
    profile = profile_from_record(observe(run_dir)["executor"])
    launch(partial, profile, Run(id=run_id, dir=run_dir))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
