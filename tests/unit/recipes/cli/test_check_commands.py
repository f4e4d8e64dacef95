"""The same checks from the user's side: a command in, its Problem out, exit status 2, and nothing written."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Done

Nemo = Callable[..., Done]
FakeModel = Callable[..., Path]

PROFILES = """
site:
  {kind: slurm, account: a, secrets: [], image: "nvcr.io/nvidia/nemo:26.06", job_dir: /lustre/me,
   mounts: ["/lustre:/lustre"]}
"""


@pytest.fixture
def refused(nemo: Nemo, home: Path, tmp_path: Path) -> Callable[..., str]:
    (tmp_path / "executors.yaml").write_text(PROFILES)

    def run(*words: str) -> str:
        env = {"HF_HOME": str(tmp_path / "hf-home"), "HF_TOKEN": ""}
        done = nemo("run", *words, "--profiles", str(tmp_path / "executors.yaml"), "--yes", env=env)
        assert done.code == 2, done.out + done.err
        assert list(home.iterdir()) == []
        return done.out + done.err

    return run


def test_a_path_that_no_mount_brings_in(refused: Callable[..., str]) -> None:
    said = refused("export", "executor=site", "args.megatron_load_path=/elsewhere/checkpoint")
    assert "path_not_mounted   args.megatron_load_path=/elsewhere/checkpoint" in said
    assert "Add /elsewhere:/elsewhere" in said


def test_an_output_that_vanishes_with_its_container(refused: Callable[..., str]) -> None:
    said = refused("prune", "executor=site", "args.output_hf_path=/results/pruned")
    assert "path_not_mounted   args.output_hf_path=/results/pruned" in said


def test_a_gated_model_without_a_token(refused: Callable[..., str]) -> None:
    said = refused("hf_to_megatron", "executor=site", "args.hf_model=meta-llama/Llama-3.2-1B")
    assert "gated_without_token   args.hf_model=meta-llama/Llama-3.2-1B" in said
    assert "executor.secrets" in said


def test_an_adapter_in_place_of_its_base(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen3-8B"}')
    said = refused("export", f"args.hf_model_id={tmp_path}/lora", "args.megatron_load_path=/lustre/c")
    assert "unmerged_adapter   args.hf_model_id=" in said


def test_a_student_with_other_tokens(refused: Callable[..., str], fake_model: FakeModel) -> None:
    folders = [fake_model("teacher"), fake_model("student")]
    for number, folder in enumerate(folders):
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": number, "b": 1 - number}}}))
    names = [f"args.teacher_hf_path={folders[0]}", f"args.student_hf_path={folders[1]}"]
    said = refused("distill_mock", *names)
    assert "teacher_student_or_tokenizer_mismatch   args.student_hf_path=" in said
    assert "'a' is 0 to the teacher and 1 to the student" in said


def test_a_learning_rate_that_rises(refused: Callable[..., str]) -> None:
    said = refused("distill_mock", "executor=site", "args.lr=1e-6")
    assert "contradiction   args.min_lr=1e-05" in said


def test_a_warning_does_not_stop_a_job(nemo: Nemo, home: Path, tmp_path: Path) -> None:
    (tmp_path / "executors.yaml").write_text(PROFILES)
    done = nemo("run", "distill_mock", "executor=site", "--profiles", str(tmp_path / "executors.yaml"), "--dryrun")
    assert done.code == 0, done.out + done.err
    assert "Warning mock_data_used_as_quality_signal   args.use_mock_data=True" in done.out + done.err
    assert list(home.iterdir()) == []
