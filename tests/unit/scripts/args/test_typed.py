"""Text that PyYAML cannot make values of."""

from typing import Any, Literal

import pytest
import yaml

from scripts.args.typed import convert, parse_yaml

ODD = [
    "2024-13-45",
    "0b_",
    "0x_",
    "9" * 5000,
    "!!int x",
    "!!float x",
    "!!bool x",
    "!!timestamp x",
    "\ud800",
    "[" * 5000,
]


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_it_fails_in_one_way(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        parse_yaml(text)
    with pytest.raises(ValueError, match="does not parse"):
        convert(dict[str, Any], text, strict=False)


@pytest.mark.parametrize("kind", [Literal["selective", "full"] | None, list[Literal["selective", "full"]] | None])
def test_the_choices_of_a_type_are_words(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"Did you mean full\?  Choices: full, null, selective\.") as caught:
        convert(kind, "[ful]" if "list" in str(kind) else "ful", strict=False)
    assert "typing" not in str(caught.value)


@pytest.mark.parametrize("text", ["a:\n  b: [1,\n", 'a: "b\n', "a: {b: 1\n"])
def test_no_line_is_named_that_a_document_has_not(text: str) -> None:
    with pytest.raises(yaml.YAMLError, match=rf"at its end, after line {len(text.splitlines())}: "):
        parse_yaml(text)
