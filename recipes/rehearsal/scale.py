"""From a job to the stages of its rehearsal: each value by its role, as it was or as small as this machine needs it.

Models become small ones of the same architecture, data a text that is built in, checkpoints what a stage before leaves.
What becomes of a value is a Change, and so nobody takes the rehearsal for what it is not.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.catalogue import RECIPES
from recipes.experiment.job import Job
from recipes.experiment.stage import Stage
from recipes.models import ModelFacts, facts_of
from recipes.models.architecture import MEGATRON_SIZES
from recipes.models.hub import configuration_of
from recipes.planner.layout import SIZES, Layout, Size
from recipes.rehearsal.kept import kept
from recipes.rehearsal.small import smaller
from scripts.args.configuration import KEYS
from scripts.args.meaning import (
    MEGATRON,
    Meaning,
    Role,
    ScriptSpec,
    Torchrun,
    field_of,
    fields_of,
    values_of,
)
from scripts.data.texts import BUILT_IN
from scripts.engines.choice import Chosen, is_built_in
from scripts.engines.installed import engine_here, missing_tool
from scripts.engines.script.locate import installed
from scripts.evaluation.checks import has_vllm
from scripts.run.files import expanded, is_there, write_text
from scripts.run.problems import JobError, Problem, ProblemsError
from scripts.tiny.corpus import passages
from scripts.tiny.model import default_cache_root
from scripts.tiny.untrained import TOKENIZER_FILES, ensure_untrained

_NODE_DIR = "${oc.env:NEMO_RUN_DIR}"
#: Ranks at most: as shapes, a layout needs no more than two of a size.
_MOST_RANKS = 4
_ITERATIONS, _TOKENS = 2, 128
#: How many are enough to go the whole way once.
_MOST: Mapping[Role | None, int] = {
    **{"samples": 8, "eval_samples": 4, "batch": 4, "micro_batch": 1, "train_samples": 4, "new_tokens": 8},
    **dict.fromkeys(("sequence", "calib_sequence"), _TOKENS),
    **dict.fromkeys(("iterations", "eval_interval", "save_interval"), _ITERATIONS),
    "warmup": 1,
}
#: The same of values that have no role.
_FIELDS: Mapping[str, int] = {"top_k": 2, "eval_iters": 1, "workers": 1, "log_interval": 1}
#: The same of a configuration's, beside those of a role.
_CONFIGURED: Mapping[str, int] = {
    **{"scheduler.lr_warmup_iters": 1, "scheduler.lr_decay_iters": _ITERATIONS, "logger.log_interval": 1},
    **dict.fromkeys(("checkpoint.save_interval", "validation.eval_interval", "train.eval_interval"), _ITERATIONS),
}
_MODELS: tuple[Role, ...] = ("model", "teacher", "reference", "weights", "tokenizer")
_TEXTS = 64


@dataclass(frozen=True, kw_only=True)
class Change:
    """A value that is another one in the rehearsal."""

    key: str
    asked: Any
    here: Any

    @property
    def as_row(self) -> tuple[str, str, str]:
        return self.key, _short(self.asked), _short(self.here)


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """What is run instead of a job."""

    stages: tuple[Stage, ...]  # the job's own is the last
    engine: Chosen | None
    processes: int
    changes: tuple[Change, ...]
    stand_ins: tuple[str, ...]  # what was made for it, in words

    @property
    def changes_as_data(self) -> list[dict[str, Any]]:
        return [{"key": one.key, "asked": one.asked, "here": one.here} for one in self.changes]


def scaled(job: Job, chained: Mapping[str, Any] = {}) -> Scaled:
    """The stages of a rehearsal. Raises ProblemsError `cannot_rehearse` where none can be held on this machine.

    Small models and data are made on the way, and kept for the next time. `chained`: arguments of a pipeline's stage
    that it takes from other stages, as they are before they are fed; these are no changes.
    """
    return _Scaling(job, chained).done()


@dataclass
class _Scaling:
    job: Job
    chained: Mapping[str, Any]
    stages: list[Stage] = field(default_factory=list)
    stand_ins: list[str] = field(default_factory=list)
    _models: dict[str, str] = field(default_factory=dict)

    def done(self) -> Scaled:
        from fiddle import copy_with
        from nemo_run import Config

        self.engine = _engine(self.job)
        self.sizes = self._sizes()
        self.ranks = Layout(nodes=1, processes=1, **self.sizes).fewest
        partial = self.job.partial
        assert partial is not None  # of a job that was examined here
        rows = [(name, self.chained.get(name, value), meaning) for name, value, meaning in values_of(self.job.args)]
        asked = {name: value for name, value, _ in rows}
        self.small = {name: self._model(name, value, meaning) for name, value, meaning in rows if _is_a_model(meaning)}
        values = {name: self._value(name, value, meaning) for name, value, meaning in rows}
        changed = {name: value for name, value in values.items() if value != asked[name]}
        script = Config(ScriptSpec, path=self.job.script.path) if self.engine == "script" else Config(ScriptSpec)
        one = copy_with(
            partial,
            engine=self.engine or "auto",
            args=copy_with(partial.args, **{**self.chained, **changed}),
            script=script,
            torchrun=Config(Torchrun, nproc_per_node=self.ranks),
        )
        changes = [
            Change(key=f"args.{name}", asked=asked[name], here=value)
            for name, value in changed.items()
            if name not in self.chained
        ]
        was = self.job.nodes * self.job.processes
        if was != self.ranks:
            changes.append(Change(key="processes", asked=was, here=self.ranks))
        if self.job.engine != self.engine:
            changes.append(Change(key="engine", asked=self.job.engine, here=self.engine))
        after = [stage.name for stage in self.stages]
        last = Stage(name=self.job.recipe, partial=one, executor="local", after=after)
        return Scaled(
            stages=(*self.stages, last),
            engine=self.engine,
            processes=self.ranks,
            changes=tuple(changes),
            stand_ins=tuple(dict.fromkeys(self.stand_ins)),
        )

    def _sizes(self) -> dict[Size, int]:
        """Of each size that is more than one, two, as far as this machine has processors for the ranks."""
        kept: dict[Size, int] = dict.fromkeys(SIZES, 1)
        if self.engine not in MEGATRON:
            return kept
        room = min(_MOST_RANKS, len(os.sched_getaffinity(0)))
        for size in ("pp", "tp", "etp", "ep", "cp"):
            tried: dict[Size, int] = kept | {size: 2}
            if getattr(self.job.layout, size) > 1 and Layout(nodes=1, processes=1, **tried).fewest <= room:
                kept = tried
        return kept

    # Values.

    def _value(self, name: str, value: Any, meaning: Meaning) -> Any:
        role = meaning.role
        if meaning.produces or meaning.path == "write":
            return value if value is None or "NEMO_RUN_DIR" in str(value) else f"{_NODE_DIR}/rehearsal/{name}"
        if name in self.small:
            return self.small[name]
        if name in self.chained:
            return value if refers(value) else None
        if not meaning.used_by(self.engine) and role not in self.sizes:
            return getattr(type(self.job.args)(), name)
        if role == "adapter":
            raise _cannot(name, value, "no recipe makes an adapter to begin with")
        if meaning.consumes == "checkpoint_megatron":
            # What is trained to stay quantized, and has an exporter for that, begins with a quantized checkpoint.
            begins = bool(meaning.quantized and type(self.job.args).EXPORTER)
            needed = meaning.required or value is not None or begins
            return self._checkpoint(quantized=meaning.quantized is not False) if needed else None
        if role in ("data", "eval_data"):
            return self._data(name, meaning, value)
        if role in ("baseline", "gate"):  # limits are for the scores of a model that was trained
            return None
        if role == "config":
            return self._configured(value)
        if role in self.sizes:
            return None if value is None else self.sizes[role]
        if role in ("first_stage", "last_stage"):  # of two, one says what is left for the other
            return 1 if role == "first_stage" and value is not None and self.sizes["pp"] > 1 else None
        if role in ("kept_parameters", "kept_active_parameters", "kept_memory"):
            return value if value is None else float(f"{value * self._share(role):.3g}")
        if role == "pruned_sizes":
            return None if value is None else {size: self._pruned(size, asked) for size, asked in value.items()}
        return self._number(name, role, value)

    def _number(self, name: str, role: Role | None, value: Any) -> Any:
        if role == "global_batch":
            return None if value is None else min(value, 2)
        if role == "limit":
            return 2
        if role == "remote_code":
            return False
        if name == "tasks":
            return type(self.job.args)().tasks  # those that are built in
        if name == "backend" and value == "vllm" and not has_vllm():
            raise _cannot(name, value, "vLLM is not installed here", "Leave args.backend to itself.")
        if name == "batch_size" and value == "auto":  # the harness tries the largest first
            return 1
        if name == "prune_score_func":  # asks the hub for MMLU
            return None
        if name == "ss_channel_divisor":
            return 64
        most = _MOST.get(role, _FIELDS.get(name))
        return value if most is None or value is None or isinstance(value, str) else min(value, most)

    def _configured(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The sections of a training's configuration, those of its values that have a role by that."""
        found = {section: dict(values) if isinstance(values, dict) else values for section, values in config.items()}

        def put(key: str, value: Any) -> None:
            section, _, name = key.partition(".")
            found.setdefault(section, {})[name] = value

        for size, value in self.sizes.items():
            put(KEYS[size][0], value)
        for role, value in (
            ("sequence", _TOKENS),
            ("micro_batch", 1),
            ("global_batch", 2),
            ("iterations", _ITERATIONS),
        ):
            put(KEYS[role][0], value)  # type: ignore[index]
        for key, value in _CONFIGURED.items():
            section, _, name = key.partition(".")
            if name in (found.get(section) or {}):
                put(key, value)
        put("dataset.seq_length", _TOKENS)
        put("scheduler.lr_warmup_iters", 1)
        return found

    # Models.

    def _model(self, name: str, value: Any, meaning: Meaning) -> Any:
        if meaning.card:
            raise _cannot(name, value, "Megatron-LM's scripts, which model cards are for, need its checkout and a GPU")
        if value is None or is_built_in(value) or (name in self.chained and refers(value)):
            return value
        known = configuration_of(str(value))
        if known is None:
            raise _cannot(name, value, "its config.json is not here, and it is not among the models that are known")
        config, folder = known
        if value not in self._models:
            tokenizer = folder if folder and any((folder / one).is_file() for one in TOKENIZER_FILES) else None
            try:
                small = smaller(config, **({"vocabulary": None} if tokenizer else {}))
                made = ensure_untrained(small, default_cache_root(), tokenizer=tokenizer)
            except (ValueError, JobError) as error:
                raise _cannot(name, value, error.cause if isinstance(error, JobError) else str(error)) from error
            self._models[value] = str(made)
            self.stand_ins.append(f"{value}: random weights, {_figures(facts_of(str(made)))}")
        return self._models[value]

    def _student(self) -> tuple[ModelFacts | None, ModelFacts | None]:
        """What is known of the model that outputs are made of, and of the small one."""
        return self.job.model, facts_of(self._small_student)

    @property
    def _small_student(self) -> str:
        name = field_of(self.job.args, "model")
        assert name is not None  # what takes checkpoints, or is pruned, names a model
        return str(self.small[name])

    def _share(self, role: Role) -> float:
        """How many of a model's parameters the small one has."""
        of = "active" if role == "kept_active_parameters" else "total"
        counts = [facts.architecture.parameters if facts else None for facts in self._student()]
        if counts[0] is None or counts[1] is None:
            raise _cannot(role, None, "the parameters of its model are not known, and so not what part is to be kept")
        return float(getattr(counts[1], of) / getattr(counts[0], of))

    def _pruned(self, size: str, asked: Any) -> Any:
        """The same part of the small model's, as a multiple of the powers of two that it was one of, up to 64."""
        fact = MEGATRON_SIZES.get(size, size)
        was, now = (getattr(facts, fact, None) if facts else None for facts in self._student())
        if not (type(asked) is int and type(was) is int and type(now) is int and 0 < asked <= was):
            return asked
        step = min(asked & -asked, 64, now)
        if size == "num_attention_heads":
            step = max(1, self._student()[1].query_groups or 1)  # type: ignore[union-attr]
        return max(step, now * asked // was // step * step)

    # What goes in.

    def _data(self, name: str, meaning: Meaning, value: Any) -> Any:
        given = [one for one in fields_of(self.job.args, "data") if getattr(self.job.args, one) is not None]
        if meaning.consumes == "binidx":
            if value is None and (given or self.job.get("mock_data")):
                return None
            told = {"jsonl_paths": [str(self._text())], "tokenizer": self._only_model(), "workers": 1}
            self._add(_before("prepare_data", **told))
            self.stand_ins.append("data: the built-in text, tokenized by prepare_data")
            return ["${artifact:prepare_data.binidx}"]
        nothing = self.job.algorithm == "prepare_data" and not given  # to tokenize, which is all that it is for
        other = given or meaning.role == "eval_data" or meaning.names != "data" or self._built_in()
        if value is None and other and not nothing:
            return None
        stated = value if isinstance(value, list) else [value]
        if value is not None and all(one == BUILT_IN or (self.job.here and is_there(expanded(one))) for one in stated):
            return value
        self.stand_ins.append("data: the built-in text")
        if self.job.algorithm == "prepare_data":  # files, whatever was asked for
            return [str(self._text())] if name == "jsonl_paths" else None
        return [str(self._text())] if isinstance(value, list) else str(self._text())

    def _built_in(self) -> bool:
        """Whether a model that ships is worked on, which has text of its own."""
        return any(is_built_in(value) for value in self.small.values())

    def _text(self) -> Path:
        """Rows with a text, and the same as a conversation under the other keys that data may have."""
        file = default_cache_root().with_name("rehearsal") / "text.jsonl"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            rows = []
            for text in passages("calibration")[:_TEXTS]:
                begin, end = text[: len(text) // 2], text[len(text) // 2 :]
                said = [{"role": "user", "content": begin}, {"role": "assistant", "content": end}]
                rows.append(json.dumps({"text": text, "messages": said, "conversations": said}) + "\n")
            write_text(file, "".join(rows))
        return file

    def _only_model(self) -> str:
        """One that is there; what another stage leaves only where no other is."""
        return str(min((value for value in self.small.values() if value), key=refers))

    def _checkpoint(self, *, quantized: bool) -> str:
        """What a stage before leaves of the small model."""
        small = self._small_student
        if self._student()[1] is None:
            raise _cannot(field_of(self.job.args, "model") or "", small, "nothing is known of the checkpoint's model")
        if quantized:
            few = {"calib_size": 4, "calib_seq_length": 32, "calib_batch_size": 4, "eval_size": 0, "prompts": "Hello!"}
            stage = _before("quantize", hf_model_id=small, calib_dataset=str(self._text()), ep=1, **few)
        else:
            stage = _before("hf_to_megatron", hf_model=small)
        there = kept(stage)
        when = "" if there is None else ", at a rehearsal before"
        self.stand_ins.append(f"checkpoint: what {stage.name} leaves of the small model{when}")
        if there is not None:
            return str(there)
        self._add(stage)
        return f"${{artifact:{stage.name}.checkpoint_megatron}}"

    def _add(self, stage: Stage) -> None:
        if all(one.name != stage.name for one in self.stages):
            self.stages.append(stage)


def refers(value: Any) -> bool:
    """Whether it holds a reference to what another stage, or a run, leaves."""
    return "${artifact:" in str(value)


def _before(recipe: str, **values: Any) -> Stage:
    """A stage before the job's own: the shipped recipe with values of its own."""
    from fiddle import copy_with
    from nemo_run import Config

    built = RECIPES[recipe].build()
    engine = "auto" if recipe == "prepare_data" else "bridge"
    one = copy_with(built, engine=engine, args=copy_with(built.args, **values), torchrun=Config(Torchrun))
    return Stage(name=recipe, partial=one, executor="local")


def _engine(job: Job) -> Chosen | None:
    """What is there to do it with: NVIDIA's script in a checkout, Megatron-Bridge, ModelOpt on a Transformers model."""
    if job.engine is None:
        if (missing := missing_tool(type(job.args))) and job.script.path is None:
            raise _cannot("engine", None, "the tool that does it is not installed in this Python", missing)
        return None
    if job.script.path is not None and is_there(expanded(job.script.path)):
        return "script"
    kind = type(job.args)
    here = engine_here(kind)
    if here is not None and (job.engine in MEGATRON or here == "hf"):
        return here
    if kind.HF_ENGINE:
        return "hf"
    if installed(kind.SCRIPTS):  # with a package of this Python
        return "script"
    if kind.BRIDGE:
        raise _cannot(
            "engine", job.engine, "it needs Megatron-Bridge, which is not installed", "In a checkout: make bridge."
        )
    raise _cannot(
        "engine", job.engine, "only NVIDIA's own script does it", "Give a checkout that has it: script.path=FILE."
    )


def _is_a_model(meaning: Meaning) -> bool:
    return meaning.role in _MODELS or meaning.names_a_model


def _cannot(name: str, value: Any, cause: str, remedy: str = "") -> ProblemsError:
    key = name if name == "engine" else f"args.{name}"
    remedy = remedy or "The checks of --dryrun hold all the same."
    return ProblemsError([Problem(name="cannot_rehearse", key=key, value=value, cause=cause, remedy=remedy)])


def _figures(facts: ModelFacts | None) -> str:
    words = {
        "layers": "layers",
        "hidden_size": "wide",
        "heads": "heads",
        "query_groups": "groups",
        "experts": "experts",
    }
    return ", ".join(f"{count} {word}" for fact, word in words.items() if (count := getattr(facts, fact)))


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)
    if text.startswith(str(default_cache_root().parent)):
        return Path(text).name
    return text if len(text) <= 60 else f"{text[:28]}...{text[-29:]}"
