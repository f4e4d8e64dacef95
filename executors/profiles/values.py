"""The values of a profile: variables of the submitting machine put in, secrets kept out, types checked."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin

from executors.base import Place, Profile, keys_of
from executors.constraints import NO_NAMES, VARIABLE, variable_fault
from executors.profiles.files import Word
from scripts.args.typed import convert
from scripts.run.problems import JobError, Problem, nearest
from scripts.run.secrets import SWITCHES, looks_secret

_OPENING = re.compile(r"(?<!\\)\$\{")
_FROM_ENV = re.compile(r"(?<!\\)\$\{\s*oc\.env\s*:\s*([A-Za-z_][A-Za-z0-9_]*)\s*[,}]")
Where = Callable[[str], str]


@dataclass
class Values:
    """Takes the values of one profile, key by key; keeps what fits in `fit` and says what does not in `problems`."""

    cls: type[Profile]
    name: str
    secrets: frozenset[str]
    fit: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def take_file(self, values: Mapping[str, Any], where: Where) -> None:
        """Values of profile files, as text; `where` says which file and line a key comes from."""
        kinds = keys_of(self.cls)
        for key, value in values.items():
            kind, of_items = kinds.get(key), _type_of_items(kinds.get(key))
            if kind is None:
                title = self.cls.__name__.removesuffix("Profile").lower()
                cause = f"{where(key)}: a {title} profile has no such key"
                self._unknown(f"{self.name}.{key}", cause, nearest(key, [*kinds, "extends"]))
            elif value is None and get_origin(kind) in (dict, list):
                continue  # `env:` with nothing but comments below it
            elif isinstance(value, dict) and of_items is not None:
                taken = self.fit[key] = {}
                for name, item in value.items():
                    path = f"{key}.{name}"
                    with self._noting(self.name, path, item, f"{where(path)}: "):
                        taken[name] = self._allowed(key, name, _typed(of_items, item))
            else:
                with self._noting(self.name, key, value, f"{where(key)}: "):
                    self.fit[key] = _named(key, _typed(kind, value))

    def take_words(self, words: Mapping[str, str]) -> None:
        """Values of the command line: text for `KEY` or, where a field is a mapping, for `KEY.NAME`."""
        kinds = {key: kind for key, kind in keys_of(self.cls).items() if key != "kind"}
        if "secrets" in words:  # names listed there may not be set by another word
            self.secrets |= {*re.findall(VARIABLE, words["secrets"])}
        for word, text in words.items():
            key, _, name = word.partition(".")
            of_items = _type_of_items(kinds.get(key))
            if key not in kinds or (name and of_items is None):
                self._unknown(f"executor.{word}", f"{self.name} has no such key", nearest(word, kinds))
                continue
            with self._noting("executor", word, text):
                kind = of_items if name else kinds[key]
                value = convert(kind, _word_value(kind, text), strict=False)
                if name:
                    self.fit[key] = {**(self.fit.get(key) or {}), name: self._allowed(key, name, value)}
                elif of_items is not None:
                    taken = self.fit[key] = {}
                    for inner, item in (value or {}).items():
                        with self._noting("executor", f"{key}.{inner}", None):
                            taken[inner] = self._allowed(key, inner, item)
                else:
                    self.fit[key] = _named(key, value)

    @contextmanager
    def _noting(self, owner: str, path: str, value: Any, where: str = "") -> Iterator[None]:
        """Whatever is wrong with the value at a path becomes a Problem; of a variable or a secret none is shown."""
        key = f"{owner}.{path}"
        try:
            yield
        except JobError as error:
            self.problems.append(error.as_problem(key, cause=f"{where}{error.cause}"))
        except ValueError as error:
            shown = value[:200] if isinstance(value, str) and not path.startswith(("env", "secrets")) else None
            self.problems.append(Problem(name="wrong_value", key=key, value=shown, cause=f"{where}{error}"))

    def _unknown(self, key: str, cause: str, remedy: str) -> None:
        self.problems.append(Problem(name="unknown_key", key=key, value=None, cause=cause, remedy=remedy))

    def _allowed(self, field: str, name: str, value: Any) -> Any:
        """`value` where `name: value` may stand in a mapping: `env` takes variables, and none that is a secret."""
        if field != "env":
            return value
        cause, remedy = variable_fault(name, value, Place.reserved)
        if cause:
            raise JobError("wrong_value", cause, remedy)
        if name in self.secrets or (looks_secret(name) and value.lower() not in SWITCHES):
            cause = f"{name} looks like a secret, and `env` is written to scripts and records"
            remedy = f"List its name instead: secrets: [{name}], and set it where you submit."
            raise JobError("secret_in_env", cause, remedy)
        return value


def _named(field: str, value: Any) -> Any:
    """`value` unless it is `secrets` and holds no names; what it holds instead might be the secret."""
    if field == "secrets" and not all(VARIABLE.fullmatch(name) for name in value or ()):
        raise JobError("wrong_value", *NO_NAMES)
    return value


def _required(kind: Any) -> Any:
    """`T` of `T | None`; any other type as it is."""
    inner = [arg for arg in get_args(kind) if arg is not type(None)]
    return inner[0] if len(inner) == 1 and type(None) in get_args(kind) else kind


def _type_of_items(kind: Any) -> Any:
    """Of a mapping's values; None for what is no mapping."""
    return get_args(_required(kind))[1] if get_origin(_required(kind)) is dict else None


def _typed(kind: Any, value: Any) -> Any:
    """The value of a file as a `kind`. Raises ValueError, and JobError for a variable that cannot be put in."""
    filled = _filled(_required(kind), value)
    from_env = isinstance(value, str) and _FROM_ENV.search(value)
    expected = get_origin(_required(kind))
    if isinstance(filled, str) and expected in (dict, list) and not from_env:
        raise ValueError(f"is one word; a {'list' if expected is list else 'mapping'} is expected")
    if filled is None and from_env and type(None) not in get_args(kind):
        raise ValueError("is null")
    return convert(kind, filled, strict=False)


def _filled(kind: Any, value: Any) -> Any:
    """`value` with `${oc.env:...}` put in, and words as YAML reads them where a field takes values of any type."""
    import yaml

    inner = get_args(kind)
    if isinstance(value, list):
        return [_filled(inner[0] if inner else Any, item) for item in value]
    if isinstance(value, dict):
        return {key: _filled(inner[1] if len(inner) == 2 else Any, item) for key, item in value.items()}
    if isinstance(value, str) and "${" in value:
        return _from_environment(value)
    if isinstance(value, Word):
        return yaml.safe_load(value) if kind is Any and ":" not in value else str(value)
    return value


def _word_value(kind: Any, text: str) -> Any:
    """A word of the command line for `kind`: one that is no `[...]` is a list's only item."""
    import yaml

    if kind is Any:
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            return text
    if get_origin(kind) is list and not text.lstrip().startswith("["):
        return [text] if text else []
    return text


def _from_environment(text: str) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    variables = _FROM_ENV.findall(text)
    if len(variables) != len(_OPENING.findall(text)):
        raise ValueError(
            "only ${oc.env:NAME} and ${oc.env:NAME,DEFAULT} are filled in; "
            "write \\${NAME} for a variable of the job's own shell"
        )
    for variable in filter(looks_secret, variables):
        cause = f"{variable} holds a secret, and this value is written to scripts and records"
        remedy = f"List it instead: secrets: [{variable}]. Its value then travels apart from everything else."
        raise JobError("secret_in_env", cause, remedy)
    try:
        return OmegaConf.create({"value": text})["value"]
    except OmegaConfBaseException as error:
        unset = [variable for variable in variables if variable not in os.environ]
        if unset and "not found" in str(error):
            cause = f"the variable {unset[-1]} is not set on this machine"
            remedy = f"Set it, or give a default: ${{oc.env:{unset[-1]},VALUE}}."
            raise JobError("unset_variable", cause, remedy) from error
        raise ValueError(f"does not parse: {str(error).splitlines()[0]}") from error
