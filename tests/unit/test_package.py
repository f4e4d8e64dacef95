"""What an installed copy holds."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_package_is_listed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = [file.parent for top in ("recipes", "executors", "scripts") for file in (ROOT / top).rglob("*.py")]
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert found and found | {"configs"} == set(settings["packages"])
