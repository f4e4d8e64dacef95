"""What an installed copy holds."""

import tomllib
from pathlib import Path

from setuptools import find_packages

ROOT = Path(__file__).resolve().parents[2]
TOPS = ("recipes", "executors", "scripts", "configs")


def test_every_package_is_found() -> None:
    """A folder of modules without an `__init__.py` would be left out, and so would one whose top is not named."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = [file.parent for top in TOPS for file in (ROOT / top).rglob("*.py")]
    wanted = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert wanted and wanted == set(find_packages(str(ROOT), include=settings["find"]["include"]))


def test_every_data_file_is_listed() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    listed = {file for package, globs in data.items() for one in globs for file in _folder(package).glob(one)}
    files = [file for top in TOPS for file in (ROOT / top).rglob("*") if file.is_file()]
    found = {file for file in files if file.suffix not in (".py", ".pyc", ".md")}
    assert found and found <= listed, sorted(map(str, found - listed))


def _folder(package: str) -> Path:
    return ROOT / package.replace(".", "/")
