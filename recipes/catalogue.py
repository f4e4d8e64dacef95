"""The catalogue: what can be run. A family is a row of the table below, a recipe a YAML file named after it.

<folder>/<family>/<name>.yaml is the recipe `<family>_<name>`, and default.yaml the one that is called like its family.
The folders are configs/, which ships, `recipes` beside the user's own executors.yaml, and those that
MODELOPT_RECIPES_PATH lists, as PATH does. They are looked at when somebody asks, so that a file that was dropped there
is a recipe at once. What is wrong with a user's file is a Problem that names it; other recipes do not mind.
"""

import os
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, ValuesView
from dataclasses import MISSING, dataclass, fields, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs import CONFIGS
from executors.profiles.files import user_file
from recipes.experiment.releases import releases
from recipes.serialization import adapt
from recipes.values import field_types, load_yaml, merge, read_text
from scripts.args.meaning import ScriptArgs, ScriptSpec, Torchrun, meanings
from scripts.args.typed import dump_yaml
from scripts.checkpoints.documents import neighbour
from scripts.engines.script.cards import cards
from scripts.entrypoints import ALGORITHMS, entrypoint
from scripts.run.files import expanded, is_file
from scripts.run.problems import Problem, ProblemsError, nearest

if TYPE_CHECKING:
    import nemo_run as run

Build = Callable[[], "run.Partial[None]"]
#: Folder of pipelines beside those of families.
PIPELINES = "pipelines"
#: Names further folders of recipes.
PATH_VARIABLE = "MODELOPT_RECIPES_PATH"


@dataclass(frozen=True, kw_only=True)
class Family:
    """Recipes that differ in values only: one algorithm, one class of arguments, a folder of YAML files."""

    name: str
    algorithm: str  # what its entrypoint carries out
    args: type[ScriptArgs]
    also: tuple[str, ...] = ()  # artifact types that it leaves behind and no argument names

    @property
    def entrypoint(self) -> Callable[..., None]:
        """What a recipe runs on the node."""
        return entrypoint(self.algorithm)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A name in the catalogue: a family with the values of a file."""

    name: str
    family: Family
    file: Path

    def build(self) -> "run.Partial[None]":
        """The Partial of its entrypoint, with the values of its file over those that the file extends.

        Raises ProblemsError when a file does not parse, or has a key that the algorithm does not know.
        """
        from nemo_run import Config, Partial

        RECIPES.register()
        return self._built(Partial, Config)

    def outline(self) -> "run.Partial[None]":
        """The same to look at, of Fiddle's own classes: NeMo-Run, which takes seconds to import, is to submit one."""
        from fiddle import Config, Partial

        return self._built(Partial, Config)

    def _built(self, partial_of: Any, config_of: Any) -> "run.Partial[None]":
        args = self.family.args
        made = {one.name: one.default_factory() for one in fields(args) if one.default_factory is not MISSING}
        partial: run.Partial[None] = partial_of(
            self.family.entrypoint,
            recipe=self.name,
            engine="auto",
            script=config_of(ScriptSpec),
            args=config_of(args, **made),  # Fiddle cannot read what each object gets its own of
            torchrun=config_of(Torchrun),
            extra_args=[],
        )
        if problems := merge_files(partial, layers(self.family, self.file)):
            raise ProblemsError(problems)
        return partial

    @property
    def algorithm(self) -> str:
        """What its entrypoint carries out."""
        return self.family.algorithm

    def fact(self, section: str) -> Any:
        """What its file says of the values, else the nearest that it extends; None where none does."""
        files = reversed(layers(self.family, self.file))
        return next((values[section] for _, values in files if values.get(section) is not None), None)

    @property
    def summary(self) -> str:
        """What it is, in a line; where it stands plainly in the file, that file is all that is read."""
        plain = re.search(r"^summary: (?:'([^']+)'|(\w[^#\n]*))$", read_text(self.file), re.MULTILINE)
        return (plain[1] or plain[2]) if plain else str(self.fact("summary") or "")

    @property
    def hardware(self) -> str | None:
        """The GPU that its values are made for, of configs/gpus.yaml; None where any does, or none."""
        stated = self.fact("hardware")
        return stated["gpu"] if stated else None

    @property
    def consumes(self) -> tuple[str, ...]:
        """The artifact types that its arguments name as input."""
        return tuple(dict.fromkeys(meaning.consumes for _, meaning in meanings(self.family.args) if meaning.consumes))

    @property
    def produces(self) -> tuple[str, ...]:
        """The artifact types that it can leave behind."""
        named = [meaning.produces for _, meaning in meanings(self.family.args) if meaning.produces]
        return tuple(dict.fromkeys([*named, *self.family.also]))

    def problems(self) -> tuple[Problem, ...]:
        """What is wrong with its file. Those that ship are tested, and not looked at again."""
        if self.file.is_relative_to(CONFIGS):
            return ()
        try:
            self.outline()
        except ProblemsError as error:
            return error.problems
        return ()


@cache
def function_of(recipe: Recipe) -> Build:
    """The function `recipes.NAME`: no arguments, the recipe's summary as its docstring."""

    def build() -> "run.Partial[None]":
        return recipe.build()

    build.__module__, build.__name__, build.__qualname__ = "recipes", recipe.name, recipe.name
    try:
        build.__doc__ = recipe.summary
    except ProblemsError:  # of a user's file; building it says what it is
        build.__doc__ = f"{recipe.file} does not parse."
    return build


@cache
def _register(recipes: tuple[Recipe, ...]) -> None:
    from nemo_run import Partial
    from nemo_run.cli import factory

    for recipe in recipes:
        build = function_of(recipe)
        build.__annotations__ = {"return": Partial[None]}  # NeMo-Run does not know where to look a name up
        factory(build, target=recipe.family.entrypoint)
        factory(build, namespace="recipes")


# --- families --------------------------------------------------------------------------------------------------------

#: How families are listed, and the recipes of each where that is not: its default, others by name, its smoke test.
#: What is not here comes after.
_ORDER: Mapping[str, tuple[str, ...]] = {
    "quantize": ("fp8", "nvfp4", "int8_sq", "fp8_blockwise", "int4_awq", "w4a8_awq"),
    "auto_quantize": (),
    "best": (),
    "quantize_vlm": ("qwen3_vl_30b",),
    "quantize_modelopt": (),
    **dict.fromkeys(("generate", "generate_vlm", "generate_vllm"), ()),
    **dict.fromkeys(("export", "export_modelopt", "export_distilled"), ()),
    "prune": ("active", "memory"),
    "distill": ("mock", "tiny"),
    **dict.fromkeys(("qad", "distill_llama", "qat"), ()),
    **dict.fromkeys(("hf_to_megatron", "megatron_to_hf", "merge_lora"), ()),
    **dict.fromkeys(("mlm_convert", "mlm_quantize", "mlm_export", "mlm_generate", "mlm_mmlu", "mlm_prune"), ()),
    **dict.fromkeys(("mlm_finetune", "mlm_distill", "mlm_validate"), ()),
    **dict.fromkeys(("prepare_data", "evaluate"), ()),
    "serve": ("trtllm",),
    "program": (),
    "probe": (),
}


def families() -> dict[str, Family]:
    """Every family of the algorithms in scripts/entrypoints.py, in the order in which they are listed."""
    found = {
        name: Family(name=name, algorithm=algorithm, args=args, also=row.leaves if args is row.args else ())
        for algorithm, row in ALGORITHMS.items()
        for name, args in row.families.items()
    }
    order = [*(name for name in _ORDER if name in found), *(name for name in found if name not in _ORDER)]
    return {name: found[name] for name in order}


FAMILIES = families()


class Catalogue(Mapping[str, Recipe]):
    """Every recipe by name, in the order in which they are listed."""

    def __getitem__(self, name: str) -> Recipe:
        return _catalogue()[0][name]

    def __iter__(self) -> Iterator[str]:
        return iter(_catalogue()[0])

    def __len__(self) -> int:
        return len(_catalogue()[0])

    def values(self) -> ValuesView[Recipe]:
        """The folders are looked at once, and not for each of them."""
        return _catalogue()[0].values()

    def problems(self) -> list[Problem]:
        """What is wrong with the folders and files that users added; the recipes of sound files work all the same."""
        recipes, problems = _catalogue()
        return [*problems, *(problem for recipe in recipes.values() for problem in recipe.problems())]

    def register(self) -> None:
        """Make every recipe a factory of NeMo-Run: of its entrypoint (`--factory quantize_fp8`), and in `recipes`.

        Building one does this too, and so does NeMo-Run's own `nemo`, which loads the entry point of recipes.cli.
        """
        adapt()
        _register(tuple(_catalogue()[0].values()))


RECIPES = Catalogue()


def own_folders() -> list[Path]:
    """Where users keep recipes of their own, whether the folders are there or not."""
    profiles = user_file()
    listed = [expanded(name) for name in os.environ.get(PATH_VARIABLE, "").split(os.pathsep) if name]
    return [*([] if profiles is None else [profiles.parent / "recipes"]), *listed]


def _catalogue() -> tuple[Mapping[str, Recipe], tuple[Problem, ...]]:
    """The recipes of all folders, and what in the folders is none; what users keep is looked at each time."""
    own = ((folder, _entries(folder)) for folder in own_folders() if folder.is_dir())
    return _read(((CONFIGS, _shipped()), *own), tuple(FAMILIES.values()))


def _entries(folder: Path) -> tuple[str, ...]:
    """What lies in a folder of recipes, as names below it."""
    found = [entry for pattern in ("*", "*/*.yaml") for entry in folder.glob(pattern)]
    return tuple(sorted(entry.relative_to(folder).as_posix() for entry in found))


@cache
def _shipped() -> tuple[str, ...]:
    return _entries(CONFIGS)


@lru_cache(maxsize=4)
def _read(
    folders: tuple[tuple[Path, tuple[str, ...]], ...], families: tuple[Family, ...]
) -> tuple[Mapping[str, Recipe], tuple[Problem, ...]]:
    recipes: dict[str, Recipe] = {}
    problems = [problem for folder, entries in folders[1:] for problem in _strange(folder, entries)]
    for family in families:
        for folder, entries in folders:
            configs = [Path(entry).stem for entry in entries if entry.startswith(f"{family.name}/")]
            for config in sorted(configs, key=lambda config: _place(family, config)):
                file = folder / family.name / f"{config}.yaml"
                name = family.name if config == "default" else f"{family.name}_{config}"
                if name in recipes:
                    cause = f"{recipes[name].file} is that recipe already"
                    problems.append(_wrong("duplicate_recipe", name, file, cause, "Rename one of the two files."))
                elif not name.isidentifier():
                    cause = "a recipe's name is letters, digits and `_`, so that Python can import it"
                    problems.append(_wrong("bad_recipe_name", name, file, cause, "Rename the file."))
                else:
                    recipes[name] = Recipe(name=name, family=family, file=file)
    return recipes, tuple(problems)


def _place(family: Family, config: str) -> tuple[int, str]:
    """Where a config is listed in its family: the default first, a smoke test last, others by name."""
    order = ("default", *_ORDER.get(family.name, ()))
    return (order.index(config), "") if config in order else (len(order) + (config == "tiny"), config)


def _strange(folder: Path, entries: tuple[str, ...]) -> Iterator[Problem]:
    """What lies in a user's folder of recipes and belongs to no family."""
    for entry in (entry for entry in entries if "/" not in entry and entry not in (*FAMILIES, PIPELINES)):
        if (folder / entry).is_dir() or entry.endswith(".yaml"):
            cause = "a folder of recipes holds folders, each named after a family"
            yield _wrong("unknown_family", entry, folder / entry, cause, nearest(entry, FAMILIES))


def _wrong(name: str, key: str, file: Path, cause: str, remedy: str) -> Problem:
    return Problem(name=name, key=key, value=file, cause=cause, remedy=remedy)


def find(name: str) -> Recipe:
    """The recipe of that name. Raises ProblemsError with the nearest one."""
    if (recipe := RECIPES.get(name)) is not None:
        return recipe
    cause, remedy = "there is no such recipe", nearest(name, RECIPES)
    if any((folder / PIPELINES / f"{name}.yaml").is_file() for folder in (CONFIGS, *own_folders())):
        cause, remedy = "it is a pipeline", f"nemo experiment plan {name} shows its stages."
    raise ProblemsError([Problem(name="unknown_recipe", key="recipe", value=name, cause=cause, remedy=remedy)])


# --- files -----------------------------------------------------------------------------------------------------------


def named_config(family: Family, name: str) -> Recipe | None:
    """The recipe of a family that a bare config name (`fp8`) stands for."""
    return next((one for one in RECIPES.values() if one.family == family and one.file.stem == name), None)


def config_of(family: Family, name: str, *, key: str = "--config") -> Path:
    """The file of a bare config name (`fp8`) in a family, else the path itself. Raises ProblemsError for neither."""
    named = named_config(family, name)
    path = named.file if named else expanded(name)
    if is_file(path):
        return path
    remedy = nearest(name, [recipe.file.stem for recipe in RECIPES.values() if recipe.family == family])
    if path.suffix in (".yaml", ".yml"):
        remedy = neighbour(path, remedy, like=lambda file: file.suffix == path.suffix)
    cause = "there is no such file or config"
    raise ProblemsError([Problem(name="unknown_config", key=key, value=name, cause=cause, remedy=remedy)])


def layers(family: Family, file: Path) -> list[tuple[Path, Mapping[str, Any]]]:
    """A file and what it extends, the one that counts least first. Raises ProblemsError where one cannot be read."""
    found: list[tuple[Path, Mapping[str, Any]]] = []
    following: Path | None = file
    while following is not None:
        if following in (path for path, _ in found):
            cause = f"{' extends '.join(path.name for path, _ in reversed(found))}, in a circle"
            raise ProblemsError([Problem(name="wrong_value", key="extends", value=file, cause=cause)])
        found.insert(0, (following, load_yaml(following)))
        base = found[0][1].get("extends")
        following = None if base is None else config_of(family, str(base), key=f"extends of {following}")
    return found


def merge_files(partial: "run.Partial[Any]", files: list[tuple[Path, Mapping[str, Any]]]) -> list[Problem]:
    """Set the values of files, each over those before it; what does not fit is said with the file."""
    return [
        replace(problem, cause=f"{problem.cause} (in {file})")
        for file, values in files
        for problem in merge(partial, values)
    ]


def written_out(recipe: Recipe) -> str:
    """A file with every value of a recipe and what it means, which gives the same recipe when it is merged."""
    about = " ".join(recipe.summary.split())
    lines = [f"# {recipe.name}: {about}", f"# nemo experiment run {recipe.name} --config THIS_FILE", ""]
    section = ""
    for row in values_described(recipe):
        above, _, name = row["key"].rpartition(".")
        if above != section and above:
            lines += ["", f"{above}:"]
        section = above
        lines += [f"{'  ' if above else ''}# {line}" for line in textwrap.wrap(row["meaning"], 110)]
        text = dump_yaml({name: row["value"]})
        lines.append(textwrap.indent(text.rstrip(), "  " if above else ""))
    return "\n".join(lines) + "\n"


# --- what is shown of a recipe ---------------------------------------------------------------------------------------


def describe(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain data: values with meanings and types, artifacts, strategies, errors, releases."""
    return {
        "name": recipe.name,
        "summary": recipe.summary,
        "algorithm": recipe.algorithm,
        "consumes": list(recipe.consumes),
        "produces": list(recipe.produces),
        "values": values_described(recipe),
        "hardware": recipe.hardware,
        "strategies": recipe.fact("strategies") or [],
        "errors": recipe.fact("errors") or [],
        "model_cards": sorted(cards()) if any(meaning.card for _, meaning in meanings(recipe.family.args)) else [],
        "releases": releases(recipe.outline()),
    }


def values_described(recipe: Recipe) -> list[dict[str, Any]]:
    """Every key of a recipe: its value, its type, and what it means."""
    partial = recipe.outline()
    values = []
    docs = {
        f"{section}.{one.name}": str(one.metadata["doc"])
        for section in ("script", "args", "torchrun")
        for one in fields(getattr(partial, section).__fn_or_cls__)
    }
    for key, kind in field_types(partial).items():
        section, _, name = key.partition(".")
        holder = getattr(partial, section)
        value = getattr(holder, name) if name else holder
        named = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
        values.append({"key": key, "value": value, "type": named, "meaning": docs.get(key, "")})
    return values
