"""Pipelines: recipes as stages, each on what those before it leave, in a YAML file or by name.

    summary: Quantize a model, and hold its scores against those that it had.
    args:                          # what `args.KEY=VALUE` sets, and `${args.KEY}` below stands for
      hf_model_id: Qwen/Qwen3-8B
    stages:                        # one after the other, unless `after` says otherwise
      baseline: {recipe: evaluate, args: {checkpoint: "${args.hf_model_id}"}}
      quantize: {recipe: quantize_fp8, after: [], args: {hf_model_id: "${args.hf_model_id}"}, gate: {max_increase: 1%}}
      evaluate: {recipe: evaluate, after: [quantize, baseline], executor: slurm}

A stage takes what the stages that it is after leave, by type; where a conversion is needed it is put between. Its other
keys are those of a recipe's file. In words, `quantize.args.calib_size=64` sets one of a stage, and `engine=`, `script.`
and `torchrun.` those of every stage that has a use for them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs import CONFIGS
from recipes.catalogue import PIPELINES, find, own_folders
from recipes.experiment.chain import wired
from recipes.experiment.run_ids import MOST_OF_STAGE
from recipes.experiment.stage import Stage
from recipes.experiment.sweep import Grid, combinations, swept
from recipes.preflight.subjects import of_values
from recipes.values import SECTIONS, load_yaml, merge, set_value
from scripts.args.meaning import ScriptArgs
from scripts.args.typed import parse_yaml
from scripts.engines.choice import can_run
from scripts.run.problems import Problem, ProblemsError, nearest

if TYPE_CHECKING:
    import nemo_run as run

_KEYS = {"summary": str, "args": dict, "stages": dict}
_STAGE_KEYS = ("recipe", "after", "executor", "gate", *SECTIONS)
_NAME = re.compile(r"[A-Za-z]([A-Za-z0-9_-]*[A-Za-z0-9])?")
_ARG = re.compile(r"\$\{args\.([A-Za-z_]\w*)\}")
#: What words begin with that are for every stage.
_FOR_ALL = ("engine", "script", "torchrun")


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A file of stages, read and of the right form."""

    name: str
    file: Path
    summary: str
    args: Mapping[str, Any]
    stages: Mapping[str, Mapping[str, Any]]


@dataclass(kw_only=True)
class Built:
    """The stages of a pipeline with the values that somebody gave, not wired yet, and what of them does not fit."""

    pipeline: Pipeline
    stages: list[Stage] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def pipelines() -> dict[str, Path]:
    """The pipelines that have a name: those that ship, and `pipelines/NAME.yaml` in the folders of users' recipes."""
    found: dict[str, Path] = {}
    for folder in (CONFIGS, *own_folders()):
        for file in sorted((folder / PIPELINES).glob("*.yaml")):
            found.setdefault(file.stem, file)
    return found


def file_of(word: str) -> Path | None:
    """The pipeline that a word names, or the path of one; None where it is neither."""
    if word in (named := pipelines()):
        return named[word]
    return Path(word).expanduser() if word.endswith((".yaml", ".yml")) else None


def pipeline(name: str, values: Mapping[str, str] = {}, sweep: Mapping[str, Sequence[str]] = {}) -> list[Stage]:
    """Stages for `submit_all`: of a pipeline by its name or its file, with values as words have them.

    `submit_all(pipeline("quantize_and_evaluate", {"args.hf_model_id": "tiny:qwen3"}), "slurm")`; with
    `sweep={"quantize.args.calib_size": ["64", "256"]}` for every combination. Conversions are put between, and stages
    fed, as the place needs where they are submitted. Raises ProblemsError.
    """
    file = file_of(name)
    if file is None:
        cause, remedy = "there is no such pipeline", nearest(name, pipelines())
        raise ProblemsError([Problem(name="unknown_recipe", key="pipeline", value=name, cause=cause, remedy=remedy)])
    built = build_swept(read(file), values, sweep)
    if built.problems:
        raise ProblemsError(built.problems)
    wired(built.stages)  # what makes no sense anywhere
    return [replace(stage, wired=False) for stage in built.stages]


def build_swept(
    pipeline: Pipeline, words: Mapping[str, str], grid: Grid, said: Mapping[str, Mapping[str, str]] = {}
) -> Built:
    """As `build`, for every combination of `grid`; where one of them has problems, no stages.

    Words of a stage's executor are among them: `quantize.executor=slurm`; `said` has what they go before.
    """
    problems: list[Problem] = []

    def stages_with(chosen: Mapping[str, str]) -> list[Stage]:
        values, executors = {**words, **chosen}, {stage: dict(told) for stage, told in said.items()}
        for key in list(values):
            stage, _, rest = key.partition(".")
            if stage in pipeline.stages and rest.partition(".")[0] == "executor":
                executors.setdefault(stage, {})[rest.removeprefix("executor").removeprefix(".")] = values.pop(key)
        built = build(pipeline, values, executors)
        problems.extend(problem for problem in built.problems if problem not in problems)
        return built.stages

    stages = [stages_with(chosen) for chosen in combinations(grid)]
    if grid and not problems:
        stages = [swept(grid, stages)]
    return Built(pipeline=pipeline, stages=stages[0], problems=problems)


def read(file: Path) -> Pipeline:
    """A pipeline's file. Raises ProblemsError with everything that is not of its form."""
    return of_content(load_yaml(file), file, file.stem)


def of_content(content: Mapping[str, Any], file: Path, name: str) -> Pipeline:
    """The pipeline of that name that a file says. Raises ProblemsError with everything that is not of its form."""
    problems = [*_strange(content, _KEYS, str(file))]
    for key, kind in _KEYS.items():
        if key in content and not isinstance(content[key], kind):
            problems.append(
                _wrong(f"{file}: {key}", content[key], f"a {'text' if kind is str else 'mapping'} is expected")
            )
    stages = content.get("stages")
    if not isinstance(stages, dict) or not stages:
        remedy = "Write stages: {NAME: {recipe: RECIPE}}; a recipe's own values go to --config."
        problems.append(_wrong(f"{file}: stages", stages, "a pipeline has stages, each with a recipe", remedy))
        raise ProblemsError(problems)
    if not re.search("[A-Za-z0-9]", name):
        cause, remedy = "its runs are called after it, and that has no letter or digit of ASCII", "Call it otherwise."
        problems.append(Problem(name="bad_run_name", key=str(file), value=name, cause=cause, remedy=remedy))
    for key, stage in stages.items():
        if not isinstance(key, str):  # `yes`, `null` and 1 are no texts in YAML
            problems.append(_wrong(f"{file}: stages", key, "the name of a stage is a text", "Write it in quotes."))
        problems += _form(str(key), stage, [str(one) for one in stages])
    args = content.get("args")
    whole = {key: one for key, one in stages.items() if isinstance(key, str) and _has_recipe(one)}
    pipeline = Pipeline(
        name=name,
        file=file,
        summary=content.get("summary", ""),
        args=args if isinstance(args, dict) else {},
        stages=whole,
    )
    if problems:  # and what is wrong with the values of those that have a recipe
        found = build(pipeline, {})
        raise ProblemsError([*problems, *found.problems, *wrong_values(found.stages)])
    return pipeline


def wrong_values(stages: Sequence[Stage]) -> list[Problem]:
    """What is wrong with the values of stages wherever they run."""
    return [one for stage in stages for one in _said_of(stage.name, of_values(stage.partial))]


def _has_recipe(stage: Any) -> bool:
    return isinstance(stage, dict) and isinstance(stage.get("recipe"), str)


def _form(name: str, stage: Any, names: Sequence[str]) -> Iterator[Problem]:
    if not _NAME.fullmatch(name) or len(name) > MOST_OF_STAGE or name in (*SECTIONS, "executor", "track"):
        cause = f"a stage's name is at most {MOST_OF_STAGE} letters, digits, `_` and `-`, and none of a section"
        yield Problem(name="bad_stage_name", key="stages", value=name, cause=cause)
    if not _has_recipe(stage):
        yield _wrong(name, stage, "a stage is a mapping with a recipe", "Write NAME: {recipe: quantize_fp8}.")
        return
    yield from _strange(stage, _STAGE_KEYS, name)
    if "executor" in stage and not isinstance(stage["executor"], str):
        yield _wrong(f"{name}.executor", stage["executor"], "the name of an executor profile is expected")
    after = stage.get("after", [])
    listed = after if isinstance(after, list) else [after]
    for one in listed:
        if not isinstance(one, str):
            yield _wrong(f"{name}.after", one, "the names of stages are expected")
        elif one not in names:
            yield Problem(
                name="unknown_stage",
                key=f"{name}.after",
                value=one,
                cause="no stage has that name",
                remedy=nearest(one, {*names} - {name}),
            )


def build(pipeline: Pipeline, words: Mapping[str, str], executors: Mapping[str, Mapping[str, str]] = {}) -> Built:
    """Its stages with the values of words; `executors`: by stage, `""` its executor and others of that one's values."""
    built = Built(pipeline=pipeline)
    args = dict(pipeline.args)
    of_stage: dict[str, dict[str, str]] = {}
    for_all: dict[str, str] = {}
    for key, value in words.items():
        first, _, rest = key.partition(".")
        if first == "args":
            if rest in args:
                # Where its own value is a text, that is what it takes: `0.10`, `yes` and `null` too.
                args[rest] = value if isinstance(args[rest], str) else _parsed(key, value, built.problems)
            else:
                built.problems.append(_no_arg(pipeline, key, rest))
        elif first in pipeline.stages and rest:
            of_stage.setdefault(first, {})[rest] = value
        elif first in _FOR_ALL:
            for_all[key] = value
        else:
            known = [*pipeline.stages, *_FOR_ALL, "args", "executor"]
            cause, remedy = "there is no such stage or section", nearest(first, known)
            built.problems.append(Problem(name="unknown_key", key=key, value=None, cause=cause, remedy=remedy))
    used = dict.fromkeys(for_all, False)
    before = ""
    for name, content in pipeline.stages.items():
        own = of_stage.get(name, {})
        stage, problems = _stage(
            pipeline, name, {**content, "recipe": own.pop("recipe", content["recipe"])}, args, before
        )
        before = name
        built.problems += problems
        if stage is None:
            continue
        for key, value in for_all.items():
            if _has_use(stage.partial, key, value):
                used[key] = True
                built.problems += _said_of("", set_value(stage.partial, key, value))
        for key, value in own.items():
            key = f"args.{key}" if key.partition(".")[0] == "gate" else key
            built.problems += _said_of(name, set_value(stage.partial, key, value))
        told = dict(executors.get(name, {}))
        executor = told.pop("", stage.executor)
        profile = told or ({} if executor is not None else None)
        built.stages.append(replace(stage, executor=executor, profile=profile))
    for key in (key for key, was in used.items() if not was and built.stages):
        cause = "no stage has a use for it"
        built.problems.append(Problem(name="unknown_key", key=key, value=for_all[key], cause=cause))
    built.problems = [one for at, one in enumerate(built.problems) if one not in built.problems[:at]]
    return built


def _stage(
    pipeline: Pipeline, name: str, content: Mapping[str, Any], args: Mapping[str, Any], before: str
) -> tuple[Stage | None, list[Problem]]:
    problems: list[Problem] = []
    try:
        partial = find(content["recipe"]).build()
    except ProblemsError as error:
        if content["recipe"] in pipelines():
            cause, remedy = "that is a pipeline, and a stage is a recipe", "Write its stages here, or run it before."
            return None, [_wrong(f"{name}.recipe", content["recipe"], cause, remedy)]
        return None, [replace(one, key=f"{name}.{one.key}") for one in error.problems]
    values = {key: content[key] for key in SECTIONS if key in content}
    if "gate" in content:
        values["args"] = {**(values.get("args") or {}), "gate": content["gate"]}
    filled = _filled(values, args, name, pipeline, problems)
    problems += _said_of(name, merge(partial, filled))
    after = content.get("after", [before] if before else [])
    stage = Stage(
        name=name,
        partial=partial,
        executor=content.get("executor"),
        after=after if isinstance(after, list) else [after],
        pipeline=pipeline.name,
    )
    return stage, problems


def _filled(value: Any, args: Mapping[str, Any], key: str, pipeline: Pipeline, problems: list[Problem]) -> Any:
    """With the pipeline's own arguments in the place of `${args.KEY}`: whole, or as a part of a text."""
    if isinstance(value, dict):
        return {name: _filled(one, args, f"{key}.{name}", pipeline, problems) for name, one in value.items()}
    if isinstance(value, list):
        return [_filled(one, args, key, pipeline, problems) for one in value]
    if not isinstance(value, str):
        return value
    for name in _ARG.findall(value):
        if name not in args:
            problems.append(_no_arg(pipeline, key, name, value))
    if (whole := _ARG.fullmatch(value)) and whole[1] in args:
        return args[whole[1]]
    return _ARG.sub(lambda match: str(args.get(match[1], match[0])), value)


def _has_use(partial: "run.Partial[Any]", key: str, value: str) -> bool:
    """Whether a word for all stages means anything to one."""
    kind: type[ScriptArgs] = partial.args.__fn_or_cls__
    if key == "engine":
        return can_run(kind, value)
    return kind.RANKED if key.startswith("torchrun.") else bool(kind.SCRIPTS or kind.BRIDGE)


def _parsed(key: str, value: str, problems: list[Problem]) -> Any:
    import yaml

    try:
        return parse_yaml(value)
    except (yaml.YAMLError, ValueError) as error:
        problems.append(_wrong(key, value, f"does not parse: {' '.join(str(error).split())}"))
        return value


def _no_arg(pipeline: Pipeline, key: str, name: str, value: Any = None) -> Problem:
    cause = f"{pipeline.name} has no argument {name}"
    holders = [stage for stage in pipeline.stages if _takes(pipeline.stages[stage], name)]
    remedy = nearest(name, pipeline.args) if pipeline.args else f"Write args: {{{name}: VALUE}} at the top of its file."
    if holders:
        remedy = f"One stage's own: {holders[0]}.args.{name}=VALUE."
    return Problem(name="unknown_key", key=key, value=value, cause=cause, remedy=remedy)


def _takes(stage: Mapping[str, Any], name: str) -> bool:
    try:
        return hasattr(find(stage["recipe"]).family.args, name)
    except ProblemsError:
        return False


def _said_of(stage: str, problems: Sequence[Problem]) -> list[Problem]:
    return [replace(one, key=f"{stage}.{one.key}") if stage else one for one in problems]


def _strange(content: Mapping[str, Any], known: Any, where: str) -> Iterator[Problem]:
    for key in content:
        if key not in known:
            yield Problem(
                name="unknown_key",
                key=f"{where}: {key}",
                value=None,
                cause="there is no such key",
                remedy=nearest(str(key), known),
            )


def _wrong(key: str, value: Any, cause: str, remedy: str = "") -> Problem:
    return Problem(name="wrong_value", key=key, value=value, cause=cause, remedy=remedy)
