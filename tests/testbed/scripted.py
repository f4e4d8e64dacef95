"""Jobs of the script engine: stand-ins and checkpoints on disk, recipes through the CLI, what ranks received."""

import hashlib
import json
import multiprocessing
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import yaml

from scripts.args.meaning import Meaning, meanings
from scripts.run.record import read_json
from tests.conftest import Done
from tests.testbed.places import JOB_PATH
from tests.testbed.standin import write_huggingface, write_megatron, write_standin
from tests.testbed.warm import Warm

#: What must be said although a script could do without: where to begin.
_BEGIN = frozenset({"load", "student_megatron_path", "pretrained_checkpoint", "export_kd_teacher_load"})
_SIZES = frozenset(f"{size}{ending}" for size in ("tp", "pp", "cp", "ep", "etp") for ending in ("", "_size"))


def write_checkpoints(folder: Path) -> Mapping[str, Path]:
    """One checkpoint of each kind that recipes consume, and what describes a teacher."""
    lora = "decoder.layers.0.adapter.linear_in.weight"
    teacher = folder / "teacher.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    teacher.write_text("num_layers: 2\nhidden_size: 8\nffn_hidden_size: 16\nnum_attention_heads: 2\n", encoding="utf-8")
    return {
        "teacher_config": teacher,
        "checkpoint_megatron": write_megatron(folder / "megatron"),
        "quantized": write_megatron(folder / "quantized", quantized=True),
        "checkpoint_hf": write_huggingface(folder / "hf"),
        "checkpoint_lora": write_megatron(folder / "lora", weight=lora),
    }


def _fitting(meaning: Meaning, checkpoints: Mapping[str, Path]) -> Path:
    return checkpoints["quantized" if meaning.quantized else meaning.consumes]


def fill(args: Any, checkpoints: Mapping[str, Path]) -> None:
    """Say something plausible for what a recipe leaves to its user; `args` is a Fiddle config."""
    for one, meaning in meanings(args.__fn_or_cls__):
        if getattr(args, one.name) is None and (meaning.required or one.name in _BEGIN):
            setattr(args, one.name, str(_fitting(meaning, checkpoints)) if meaning.consumes else 10)
    if getattr(args, "export_kd_teacher_load", None):
        args.export_kd_teacher_model_config = str(checkpoints["teacher_config"])
    if getattr(args, "use_mock_data", None) is False:
        args.data_paths = [1.0, "/data/tokenized/domain_text_document"]
    if getattr(args, "hf_dataset", "") is None and args.jsonl_paths is None:
        args.hf_dataset = "a/b"
    if hasattr(args, "command"):
        args.command = ["true"]
    if str(getattr(args, "hf_model_id", "")).startswith("tiny:"):
        args.hf_model_id = str(checkpoints["checkpoint_hf"])


def on_one_process(partial: Any) -> None:
    """Without parallelism."""
    partial.torchrun.nproc_per_node = 1
    for one, _ in meanings(partial.args.__fn_or_cls__):
        if one.name in _SIZES:
            setattr(partial.args, one.name, 1)
    if config := getattr(partial.args, "config", None):
        partial.args.config = {**config, "model": {**config["model"], "tensor_model_parallel_size": 1}}


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A run that has ended, as its run directory tells."""

    dir: Path
    done: Done | None = None  # the command that waited for it

    @property
    def record(self) -> Any:
        return json.loads((self.dir / "run.json").read_text(encoding="utf-8"))

    @property
    def error(self) -> Any:
        return self.record["error"]

    def received(self) -> list[dict[str, Any]]:
        """What the script was given, by rank."""
        files = sorted((self.dir / "received").glob("*.json"), key=lambda file: int(file.stem))
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]

    def command(self, rank: int) -> Any:
        return json.loads((self.dir / "logs" / f"rank{rank}.command.json").read_text(encoding="utf-8"))

    def log(self, rank: int = 0) -> str:
        return (self.dir / "logs" / f"rank{rank}.log").read_text(encoding="utf-8")

    def left_behind(self) -> list[Path]:
        """What a script had begun to write, below the run directory."""
        return [path for path in self.dir.rglob(".*.partial-*") if "attempts" not in path.parts]


@dataclass
class User:
    """Somebody at a shell in a folder of their own, who has checkouts, models and profiles."""

    warm: Warm
    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    profiles: dict[str, Any] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.folder / "nemo-home"

    def checkout(self, script: str, release: str) -> Path:
        """A checkout of the script's repository with a stand-in of that release."""
        root = self.folder / "checkouts" / release
        write_standin(root, script, release)
        return root

    def nemo(self, *words: str, **env: str) -> Done:
        variables = {**os.environ, **self.variables(), **env}
        done = Done(*self.warm.run(["experiment", *words], variables, self.folder))
        assert "Traceback" not in done.out, done.out
        return done

    def variables(self) -> dict[str, str]:
        """What this user's commands have in their environment."""
        own = {"NEMORUN_HOME": str(self.home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": JOB_PATH}
        return {**own, **self.env}

    @property
    def profile_words(self) -> list[str]:
        file = self.folder / "profiles.yaml"
        file.write_text(yaml.safe_dump(self.profiles), encoding="utf-8")
        return ["--profiles", str(file)]

    def run(self, recipe: str, *words: str, extra: tuple[str, ...] = (), **env: str) -> Ran:
        """Run a recipe to its end, whatever that is."""
        before = set(self.home.glob("runs/*"))
        done = self.nemo("run", recipe, *words, *self.profile_words, "--json", *_after(extra), **env)
        assert done.code in (0, 1), done
        (folder,) = set(self.home.glob("runs/*")) - before
        return Ran(dir=folder, done=done)

    def plan(self, recipe: str, *words: str, extra: tuple[str, ...] = ()) -> Any:
        """What a dry run says."""
        done = self.nemo("run", recipe, *words, *self.profile_words, "--dryrun", "--json", *_after(extra))
        assert done.code == 0, done
        return done.json


def _after(extra: tuple[str, ...]) -> tuple[str, ...]:
    return ("--", *extra) if extra else ()


def for_another_run(words: list[str], planned: str, run: str) -> list[str]:
    """The words of a plan as they are for another run id: it stands in the paths of outputs."""
    return [word.replace(planned, run).replace(_tag(planned), _tag(run)) for word in words]


def _tag(run_id: str) -> str:
    return hashlib.sha256(run_id.encode()).hexdigest()[:8]


def begin(partial: Any, run_dir: Path, **env: str) -> BaseProcess:
    """Start a recipe as the process of a job does, without the launcher around it."""
    from fiddle import build

    run_dir.parent.mkdir(parents=True, exist_ok=True)

    def job() -> None:
        for name in ("RANK", "WORLD_SIZE", "STANDIN"):
            os.environ.pop(name, None)
        os.environ.update({"NEMO_RUN_DIR": str(run_dir), **env})
        os.chdir(run_dir.parent)
        build(partial)()

    process = multiprocessing.get_context("fork").Process(target=job, daemon=True)
    process.start()
    return process


def carry_out(partial: Any, run_dir: Path, **env: str) -> Ran:
    """Run a recipe as the only process of a job does."""
    process = begin(partial, run_dir, **env)
    process.join(120)
    assert process.exitcode is not None, "the job has not ended"
    record = read_json(run_dir / "run.json")
    assert (process.exitcode == 0) is (record["state"] == "succeeded"), record
    return Ran(dir=run_dir)


def processes_with(text: str) -> list[int]:
    """Processes on whose command line `text` stands."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        words = process.info["cmdline"] or []
        if process.info["pid"] != os.getpid() and any(text in word for word in words):
            found.append(process.info["pid"])
    return found
