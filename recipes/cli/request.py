"""What a command line asks for: a recipe with its values, a place, and how to submit; `run` and `plan` share it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from recipes.experiment.examine import Examined, Options, Stage, examine
from scripts.run.problems import Problem, ProblemsError

if TYPE_CHECKING:
    import nemo_run as run


@dataclass(frozen=True, kw_only=True)
class Request:
    """A recipe with everything that the command line says of it, and what of that does not fit."""

    partial: "run.Partial[Any]"
    executor: str
    options: Options
    problems: tuple[Problem, ...]


def request_of(
    recipe: str, words: Sequence[str], config: str | None, passthrough: Sequence[str], options: Options
) -> Request:
    """Build the recipe. Raises ProblemsError where there is none of that name, with all else that is wrong."""
    from executors import load_profile
    from recipes.catalogue import config_of, find, layers, merge_files
    from recipes.values import parse_words, set_value

    parsed, problems = parse_words(list(words))
    options = replace(options, overrides=parsed.profile)
    try:
        entry = find(recipe)
    except ProblemsError as error:
        wrong = load_profile(parsed.executor, parsed.profile, files=options.profiles)[1]
        raise ProblemsError([*error.problems, *problems, *wrong]) from None
    partial = entry.build()
    if config is not None:
        try:
            problems += merge_files(partial, layers(entry.family, config_of(entry.family, config)))
        except ProblemsError as error:
            problems += error.problems
    for key, value in parsed.recipe.items():
        problems += set_value(partial, key, value)
    partial.extra_args = [*partial.extra_args, *passthrough]
    return Request(partial=partial, executor=parsed.executor, options=options, problems=tuple(problems))


def examined_of(request: Request, after: Sequence[str], sweep: Sequence[str]) -> Examined:
    """The request's stages, checked: one, or those of a sweep. Raises ProblemsError with every error."""
    from recipes.experiment.sweep import stages_of
    from recipes.values import parse_sweep

    grid, wrong = parse_sweep(list(sweep))
    problems = [*request.problems, *wrong]
    try:
        stages = [replace(stage, after=after) for stage in stages_of(request.partial, grid)]
    except ProblemsError as error:
        problems += error.problems
        stages = [Stage(name=request.partial.recipe, partial=request.partial, after=after)]
    examined = examine(stages, request.executor, request.options)
    if problems or examined.errors:
        others = [problem for problem in examined.problems if problem.severity != "error"]
        raise ProblemsError([*problems, *examined.errors, *others])
    return examined
