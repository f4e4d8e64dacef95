"""Every command that README shows under "Use it", in its order, in an empty HOME, as it stands.

What would submit is a dry run; what names a path or a model that nobody has here is refused for that alone.
"""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Done
from tests.runs import recorded

pytestmark = pytest.mark.integration

README = Path(__file__).resolve().parents[2] / "README.md"
#: What a machine without a hub, a cluster's disks or Megatron-Bridge says; nothing else may be wrong.
NOT_HERE = {"missing_path", "missing_model", "missing_data", "does_not_fit", "not_enough_disk", "cannot_rehearse"}


def commands() -> list[list[str]]:
    text = README.read_text(encoding="utf-8").partition("## Use it")[2].partition("A refusal comes")[0]
    lines = [line.strip() for line in text.splitlines() if line.startswith("    nemo experiment ")]
    found = [shlex.split(line, comments=True)[2:] for line in lines]
    assert len(found) > 12
    return found


def test_each_command_does_what_it_says(nemo: Callable[..., Done], home: Path, work: Path, tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    recorded(home, "probe_1126-0805-47f9a1")
    assert nemo("recipes", "quantize_fp8", "--copy", "mine.yaml", env=env).code == 0
    seen = set()
    for words in commands():
        submits = words[0] == "run" and not {"--dryrun", "-d"} & set(words)
        done = nemo(*words, *(["--dryrun"] if submits else []), env=env)
        said = [line.split()[1] for line in done.err.splitlines() if line.startswith("Problem ")]
        assert "Traceback" not in done.out + done.err, words
        assert (done.code, set(said) <= NOT_HERE) in ((0, True), (2, True)), (words, done)
        assert done.code == 0 or said, (words, done)
        if "executor=slurm" in words or "slurm" in words:
            assert done.code == 0 or words[0] == "rehearse", (words, done)
        seen.add(words[0])
    assert seen >= {"run", "plan", "recipes", "executors", "ps", "status", "explain"}
    assert [path.name for path in (home / "runs").iterdir()] == ["probe_1126-0805-47f9a1"]
