"""Named places to run: YAML in configs/executors, typed, overlaid by `executor.KEY=VALUE`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from executors.local import LocalProfile
from scripts.problems import Problem, nearest
from scripts.typed import convert

_SHIPPED = Path(__file__).resolve().parent.parent / "configs" / "executors"
_KINDS: dict[str, type[LocalProfile]] = {"local": LocalProfile}


def profile_names() -> list[str]:
    """The profiles that ship."""
    return sorted(file.stem for file in _SHIPPED.glob("*.yaml"))


def load_profile(name: str, overrides: Mapping[str, str]) -> tuple[LocalProfile, list[Problem]]:
    """The profile `name` with the `overrides` (text) that fit, and a Problem for each that does not.

    An unknown name gives the defaults and a Problem, so that other checks can go on.
    """
    import yaml

    if name not in profile_names():
        cause = "there is no such executor"
        remedy = nearest(name, profile_names())
        return LocalProfile(), [
            Problem(name="unknown_executor", key="executor", value=name, cause=cause, remedy=remedy)
        ]
    values: dict[str, Any] = yaml.safe_load((_SHIPPED / f"{name}.yaml").read_text(encoding="utf-8"))
    hints = get_type_hints(_KINDS[values["kind"]])
    problems = []
    for key, text in overrides.items():
        if key not in hints or key == "kind":
            remedy = nearest(key, [hint for hint in hints if hint != "kind"])
            cause = f"{name} has no such key"
            problems.append(Problem(name="unknown_key", key=f"executor.{key}", value=None, cause=cause, remedy=remedy))
            continue
        try:
            values[key] = convert(hints[key], text, strict=False)
        except ValueError as error:
            problems.append(Problem(name="wrong_value", key=f"executor.{key}", value=text, cause=str(error)))
    return profile_from_record(values), problems


def profile_from_record(values: Mapping[str, Any]) -> LocalProfile:
    """The profile that a run recorded in run.json."""
    cls = _KINDS[values["kind"]]
    return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls)})
