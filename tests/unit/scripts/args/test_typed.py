"""Text that PyYAML cannot make values of."""

from typing import Any

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
