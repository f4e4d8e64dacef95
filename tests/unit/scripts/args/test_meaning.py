"""What a number may be, and how it is said."""

import math
from typing import Any

import pytest

from recipes.catalogue import RECIPES
from scripts.args.meaning import Meaning, meanings


@pytest.mark.parametrize(
    ("bounds", "right", "wrong", "said"),
    [
        ({"least": 1}, [1, 2.5, 10**9], [0, -1, math.nan], "at least 1 is needed"),
        ({"above": 0}, [0.1, 5], [0, -1, -math.inf, math.nan], "a number above 0 is expected"),
        ({"least": 0, "below": 1}, [0, 0.99], [1, -0.1, math.nan], "it is a part: from 0 to below 1"),
        ({"least": 1, "most": 65535}, [1, 65535], [0, 65536, math.inf], "it is a number from 1 to 65535"),
        ({"above": 0, "most": 1}, [0.1, 1], [0, 2, math.nan], "it is a number above 0, and at most 1"),
        ({}, [0, 5], [-1, math.nan], "it counts or measures something: at least 0 is needed"),
    ],
)
def test_bounds_are_kept_and_said(bounds: dict[str, Any], right: list[float], wrong: list[float], said: str) -> None:
    meaning = Meaning(doc="a number", **bounds)
    assert [meaning.violation(value) for value in right] == [""] * len(right)
    assert [meaning.violation(value) for value in wrong] == [said] * len(wrong)
    assert [meaning.violation(value) for value in (None, True, "0", [0])] == [""] * 4


def test_what_is_out_of_bounds_can_be_said_of_every_argument() -> None:
    """Every combination of bounds that is declared somewhere."""
    told = 0
    for args in {recipe.family.args for recipe in RECIPES.values()}:
        for field, meaning in meanings(args):
            told += sum(bool(meaning.violation(value)) for value in (-1e99, 1e99, math.nan))
            assert meaning.violation(math.nan), field.name
    assert told > 100
