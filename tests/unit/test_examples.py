"""What the README of the tests shows as a test is one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def test_the_readme_s_example_passes(nemo: Callable[..., Any], home: Path) -> None:
    (example,) = (ROOT / "tests" / "README.md").read_text(encoding="utf-8").split("```python\n")[1:]
    names: dict[str, Any] = {}
    exec(example.partition("```")[0], names)
    names["test_a_dry_run_names_the_algorithm"](nemo, home)
