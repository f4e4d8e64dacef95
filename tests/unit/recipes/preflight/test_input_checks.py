"""What a job begins with: whole models, finished trainings, the right base and order, a token where needed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from executors.slurm.profile import SlurmProfile
from recipes.catalogue import RECIPES
from recipes.experiment.job import Job
from recipes.experiment.store import RunFolder
from recipes.preflight import access, history, inputs
from recipes.preflight.history import experiment_problems
from scripts.args.meaning import meanings
from scripts.run.files import write_json
from scripts.run.identity import identity
from scripts.run.problems import Problem
from scripts.run.record import Record
from scripts.run.registry import carry_out, checks_of
from tests.jobs import found, job_of, submitted

FakeModel = Callable[..., Path]


@pytest.fixture(autouse=True)
def _without_tokens(away: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def profiles(tmp_path: Path) -> Path:
    (tmp_path / "executors.yaml").write_text(
        f"box: {{kind: docker, image: i, mounts: ['{tmp_path}:/seen']}}\n"
        "closed: {kind: slurm, account: a, secrets: []}\n"
        "cached: {kind: slurm, account: a, secrets: [], env: {HF_HOME: /hf}}\n"
        "own: {kind: docker, image: i, mounts: ['~/.cache/huggingface:/root/.cache/huggingface']}\n"
        "models: {kind: docker, image: i, mounts: ['/data/huggingface:/models/huggingface']}\n"
        "lines: {kind: slurm, account: a, setup: ['. /me/env.sh', 'export HF_TOKEN=$(cat /me/token)']}\n"
        "slurm: {account: a}\n"
        "cloud: {kind: lepton, image: i, node_group: g, resource_shape: s, nemo_run_dir: /m,"
        " mounts: [{path: /, mount_path: /m, from: 'node-nfs:n'}]}\n"
    )
    return tmp_path / "executors.yaml"


def adapter(folder: Path, base: str = "Qwen/Qwen3-8B") -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    return folder


def test_what_is_read_and_written_is_said_where_it_is_declared() -> None:
    """Of a few fields by name, so that none falls out of the checks of mounts when a role changes."""
    every = {field.name: meaning for recipe in RECIPES.values() for field, meaning in meanings(recipe.family.args)}
    read = {name for name, meaning in every.items() if meaning.reads}
    assert read >= {
        *("hf_model_id", "hf_model", "hf_model_path", "student_hf_path", "student_hf_model", "hf_model_name_or_path"),
        *("pretrained_model_name", "tokenizer", "tokenizer_model", "hf_dataset", "calib_dataset", "calib_dataset_name"),
        *("finetune_hf_dataset", "mmlu_dataset", "sft_dataset_root", "test_image_path", "image_path", "prompts_path"),
        *("ground_truth_path", "include_path", "offline_distillation_data", "export_kd_teacher_model_config"),
    }
    written = {name for name, meaning in every.items() if meaning.path == "write"}
    assert written == {"prune_intermediate_ckpt", "data_path_to_cache", "save_ground_truth_path", "cache_dir"}
    assert not read & written


@pytest.mark.parametrize(
    ("recipe", "field"),
    [("export", "hf_model_id"), ("merge_lora", "hf_model_path"), ("export_distilled", "student_hf_path")],
)
def test_an_adapter_is_no_model_to_take_a_shape_from(tmp_path: Path, recipe: str, field: str) -> None:
    spec = job_of(recipe, **{f"args__{field}": str(adapter(tmp_path / "lora"))})
    (problem,) = found(checks_of(inputs), spec, "unmerged_adapter")
    assert problem.key == f"args.{field}"
    assert "of Qwen/Qwen3-8B" in problem.cause


def test_an_adapter_is_found_where_a_container_will_see_it(tmp_path: Path, profiles: Path) -> None:
    adapter(tmp_path / "lora")
    spec = job_of("quantize_fp8", "box", profiles, args__hf_model_id="/seen/lora")
    assert [one.key for one in found(checks_of(inputs), spec, "unmerged_adapter")] == ["args.hf_model_id"]


@pytest.mark.parametrize("text", ["[", "{}"])
def test_an_adapter_that_names_no_base_is_one_all_the_same(tmp_path: Path, text: str) -> None:
    (adapter(tmp_path / "lora") / "adapter_config.json").write_text(text)
    (problem,) = found(
        checks_of(inputs), job_of("export", args__hf_model_id=str(tmp_path / "lora")), "unmerged_adapter"
    )
    assert problem.cause == "it is a LoRA adapter, not a model"


def test_a_model_is_no_adapter(fake_model: FakeModel) -> None:
    assert found(checks_of(inputs), job_of("export", args__hf_model_id=str(fake_model())), "unmerged_adapter") == []


@pytest.mark.parametrize(
    ("base", "wrong"),
    [("Qwen/Qwen3-8B", False), ("/data/qwen3-8b", False), ("Qwen/Qwen3-4B", True), ("", False)],
)
def test_an_adapter_goes_into_the_model_it_was_trained_on(tmp_path: Path, base: str, wrong: bool) -> None:
    lora = adapter(tmp_path / "lora", base)
    problems = found(checks_of(inputs), job_of("merge_lora", args__lora_checkpoint=str(lora)), "wrong_base_model")
    assert [one.key for one in problems] == (["args.hf_model_path"] if wrong else [])
    if wrong:
        assert "args.hf_model_path=Qwen/Qwen3-4B" in problems[0].remedy


def test_a_copy_of_the_base_under_another_name_is_the_base(tmp_path: Path, fake_model: FakeModel) -> None:
    one, other = fake_model("one"), fake_model("other")
    lora = adapter(tmp_path / "lora", str(one))
    given = {"args__lora_checkpoint": str(lora), "args__hf_model_path": str(other)}
    assert found(checks_of(inputs), job_of("merge_lora", **given), "wrong_base_model") == []
    (other / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 512}))
    assert len(found(checks_of(inputs), job_of("merge_lora", **given), "wrong_base_model")) == 1


@pytest.mark.parametrize(
    ("files", "severity", "said"),
    [
        ({}, None, ""),
        ({"optimizer.pt": ""}, "warning", "optimizer.pt"),
        ({"trainer_state.json": '{"global_step": 500, "max_steps": 500}'}, "warning", "trainer_state.json"),
        ({"trainer_state.json": '{"global_step": 500, "max_steps": 2000}'}, "error", "500 of 2000 steps"),
        ({"trainer_state.json": "["}, None, ""),
    ],
)
def test_a_training_is_no_clean_checkpoint(
    fake_model: FakeModel, files: dict[str, str], severity: str | None, said: str
) -> None:
    folder = fake_model("checkpoint-500")
    for name, text in files.items():
        (folder / name).write_text(text)
    for recipe, field in (("quantize_fp8", "hf_model_id"), ("distill_mock", "student_hf_path")):
        spec = job_of(recipe, **{f"args__{field}": str(folder)})
        problems = found(checks_of(inputs), spec, "training_state_as_source")
        assert [(one.key, one.severity) for one in problems] == ([(f"args.{field}", severity)] if severity else [])
        assert all(said in one.cause for one in problems)


def megatron(folder: Path, *names: str) -> Path:
    """An iteration as Megatron-Bridge saves it, of tensors of these names."""
    torch = pytest.importorskip("torch")
    from torch.distributed.checkpoint import FileSystemWriter, save

    weights = folder / "iter_0000100"
    save({name: torch.zeros(2, 2) for name in names}, storage_writer=FileSystemWriter(weights), no_dist=True)
    torch.save({"iteration": 100}, weights / "common.pt")
    (weights / "metadata.json").write_text('{"sharded_backend": "torch_dist", "sharded_backend_version": 1}')
    (weights / "run_config.yaml").write_text("checkpoint: {pretrained_checkpoint: /models/base}\n")
    return folder


@pytest.mark.parametrize(
    ("recipe", "names", "warned"),
    [
        ("megatron_to_hf", ["embedding.weight"], False),
        ("megatron_to_hf", ["embedding.weight", "optimizer.state.exp_avg"], True),
        ("qat", ["embedding.weight", "optimizer.state.exp_avg"], False),
    ],
)
def test_the_state_of_a_training_in_a_megatron_checkpoint(
    tmp_path: Path, recipe: str, names: list[str], warned: bool
) -> None:
    field = "pretrained_checkpoint" if recipe == "qat" else "megatron_path"
    spec = job_of(recipe, **{f"args__{field}": str(megatron(tmp_path / "c", *names))})
    problems = found(checks_of(inputs), spec, "training_state_as_source")
    assert [(one.key, one.severity) for one in problems] == ([(f"args.{field}", "warning")] if warned else [])
    assert all("of iteration 100" in one.cause for one in problems)


def test_what_a_training_of_ours_left_at_its_end_is_no_surprise() -> None:
    trained = job_of("distill")
    megatron(Path(output(trained)), "embedding.weight", "optimizer.state.exp_avg")
    spec = job_of("megatron_to_hf", args__megatron_path=output(trained), args__hf_model="Qwen/Qwen3-4B")
    folder = recorded(trained, "failed")
    assert len(found(checks_of(inputs), spec, "training_state_as_source")) == 1
    write_json(folder.dir / "run.json", json.loads((folder.dir / "run.json").read_text()) | {"state": "succeeded"})
    assert found(checks_of(inputs), spec, "training_state_as_source") == []


@pytest.mark.parametrize(("base", "wrong"), [(None, False), ("/copies/base", False), ("/models/other", True)])
def test_an_adapter_of_megatron_bridge_names_its_base(tmp_path: Path, base: str | None, wrong: bool) -> None:
    lora = megatron(tmp_path / "lora", "decoder.layers.linear_qkv.adapter.linear_in.weight")
    spec = job_of("merge_lora", args__lora_checkpoint=str(lora), args__pretrained=base)
    problems = found(checks_of(inputs), spec, "wrong_base_model")
    assert [one.key for one in problems] == (["args.pretrained"] if wrong else [])


def recorded(spec: Job, state: str = "succeeded", **facts: Any) -> RunFolder:
    """A run of `job`, as submission and its job record it."""
    folder = RunFolder.of(spec.run_dir.name)
    record = Record.submit(
        folder.dir,
        id=folder.id,
        recipe=spec.recipe,
        algorithm=spec.algorithm,
        executor={"name": "x", "kind": "local"},
        values={"args": dict(vars(spec.args)), "extra_args": spec.extra_args},
        expects=spec.expects,
        run_dir=str(spec.run_dir),
    )
    record.update(state=state, **facts)
    return folder


def output(spec: Job) -> str:
    return spec.expects[0]["path"]


def history_of(spec: Job) -> list[tuple[str, str, str]]:
    return [(one.name, one.key, one.severity) for one in carry_out(checks_of(history), spec).problems]


def test_what_was_distilled_is_not_pruned() -> None:
    distilled = job_of("distill")
    recorded(distilled)
    converted = job_of("megatron_to_hf", args__megatron_path=output(distilled), args__hf_model="Qwen/Qwen3-4B")
    recorded(converted)
    wrong = [("prune_after_distill", "args.hf_model_name_or_path", "error")]
    assert history_of(job_of("prune", args__hf_model_name_or_path=output(converted))) == wrong
    assert history_of(job_of("prune", args__hf_model_name_or_path="Qwen/Qwen3-8B")) == []
    pruned = job_of("prune")
    recorded(pruned)
    assert history_of(job_of("distill", args__student_hf_path=output(pruned))) == []


def test_what_was_quantized_is_not_pruned() -> None:
    quantized = job_of("quantize_fp8", engine="hf")
    recorded(quantized)
    spec = job_of("prune", args__hf_model_name_or_path=quantized.resolved.export_dir)
    assert history_of(spec) == [("already_quantized", "args.hf_model_name_or_path", "error")]


def test_what_a_run_left_outside_its_directory_is_known_too(tmp_path: Path) -> None:
    made = job_of("distill_mock", args__output_dir=str(tmp_path / "elsewhere"))
    recorded(made)
    spec = job_of("export_distilled", args__megatron_path=str(tmp_path / "elsewhere" / "checkpoints" / "iter_0000100"))
    assert history_of(spec) == [("mock_data_used_as_quality_signal", "args.megatron_path", "warning")]


@pytest.mark.parametrize("recipe", ["evaluate", "serve"])
def test_a_score_of_what_mock_data_made_is_doubted(recipe: str) -> None:
    made = job_of("distill_mock")
    recorded(made)
    converted = job_of("megatron_to_hf", args__megatron_path=output(made), args__hf_model="Qwen/Qwen3-4B")
    last = recorded(converted)
    problems = carry_out(checks_of(history), job_of(recipe, args__checkpoint=output(converted))).problems
    assert [(one.name, one.severity) for one in problems] == [("mock_data_used_as_quality_signal", "warning")]
    assert made.run_dir.name in problems[0].cause
    assert last.id not in problems[0].cause


def test_a_checkpoint_is_exported_as_the_model_it_was_made_of() -> None:
    made = job_of("quantize_fp8", engine="script", args__hf_model_id="Qwen/Qwen3-30B-A3B")
    recorded(made)
    assert history_of(job_of("export", args__megatron_load_path=output(made))) == [
        ("wrong_base_model", "args.hf_model_id", "error")
    ]
    right = {"args__megatron_load_path": output(made), "args__hf_model_id": "/models/Qwen3-30B-A3B"}
    assert history_of(job_of("export", **right)) == []


def test_what_a_run_has_not_finished_is_not_read() -> None:
    made = job_of("quantize_fp8", engine="script", args__hf_model_id="Qwen/Qwen3-8B")
    folder = recorded(made, "running")
    spec = job_of("export", args__megatron_load_path=output(made))
    assert history_of(spec) == [("input_of_a_running_run", "args.megatron_load_path", "error")]
    record = json.loads((folder.dir / "run.json").read_text())
    write_json(folder.dir / "run.json", record | {"process": {**identity(), "pid": 1 << 22, "started": 1.0}})
    assert history_of(spec) == [], "nobody looks after it any more"


def test_a_scheduler_s_job_goes_on_without_who_submitted_it() -> None:
    made = job_of("quantize_fp8", engine="script", args__hf_model_id="Qwen/Qwen3-8B")
    folder = recorded(made, "submitted", process={**identity(), "pid": 1 << 22, "started": 1.0})
    run = submitted(folder, SlurmProfile(account="a"), run_dir=made.run_dir)
    spec = job_of("export", args__megatron_load_path=output(made))
    assert history_of(spec) == [("input_of_a_running_run", "args.megatron_load_path", "error")]
    run.update(settled=True)
    assert history_of(spec) == []


@pytest.mark.parametrize(
    ("run_id", "state", "read"), [("", "succeeded", True), ("", "running", False), ("x", "failed", False)]
)
def test_a_scheduler_s_job_that_ended_says_so_where_its_storage_is_here(
    tmp_path: Path, run_id: str, state: str, read: bool
) -> None:
    """Nobody need have asked for its status since."""
    made = job_of("quantize_fp8", engine="script", args__hf_model_id="Qwen/Qwen3-8B")
    folder = recorded(made, "submitted")
    own = tmp_path / "storage" / folder.id
    own.mkdir(parents=True)
    write_json(own / "run.json", {"id": run_id or folder.id, "state": state})
    submitted(folder, SlurmProfile(account="a"), run_dir=own)
    spec = job_of("export", args__megatron_load_path=output(made))
    assert (history_of(spec) == []) is read


def test_a_job_that_waits_for_another_may_read_what_that_is_going_to_leave() -> None:
    made = job_of("quantize_fp8", engine="script", args__hf_model_id="Qwen/Qwen3-8B")
    folder = recorded(made, "running")
    assert history_of(job_of("export", args__megatron_load_path=f"${{artifact:{folder.id}}}")) == []


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": 1, "state": "running", "algorithm": "distill"}', "[" * 99999]
)
def test_a_damaged_record_is_no_history(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "nemo-home" / "runs" / "distill_1-a"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(text)
    assert history_of(job_of("prune", args__hf_model_name_or_path=str(folder / "out"))) == []


def test_stages_of_one_experiment_are_a_history_too() -> None:
    distilled = job_of("distill_mock")
    pruned = job_of("prune", args__hf_model_name_or_path=output(distilled))
    scored = job_of("evaluate", args__checkpoint=output(pruned))
    problems = list(experiment_problems([("first", distilled), ("second", pruned), ("third", scored)]))
    assert [(one.name, one.key) for one in problems] == [
        ("prune_after_distill", "args.hf_model_name_or_path"),
        ("mock_data_used_as_quality_signal", "args.checkpoint"),
    ]
    assert "first" in problems[0].cause


def test_stages_do_not_write_into_each_other_s_outputs(tmp_path: Path) -> None:
    one = job_of("distill_mock", args__output_dir=str(tmp_path / "out"))
    other = job_of("prune", args__output_hf_path=str(tmp_path / "out" / "checkpoints" / "below"))
    problems = list(experiment_problems([("one", one), ("other", other)]))
    assert [(each.name, each.key) for each in problems] == [("outputs_collide", "args.output_hf_path")]
    apart = job_of("prune", args__output_hf_path=str(tmp_path / "own"))
    assert list(experiment_problems([("one", one), ("other", apart)])) == []


GATED = "meta-llama/Llama-3.2-1B"


def gated(executor: str, profiles: Path, name: str = GATED) -> list[Problem]:
    spec = job_of("hf_to_megatron", executor, profiles, args__hf_model=name)
    return found(checks_of(access), spec, "gated_without_token")


@pytest.mark.parametrize(
    ("executor", "token", "severity"),
    [
        ("local", "t", None),
        ("local", "", "error"),
        ("slurm", "t", None),
        ("slurm", "", "error"),
        ("closed", "t", "error"),
        ("cached", "t", "warning"),
        ("own", "", "warning"),
        ("models", "", "warning"),
        ("lines", "", "warning"),
        ("cloud", "t", "error"),
    ],
)
def test_a_gated_model_needs_a_token_that_the_job_gets(
    monkeypatch: pytest.MonkeyPatch, profiles: Path, executor: str, token: str, severity: str | None
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    problems = gated(executor, profiles)
    assert [(one.key, one.severity) for one in problems] == ([("args.hf_model", severity)] if severity else [])
    assert gated(executor, profiles, "Qwen/Qwen3-8B") == []


def test_somebody_who_logged_in_has_a_token(tmp_path: Path, profiles: Path) -> None:
    (tmp_path / "hf-home").mkdir()
    (tmp_path / "hf-home" / "token").write_text("t")
    assert gated("local", profiles) == []
    assert len(gated("box", profiles)) == 1, "a container does not see that file"


def test_a_gated_model_in_the_cache_is_had_already(tmp_path: Path, profiles: Path, fake_model: FakeModel) -> None:
    snapshots = tmp_path / "hf-home" / "hub" / f"models--{GATED.replace('/', '--')}" / "snapshots"
    snapshots.mkdir(parents=True)
    fake_model().rename(snapshots / "abc")
    assert gated("local", profiles) == []
    assert len(gated("box", profiles)) == 1


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Qwen/Qwen3-8b", "Qwen/Qwen3-8B"),
        ("qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("Qwen/Qwem3-8B", "Qwen/Qwen3-8B"),
        ("Qwen/Qwen3-9B", None),
        ("Qwen/Qwen3-8B", None),
        ("org/name", None),
    ],
)
def test_a_letter_that_is_wrong_in_a_hub_name(name: str, meant: str | None) -> None:
    problems = found(checks_of(access), job_of("hf_to_megatron", args__hf_model=name), "model_not_known")
    assert [(one.remedy, one.severity) for one in problems] == (
        [(f"Did you mean {meant}?", "warning")] if meant else []
    )
