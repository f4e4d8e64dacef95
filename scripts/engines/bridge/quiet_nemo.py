"""After Megatron-Bridge was installed: keep its import out of every `nemo` command.

    python -m scripts.engines.bridge.quiet_nemo

Megatron-Bridge offers commands under the name `lm`, and NeMo-Run imports whatever offers some: ten seconds, and without
Transformer Engine an error, in each command that has nothing to do with it. `make bridge` runs this.
"""

from importlib import metadata
from pathlib import Path

GROUP = "nemo_run.cli"


def without_commands(distribution: metadata.Distribution) -> bool:
    """Take the commands of an installed package out of its entry points; whether there were any."""
    lines = (distribution.read_text("entry_points.txt") or "").splitlines()
    kept: list[str] = []
    inside = False
    for line in lines:
        inside = line.strip() == f"[{GROUP}]" if line.startswith("[") else inside
        if not inside:
            kept.append(line)
    if kept == lines:
        return False
    listed = next(file for file in distribution.files or () if file.match("*.dist-info/entry_points.txt"))
    Path(str(distribution.locate_file(listed))).write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    return True


if __name__ == "__main__":
    if without_commands(metadata.distribution("megatron-bridge")):
        print("nemo: the commands of megatron-bridge (lm) are left out; those of modelopt-recipes are there")
