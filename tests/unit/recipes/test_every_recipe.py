"""Every recipe: built, sent, read back, and rehearsed on every executor for every release that has its script."""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import util
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs import CONFIGS
from executors.kinds import kinds
from recipes.catalogue import FAMILIES, RECIPES, Recipe, describe, layers
from recipes.experiment.examine import examine
from recipes.experiment.job import Job, serialized
from recipes.experiment.prepare import prepare_all
from recipes.experiment.stage import Options, Stage
from recipes.experiment.submit import would_send
from recipes.planner.plan import Plan, plan_of
from recipes.values import field_types, load_yaml, merge
from scripts.args.meaning import ScriptArgs, meanings
from scripts.engines.script.cards import cards
from scripts.engines.script.command import flags_of
from scripts.engines.script.flags.interface import Interface, plain
from scripts.engines.script.flags.tables import interface_of, releases_of, repository_of, scripts
from scripts.engines.script.locate import is_module
from scripts.run.problems import ProblemsError
from tests.golden.cases import PROFILES, surroundings
from tests.testbed.scripted import fill, write_checkpoints
from tests.testbed.standin import parser_of, write_standin

EXECUTORS = {"local": "local", "slurm": "cluster", "docker": "box", "lepton": "cloud"}
#: Recipes for releases of the past: their values are refused for the newest script.
OLD = {"mlm_prune_targets": "core_v0.17.0"}
#: Scripts of the tables that no recipe runs.
NO_RECIPE = {
    "Megatron-Bridge/examples/conversion/hf_megatron_roundtrip_multi_gpu.py": "it checks a conversion, writes nothing",
}
#: Flags that no field sets, and why; `extra_args` reaches each of them.
NO_FIELD: Mapping[str, tuple[str, ...]] = {
    "nothing is overwritten: an output that is there is refused": ("--overwrite",),
    "Transformers' own placement of a model; the script chooses": ("--device-map",),
    "gone from the newer releases, whose own flags do the same": (
        *("--calib_gbs", "--split", "--export-eagle-algorithm", "--export-num-eagle-layers", "--export-num-mtp"),
        *("--export-draft-vocab-size", "--export-freeze-mtp", "--export-num-medusa-heads"),
        *("--export-eagle-ffn-hidden-size", "--export-parallel-draft-step"),
    ),
    "old Megatron checkpoints, from before the formats that recipes read": (
        *("--export-legacy-megatron", "--export-kd-teacher-ckpt-format", "--extra-model-path"),
    ),
    "a second name for what --export-quant-cfg and --compress say": ("--export-real-quant-cfg",),
    "what ModelOpt does by itself once its state is in the checkpoint": ("--modelopt-enabled",),
    "training of draft heads and multi-token prediction, which no recipe does": (
        *("--export-offline-model", "--freeze-base-for-mtp", "--qad-train-target", "--finetune-data-files"),
    ),
    "details of a search or of a sample of text": (
        *("--auto-quantize-score-size", "--auto-quantize-checkpoint", "--generate-output-len"),
    ),
}
#: What a value of a recipe can be refused for by a release that is older, or younger, than it.
_BY_RELEASE = {"unknown_flag", "unsupported_quant_recipe", "unsupported_choice", "missing_flag", "kd_incompatible"}

#: What this machine can lack.
_NOT_HERE = {
    *("script_not_found", "harness_not_installed", "megatron_core_missing", "server_not_installed", "does_not_fit"),
}


def by_script(recipe: Recipe) -> list[tuple[str, str]]:
    """Each release that a recipe can meet, oldest first, with the newest script that it has for it."""
    if recipe.outline().engine == "hf":  # made for ModelOpt itself
        return []
    found: dict[str, str] = {}
    for name in reversed(getattr(recipe.family.args, "SCRIPTS", ())):
        found |= {} if is_module(name) else dict.fromkeys(releases_of(name), name)
    return [(script, release) for release, script in found.items()]


MEETINGS = {name: found for name, recipe in RECIPES.items() if (found := by_script(recipe))}


def test_there_is_something_to_test() -> None:
    assert len(RECIPES) > 45
    assert len(MEETINGS) > 45
    assert sum(map(len, MEETINGS.values())) > 300
    assert set(EXECUTORS) == set(kinds())


# --- what a recipe is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_it_is_built_and_survives_its_journey(name: str) -> None:
    from fiddle import build
    from nemo_run.core.serialization.zlib_json import ZlibJSONSerializer

    partial = RECIPES[name].build()
    assert partial.recipe == name
    again = ZlibJSONSerializer().deserialize(serialized(partial))
    assert again == partial
    assert again is not partial
    job, before = build(again), build(partial)
    assert job.keywords == before.keywords
    assert type(job.keywords["args"]) is RECIPES[name].family.args


@pytest.mark.parametrize("name", RECIPES)
def test_it_is_a_yaml_file_too(name: str) -> None:
    """Its values, written down and merged into the recipe with other values, are the recipe again."""
    recipe = RECIPES[name]
    partial = recipe.build()
    document: dict[str, Any] = {}
    for key in field_types(partial):
        section, _, field = key.partition(".")
        holder = getattr(partial, section)
        document.setdefault(section, {})
        document[section] = document[section] | {field: getattr(holder, field)} if field else holder
    text = yaml.safe_dump(document)
    other = RECIPES[recipe.family.name].build()
    assert merge(other, yaml.safe_load(text)) == []
    other.recipe = name
    assert other == partial


@pytest.mark.parametrize("name", RECIPES)
def test_it_says_what_it_reads_and_leaves(name: str) -> None:
    recipe = RECIPES[name]
    assert recipe.summary
    assert recipe.fact("errors") or name == "probe"
    assert recipe.fact("strategies") or name == "probe"
    if not MEETINGS.get(name):
        return
    assert recipe.consumes or name == "distill_llama", "whose script names its two models itself"
    speaking = recipe.algorithm in ("generate", "evaluate", "validate")
    assert bool(recipe.produces) is not speaking, "what writes says so, and what only speaks does not"


def test_every_file_is_a_recipe() -> None:
    """Found by globbing: what the catalogue lists is what lies there, and every file builds."""
    found = {
        file
        for file in CONFIGS.glob("*/*.yaml")
        if file.parent.name not in ("executors", "models", "pipelines", "upstream")
    }
    assert len(found) > 60
    assert found == {recipe.file for recipe in RECIPES.values()}
    assert {file.parent.name for file in found} == set(FAMILIES), "every family has a recipe"
    for name, recipe in RECIPES.items():
        assert load_yaml(recipe.file)["summary"] == recipe.summary, "each says itself what it is"
        assert recipe.build().recipe == name
        assert ("extends" in load_yaml(recipe.file)) is (recipe.file.stem != "default")


def test_a_variant_shows_only_what_differs() -> None:
    for recipe in RECIPES.values():
        *base, (_, own) = layers(recipe.family, recipe.file)
        for section in ("script", "args", "torchrun") if base else ():
            below: dict[str, Any] = {}
            for _, values in base:
                below |= values.get(section, {})
            same = {key for key, value in own.get(section, {}).items() if key in below and below[key] == value}
            assert same <= ({"calib_size"} if recipe.name == "quantize_fp8" else set()), recipe.name


def test_every_flag_can_be_reached() -> None:
    """By a field of the script's recipes, a model card, or a reason why not."""
    excused = {flag: why for why, flags in NO_FIELD.items() for flag in flags}
    used, missed = set(), []
    for script in scripts():
        if script in NO_RECIPE:
            continue
        classes = {RECIPES[name].family.args for name, met in MEETINGS.items() if script in dict(met)}
        assert classes, f"no recipe runs {script}"
        reached = set().union(*map(_names, classes)) | _names_of_family(script)
        for release in releases_of(script):
            for flag in interface_of(script, release).flags:
                if not reached & set(map(plain, flag.names)):
                    used.add(flag.name)
                    missed += [] if flag.name in excused else [(script, release, flag.name)]
    assert missed == []
    assert used == set(excused), "every excuse is needed"
    assert set(NO_RECIPE) <= set(scripts())


@cache
def _names(args: type[ScriptArgs]) -> frozenset[str]:
    reaching = (one for one in meanings(args) if one[1].used_by("script") and not one[1].into and not one[1].card)
    return frozenset(plain(name) for field, meaning in reaching for name in flags_of(meaning, field.name))


@cache
def _names_of_family(script: str) -> frozenset[str]:
    """Megatron-LM's scripts share flags, each of which matters to some of them: a field of one will do."""
    if repository_of(script) != "Megatron-LM":
        return frozenset()
    shared = frozenset.intersection(
        *(
            frozenset(plain(flag.name) for flag in interface_of(other, releases_of(other)[-1]).flags)
            for other in scripts()
            if repository_of(other) == "Megatron-LM"
        )
    )
    every = {recipe.family.args for recipe in RECIPES.values() if recipe.family.name.startswith("mlm_")}
    of_cards = frozenset(plain(flag) for card in cards().values() for flag in card)
    return (frozenset().union(*map(_names, every)) & (shared | {"teacher_model_config"})) | of_cards


# --- rehearsals ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class World:
    """A user's surroundings, with checkpoints of each kind, prepared data and a checkout of every release."""

    profiles: Path
    checkpoints: Mapping[str, Path]
    folder: Path
    home: Path  # where a command is typed, with the runs in it

    @property
    def data(self) -> str:
        """The prefix of prepared data."""
        return str(self.folder / "text_document")

    def checkout(self, script: str, release: str) -> Path:
        """A folder that holds this script, and no other of its names."""
        root = self.folder / "checkouts" / release / script.replace("/", "-")
        if not root.exists():
            write_standin(root, script, release)
        return root


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    profiles, checkpoints = folder / "executors.yaml", write_checkpoints(folder)
    profiles.write_text(yaml.safe_dump(_seeing(str(folder))), encoding="utf-8")
    with surroundings() as theirs:
        os.environ["HF_TOKEN"] = "a token that opens nothing"
        made = World(profiles=profiles, checkpoints=checkpoints, folder=folder, home=theirs.parent)
        for ending in (".bin", ".idx"):
            Path(f"{made.data}{ending}").touch()
        yield made


def _seeing(folder: str) -> Any:
    """The profiles of the golden files, whose containers see a folder too."""
    profiles = yaml.safe_load(PROFILES)
    profiles["box"]["mounts"].append(f"{folder}:{folder}")
    profiles["cloud"]["mounts"].append({"path": "/models", "mount_path": folder, "from": "node-nfs:home"})
    return profiles


def stage(name: str, executor: str, script: str, release: str, world: World) -> Stage:
    """A recipe with its own values, for one release: asked for by name, or locally there as a file."""
    partial = filled(name, world)
    partial.engine = "script"
    if executor == "local":
        partial.script.path = str(world.checkout(script, release))
    else:
        partial.script.release = release
    return Stage(name=release, partial=partial)


def filled(name: str, world: World) -> Any:
    """A recipe with something plausible for what it leaves to its user."""
    partial = RECIPES[name].build()
    fill(partial.args, world.checkpoints)
    if getattr(partial.args, "data_paths", None):
        partial.args.data_paths = [1.0, world.data]
    return partial


def prepared(stages: Sequence[Stage], executor: str, world: World) -> list[Job]:
    """Their submissions, however full this machine's disk is; raises ProblemsError."""
    options = Options(profiles=world.profiles, online=False, force=frozenset({"not_enough_disk"}))
    return prepare_all(stages, executor, options)


@pytest.mark.parametrize("name", MEETINGS)
def test_it_is_rehearsed_on_every_executor_for_every_release(name: str, world: World) -> None:
    """Every release where the script itself is read (here) and where its table is (a cluster), the newest elsewhere."""
    before = sorted(world.home.rglob("*"))
    fitting: list[tuple[str, str]] = []
    for executor in EXECUTORS.values():
        everywhere = executor in ("local", "cluster")
        jobs = {met: job_for(name, executor, *met, world) for met in (MEETINGS[name] if everywhere else fitting[-1:])}
        taken = [met for met, job in jobs.items() if job is not None]
        fitting = fitting or taken
        assert taken == (fitting if everywhere else fitting[-1:]), "executors agree"
        for (script, release), job in jobs.items():
            if job is not None:
                _has_only_flags_of(job, script, release)
        newest = jobs[fitting[-1]]
        assert newest is not None
        _is_whole(would_send(newest)["submits"], newest, name)
    made_for = OLD.get(name, MEETINGS[name][-1][1])
    assert made_for in [release for _, release in fitting], "it is made for a release that takes it"
    assert sorted(world.home.rglob("*")) == before, "a dry run leaves nothing behind"


def job_for(name: str, executor: str, script: str, release: str, world: World) -> Job | None:
    """The job, or None where a release does not take the recipe's values, which the Problems then say by name."""
    try:
        (job,) = prepared([stage(name, executor, script, release, world)], executor, world)
    except ProblemsError as error:
        assert {problem.name for problem in error.problems} <= _BY_RELEASE, error
        assert all(problem.key and problem.cause for problem in error.problems)
        return None
    return job


def _has_only_flags_of(submission: Job, script: str, release: str) -> None:
    """A real parser with that release's flags takes the command, and gives back what the recipe says."""
    spec = submission
    assert spec.engine == "script" and spec.addressed is not None
    assert (spec.addressed.script, spec.addressed.certain) == (script, True)
    assert spec.addressed.release in (release, None), "locally the script itself is read"
    argv = spec.command
    assert argv.problems == ()
    interface = interface_of(script, release)
    known, rest = _parser(interface).parse_known_args(argv.words)
    foreign = {plain(word.partition("=")[0]) for word in rest if word.startswith("--")} & interface.foreign
    assert foreign == set(), f"{release} has no {foreign}"
    assert rest == [] or not interface.closed
    got = vars(known)
    own = interface.under(argv.words[0]) if interface.commands else interface
    outputs = {field.name for field, meaning in meanings(spec.args) if meaning.produces or meaning.file}
    compared = 0
    for field, meaning in meanings(spec.resolved):
        value = getattr(spec.resolved, field.name)
        flag = next((one for name in flags_of(meaning, field.name) if (one := own.find(name))), None)
        if flag is None or flag.kind != "value" or not isinstance(value, str | int | float) or field.name in outputs:
            continue
        if not isinstance(value, bool):
            sent = got[plain(flag.names[0])]
            assert sent in (value, str(value), meaning.aliases.get(str(value))), field.name
            compared += 1
    assert compared or not interface.closed


@cache
def _parser(interface: Interface) -> Any:
    return parser_of(interface)


def _is_whole(text: str, submission: Job, name: str) -> None:
    assert "nemo_run.core.runners.fdl_runner" in text
    assert name.replace("_", "-") in text.replace("_", "-")
    ranks = submission
    assert ("torchrun" in text) is (ranks.nodes * ranks.processes > 1)
    if ranks.processes > 1:
        assert re.search(rf"nproc[-_]per[-_]node\W+{ranks.processes}\b", text)


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in MEETINGS])
@pytest.mark.parametrize("executor", EXECUTORS.values())
def test_the_others_are_rehearsed_everywhere(name: str, executor: str, world: World) -> None:
    """Jobs without a script of the tables; on this machine their tools need not be installed."""
    partial = filled(name, world)
    try:
        (submission,) = prepared([Stage(name=name, partial=partial)], executor, world)
    except ProblemsError as error:
        assert {problem.name for problem in error.problems} <= _NOT_HERE, error
        assert executor == "local"
        return
    _is_whole(would_send(submission)["submits"], submission, name)


# --- on the hardware that its values are made for --------------------------------------------------------------------

#: A cluster whose login node is elsewhere: nothing is looked for on this machine.
SITE = """
site:
  extends: slurm
  host: login.example.com
  account: my_account
  gpus: 8
  job_dir: /lustre/me
  output_root: /lustre/runs
  mounts: ["/lustre:/lustre", "/data:/data"]
  image: nvcr.io/nvidia/nemo:26.08
"""
STATED = [name for name, recipe in RECIPES.items() if recipe.hardware]
#: What a recipe is warned of with its own values: data to be replaced, few samples, a format that has no exporter.
WARNED = {
    "format_not_exportable": [f"quantize_{name}" for name in ("int8_sq", "fp8_blockwise", "int4_awq", "w4a8_awq")],
    "unservable_checkpoint": [
        f"quantize_{name}" for name in ("nvfp4_awq", "nvfp4_svdquant", "mxfp4", "w4a8_mxfp4_fp8")
    ],
    "mock_data_used_as_quality_signal": [
        *("distill_mock", "distill_tiny", "qad_tiny", "distill_llama", "qat", "qat_tiny"),
    ],
    "tiny_calibration_used_as_quality_signal": [
        *("quantize_tiny", "quantize_vlm_tiny", "quantize_modelopt_tiny", "prune_tiny", "mlm_quantize_tiny"),
    ],
    "limited_run_used_as_quality_signal": ["mlm_mmlu_tiny"],
}
#: Recipes of other people's servers and harnesses, whose memory is theirs to divide.
NOT_PLANNED = {
    *("evaluate", "evaluate_chat", "evaluate_tiny"),
    *("serve", "serve_trtllm", "serve_sglang", "serve_tiny", "generate_vllm"),
}


def planned(name: str, folder: Path) -> Plan:
    """The plan of a recipe with its own values, for the newest release, on eight of the GPUs that it states."""
    (folder / "executors.yaml").write_text(SITE, encoding="utf-8")
    partial = RECIPES[name].build()
    model = getattr(partial.args, "hf_model_id", None)
    kinds = ("checkpoint_megatron", "quantized", "checkpoint_hf", "checkpoint_lora", "teacher_config")
    fill(partial.args, {kind: Path("/lustre/models") / kind for kind in kinds})
    if model is not None:
        partial.args.hf_model_id = model  # a built-in one too
    if name in MEETINGS and not str(model).startswith("tiny:"):
        partial.script.release = OLD.get(name, MEETINGS[name][-1][1])
    options = Options(profiles=folder / "executors.yaml", online=False, overrides={"gpu": RECIPES[name].hardware or ""})
    return plan_of(examine([Stage(name=name, partial=partial)], "site", options))


def test_what_computes_on_gpus_states_which() -> None:
    assert set(RECIPES) - set(STATED) == {"prepare_data", "prepare_data_chat", "prepare_data_tiny", "probe", "program"}
    assert {name for names in WARNED.values() for name in names} | NOT_PLANNED <= set(STATED)


@pytest.mark.parametrize("name", STATED)
def test_it_passes_its_own_preflight_on_its_stated_hardware(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_run.config._NEMORUN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", "of somebody who accepted every licence")
    plan = planned(name, tmp_path)
    assert {(problem.severity, problem.name) for problem in plan.problems} == {
        ("warning", warning) for warning, names in WARNED.items() if name in names
    }
    assert plan.fits is (None if name in NOT_PLANNED else True)
    unseen = name in ("evaluate", "evaluate_chat") and util.find_spec("lm_eval") is None  # whose tasks they name
    assert [skipped.name for skipped in plan.skipped] == ["unknown_task"] * unseen
    assert plan.gpu is not None and plan.gpu.certain


# --- model cards, values and arguments -------------------------------------------------------------------------


@pytest.mark.parametrize("card", cards())
def test_a_model_card_asks_for_flags_that_the_newest_release_has(card: str) -> None:
    met = [script for script in scripts() if repository_of(script) == "Megatron-LM"]
    assert met
    for script in met:
        interface = interface_of(script, releases_of(script)[-1])
        assert not {plain(flag) for flag in cards()[card]} & interface.foreign, script


def test_every_value_is_shown_and_is_that_of_the_config() -> None:
    """A key that a recipe would drop silently would be found here."""
    seen = 0
    for recipe in RECIPES.values():
        assert {row["key"] for row in describe(recipe)["values"]} == set(field_types(recipe.build()))
        partial = recipe.build()
        values: dict[str, Any] = {}
        for _, document in layers(recipe.family, recipe.file):
            values |= document.get("args", {})
        for key, value in values.items():
            seen += 1
            assert getattr(partial.args, key) == value, (recipe.name, key)
    assert seen > 300


def test_args_classes_say_what_each_field_means() -> None:
    for args in {recipe.family.args for recipe in RECIPES.values()}:
        for field in dataclasses.fields(args):
            assert field.metadata["meaning"].doc, (args, field.name)
