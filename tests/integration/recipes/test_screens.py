"""What commands show on a terminal of 80 columns, against golden files."""

import pytest

from tests.golden.cases import COMMAND
from tests.golden.screens import COMMANDS, comparable, differences
from tests.golden.screens import FOLDER as SCREENS

pytestmark = pytest.mark.integration


def test_screens_are_as_the_golden_files_have_them() -> None:
    found = differences()
    assert not found, f"When that is what you meant, run: {COMMAND}\n" + "\n".join(found)


def test_every_command_has_a_golden_page_of_help() -> None:
    """By the page of the program itself."""
    listed = (SCREENS / "help.txt").read_text(encoding="utf-8").partition("Commands")[2]
    names = {line.split()[1] for line in listed.splitlines() if line.startswith("│ ") and line[2] != " "}
    assert names == {name for name in COMMANDS if " " not in name}


def test_other_words_on_a_page_of_help_are_a_difference() -> None:
    page = (SCREENS / "help_ps.txt").read_text(encoding="utf-8")
    assert comparable("help_ps.txt", page) == comparable("help_ps.txt", page.replace("╭", " ").replace("\n", "  "))
    assert comparable("help_ps.txt", page) != comparable("help_ps.txt", page.replace("--watch", "--wait"))
    assert comparable("ps.txt", page) != comparable("ps.txt", page + " ")
