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


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (
            list[str],
            "[--foo, 3, 1e3, 010, yes, 2024-01-02, '5']",
            ["--foo", "3", "1e3", "010", "yes", "2024-01-02", "5"],
        ),
        (dict[str, str], "{A: 1, 2: x, B: 0x10}", {"A": "1", "2": "x", "B": "0x10"}),
        (list[str] | None, "[1, 2]", ["1", "2"]),
        (dict[str, Any] | None, "{a: 1}", {"a": 1}),
        (list[int], "[1]", [1]),
    ],
)
def test_items_that_are_texts_stay_as_they_are_written(kind: Any, text: str, value: Any) -> None:
    assert convert(kind, text, strict=False) == value


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        (list[str], ["--foo", 3], r"^\[1\] is 3, and input should be a valid string  Write it in quotes: \"3\"\.$"),
        (list[str] | None, ["--foo", None], r"^\[1\] is null, and input should be a valid string$"),
        (
            dict[str, str],
            {"A": "1", "B": True},
            r'^B is true, and input should be a valid string  Write it in quotes: "true"',
        ),
        (dict[str, list[int]], {"A": [1, "x"]}, r"^A\[1\]: input should be a valid integer"),
        (list[str], 3, r"valid list  Write a list"),
    ],
)
def test_the_item_that_does_not_fit_is_named(kind: Any, value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        convert(kind, value, strict=True)
