"""Recipes in NeMo-Run's own YAML and command line: what it must know to read back what it wrote.

`YamlSerializer`, `--to-yaml` and `--yaml` turn a Partial into words `key=value` and read those by the types of the
fields. Two things go wrong on the way, for every recipe: `${run_tag}` and `${oc.env:...}`, which are resolved on the
node, are resolved at once; and there is no parser for `X | None`. NeMo-Run takes parsers (`register_parser`); for the
first there is no place to say it, so its function that makes the words is wrapped.
"""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from types import UnionType
from typing import Any, get_args

from scripts.args.typed import convert

_CLASSES = "scripts.args."


@cache
def adapt() -> None:
    """Teach NeMo-Run to read recipes. Other people's configurations are read as before."""
    from nemo_run.cli import lazy
    from nemo_run.cli.cli_parser import ParseError, parse_value, type_parser
    from omegaconf import OmegaConf

    in_words = lazy.dictconfig_to_dot_list

    def dot_list(config: Any, prefix: str = "", *rest: Any, **facts: Any) -> list[tuple[str, str, Any]]:
        document = {} if prefix else OmegaConf.to_container(config, resolve=False)
        args = document.get("args")
        if isinstance(args, dict) and _CLASSES in str(args.get("_target_", args.get("_factory_"))):
            parse_value.cache_clear()  # it keeps the Config that a word became, and would hand it out again, filled
            return [(key, "=", text) for key, text in _words(document, written="_target_" in args)]
        return list(in_words(config, prefix, *rest, **facts))

    def optional(text: str, kind: Any) -> Any:
        try:
            return _optional(text, kind)
        except ValueError as error:
            raise ParseError(text, kind, str(error)) from error
        except RuntimeError:  # a union of classes that are no values
            return type_parser.parse_union(text, kind)

    lazy.dictconfig_to_dot_list = dot_list
    type_parser.register_parser(UnionType)(optional)


def _words(section: Mapping[str, Any], prefix: str = "", *, written: bool) -> Iterator[tuple[str, str]]:
    """Keys and texts of a document; `written` as YAML has it, with types, and not yet as the words of a first reading.

    Texts are in quotes: NeMo-Run takes `quantize_fp8` without them for the name of a factory, and calls it.
    """
    for name, value in section.items():
        key = f"{prefix}{name}"
        if name == "_partial_" or (prefix and name in ("_target_", "_factory_")):
            continue
        if isinstance(value, dict) and (target := value.get("_target_", value.get("_factory_"))):
            yield key, target if target.startswith("Config[") else f"Config[{target}]"
            yield from _words(value, f"{key}.", written=written)
        elif written and isinstance(value, str) and name != "_target_":
            yield key, f"'{value}'"
        else:
            yield key, str(value)


def _optional(text: str, kind: Any) -> Any:
    """A word as `X | None`; a text in quotes is that text, whatever it looks like."""
    if len(text) > 1 and text[0] == text[-1] == "'" and str in get_args(kind):
        return text[1:-1]
    try:
        return convert(kind, ast.literal_eval(text), strict=True)
    except (ValueError, SyntaxError):
        return convert(kind, text, strict=False)
