"""Kinds of executor: nothing above executors/ asks which kind it holds."""

import ast
from pathlib import Path

import pytest

from configs import CONFIGS

ROOT = CONFIGS.parent
ABOVE = sorted((ROOT / "recipes").rglob("*.py"))


@pytest.mark.parametrize("file", ABOVE, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_above_knows_a_kind(file: Path) -> None:
    asked = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr == "kind":
            of = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            asked += [ast.unparse(node)] if of in ("profile", "place", "executor") else []
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("executors"):
            module = str(node.module).split(".")
            asked += [f"import of {node.module}"] if len(module) > 1 and module[1] in KINDS else []
            asked += [one.name for one in node.names if one.name.removesuffix("Profile").lower() in KINDS]
    assert asked == []


KINDS = ("local", "slurm", "docker", "lepton")
