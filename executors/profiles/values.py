"""The values of a profile: variables of the submitting machine put in, secrets kept out, types checked."""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, get_args, get_origin

from executors.base import SECRETS_VARIABLE, Profile, keys_of
from executors.profiles.files import Word
from scripts.args.typed import convert
from scripts.run.problems import Problem, nearest

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPENING = re.compile(r"(?<!\\)\$\{")
_FROM_ENV = re.compile(r"(?<!\\)\$\{\s*oc\.env\s*:\s*([A-Za-z_][A-Za-z0-9_]*)\s*[,}]")
#: Not TOKENIZERS_PARALLELISM or MAX_TOKENS, not HF_TOKEN_PATH.
_SECRET = re.compile(r"(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIALS?)(?![A-Za-z])", re.IGNORECASE)
_SWITCHES = frozenset({"", "0", "1", "true", "false", "yes", "no", "on", "off"})
#: Set by the executor for each job.
_RESERVED = frozenset({"NEMO_RUN_DIR", "PYTHONSAFEPATH", SECRETS_VARIABLE})
Where = Callable[[str], str]


def looks_secret(name: str) -> bool:
    """Whether a variable of this name holds a secret, as far as names tell."""
    return _SECRET.search(name) is not None and not name.upper().endswith(("_PATH", "_FILE", "_DIR"))


def base_of(kind: Any) -> Any:
    """`T` of `T | None`; any other type as it is."""
    inner = [arg for arg in get_args(kind) if arg is not type(None)]
    return inner[0] if len(inner) == 1 and type(None) in get_args(kind) else kind


def is_mapping(kind: Any) -> bool:
    return get_origin(base_of(kind)) is dict


@dataclasses.dataclass
class Values:
    """Takes the values of one profile, key by key; keeps what fits in `fit` and says what does not in `problems`."""

    cls: type[Profile]
    name: str
    secrets: frozenset[str]
    fit: dict[str, Any] = dataclasses.field(default_factory=dict)
    problems: list[Problem] = dataclasses.field(default_factory=list)
    hints: dict[str, Any] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.hints = keys_of(self.cls)

    def take_file(self, values: Mapping[str, Any], where: Where) -> None:
        """Values of profile files, as text; `where` says which file and line a key comes from."""
        for key, value in values.items():
            if key not in self.hints:
                cause = f"{where(key)}: a {self.cls.__name__.removesuffix('Profile').lower()} profile has no such key"
                remedy = nearest(key, [*self.hints, "extends"])
                self._wrong(f"{self.name}.{key}", None, cause, remedy, name="unknown_key")
                continue
            kind = self.hints[key]
            if value is None and get_origin(kind) in (dict, list):
                continue  # `env:` with nothing but comments below it
            if isinstance(value, dict) and is_mapping(kind):
                taken = {}
                for inner, item in value.items():
                    path = f"{key}.{inner}"
                    done, result = self._one(f"{self.name}.{path}", get_args(base_of(kind))[1], item, where(path))
                    if done and self._may_be_set(key, inner, result, f"{self.name}.{path}", f"{where(path)}: "):
                        taken[inner] = result
                self.fit[key] = taken
                continue
            done, result = self._one(f"{self.name}.{key}", kind, value, where(key))
            if done and self._names_variables(key, result, f"{where(key)}: "):
                self.fit[key] = result

    def take_words(self, words: Mapping[str, str]) -> None:
        """Values of the command line: text for `KEY` or, where a field is a mapping, for `KEY.NAME`."""
        hints = self.hints
        if "secrets" in words:  # names listed there may not be set by another word
            self.secrets |= {*re.findall(_VARIABLE, words["secrets"])}
        for key, text in words.items():
            field, _, inner = key.partition(".")
            if field not in hints or field == "kind" or (inner and not is_mapping(hints[field])):
                remedy = nearest(key, [hint for hint in hints if hint != "kind"])
                cause = f"{self.name} has no such key"
                self._wrong(f"executor.{key}", None, cause, remedy, name="unknown_key")
                continue
            kind = get_args(base_of(hints[field]))[1] if inner else hints[field]
            try:
                value = convert(kind, _word_value(kind, text), strict=False)
            except ValueError as error:
                self._wrong(f"executor.{key}", _shown(key, text), str(error))
                continue
            if inner and self._may_be_set(field, inner, value, f"executor.{key}"):
                self.fit[field] = {**(self.fit.get(field) or {}), inner: value}
            elif not inner and is_mapping(hints[field]):
                items = (value or {}).items()
                self.fit[field] = {k: v for k, v in items if self._may_be_set(field, k, v, f"executor.{field}.{k}")}
            elif not inner and self._names_variables(field, value, f"executor.{key}"):
                self.fit[field] = value

    def _one(self, key: str, kind: Any, value: Any, where: str) -> tuple[bool, Any]:
        """Whether one value of a file fits, and what it is then."""
        expected = get_origin(base_of(kind))
        try:
            resolved, from_env = _resolve(value)
            if isinstance(resolved, str) and expected in (dict, list) and not from_env:
                raise ValueError(f"is one word; a {'list' if expected is list else 'mapping'} is expected")
            if resolved is None and from_env and type(None) not in get_args(kind):
                raise ValueError("is null")
            return True, convert(kind, _settled(base_of(kind), resolved), strict=False)
        except _SecretReadError as error:
            remedy = f"List it instead: secrets: [{error.variable}]. Its value then travels apart from everything else."
            cause = f"{where}: {error.variable} holds a secret, and this value is written to scripts and records"
            self._wrong(key, None, cause, remedy, name="secret_in_env")
        except _UnsetError as error:
            cause = f"{where}: the variable {error.variable} is not set on this machine"
            remedy = f"Set it, or give a default: ${{oc.env:{error.variable},VALUE}}."
            self._wrong(key, None, cause, remedy, name="unset_variable")
        except ValueError as error:
            self._wrong(key, _shown(key.partition(".")[2], value), f"{where}: {error}")
        return False, None

    def _may_be_set(self, field: str, name: str, value: Any, key: str, where: str = "") -> bool:
        """Whether `name: value` may stand in a mapping; `env` takes variables, and none that is a secret."""
        if field != "env":
            return True
        if not _VARIABLE.fullmatch(name):
            cause = f"{where}a variable's name is letters, digits and `_`, and begins with no digit"
            self._wrong(key, None, cause)
        elif name in _RESERVED:
            self._wrong(key, None, f"{where}{name} is set for each job by the executor", "Remove it.")
        elif "\0" in str(value):
            self._wrong(key, None, f"{where}no variable can hold a NUL character")
        elif name in self.secrets or (looks_secret(name) and str(value).lower() not in _SWITCHES):
            cause = f"{where}{name} looks like a secret, and `env` is written to scripts and records"
            remedy = f"List its name instead: secrets: [{name}], and set it where you submit."
            self._wrong(key, None, cause, remedy, name="secret_in_env")
        else:
            return True
        return False

    def _names_variables(self, field: str, value: Any, where: str) -> bool:
        """Whether `secrets` holds names; what it holds instead might be the secret, so it is not shown."""
        if field != "secrets" or all(_VARIABLE.fullmatch(name) for name in value or ()):
            return True
        cause = f"{where}names of variables are expected"
        self._wrong(
            f"{self.name}.secrets", None, cause, "Write secrets: [HF_TOKEN], and set HF_TOKEN where you submit."
        )
        return False

    def _wrong(self, key: str, value: Any, cause: str, remedy: str = "", *, name: str = "wrong_value") -> None:
        self.problems.append(Problem(name=name, key=key, value=value, cause=cause, remedy=remedy))


class _UnsetError(Exception):
    def __init__(self, variable: str) -> None:
        super().__init__(variable)
        self.variable = variable


class _SecretReadError(_UnsetError):
    pass


def _resolve(value: Any) -> tuple[Any, bool]:
    """`value` with `${oc.env:...}` in any of its texts put in, and whether there was any."""
    if isinstance(value, list):
        items = [_resolve(item) for item in value]
        return [item for item, _ in items], any(found for _, found in items)
    if isinstance(value, dict):
        pairs = {key: _resolve(item) for key, item in value.items()}
        return {key: item for key, (item, _) in pairs.items()}, any(found for _, found in pairs.values())
    if not isinstance(value, str) or "${" not in value:
        return value, False
    variables = _FROM_ENV.findall(value)
    if len(variables) != len(_OPENING.findall(value)):
        raise ValueError(
            "only ${oc.env:NAME} and ${oc.env:NAME,DEFAULT} are filled in; "
            "write \\${NAME} for a variable of the job's own shell"
        )
    for variable in variables:
        if looks_secret(variable):
            raise _SecretReadError(variable)
    return _from_environment(value, variables), bool(variables)


def _settled(kind: Any, value: Any) -> Any:
    """`value` with plain text for words, or what YAML makes of them where a field takes values of any type."""
    import yaml

    inner = get_args(kind)
    if isinstance(value, list):
        return [_settled(inner[0] if inner else Any, item) for item in value]
    if isinstance(value, dict):
        return {key: _settled(inner[1] if len(inner) == 2 else Any, item) for key, item in value.items()}
    if not isinstance(value, Word):
        return value
    return yaml.safe_load(value) if kind is Any and ":" not in value else str(value)


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


def _from_environment(text: str, variables: list[str]) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.create({"value": text})["value"]
    except OmegaConfBaseException as error:
        unset = [variable for variable in variables if variable not in os.environ]
        if unset and "not found" in str(error):
            raise _UnsetError(unset[-1]) from error
        raise ValueError(f"does not parse: {str(error).splitlines()[0]}") from error


def _shown(key: str, value: Any) -> Any:
    """What a message shows of a value that does not fit: none of a mapping, a list, a variable or a secret."""
    return value[:200] if isinstance(value, str) and not key.startswith(("env", "secrets")) else None
