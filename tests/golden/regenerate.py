"""Write the golden files anew: `python -m tests.golden.regenerate`. Then read `git diff tests/golden`."""

from pathlib import Path

from tests.golden import cases, screens


def main() -> None:
    for folder, produced in ((cases.FOLDER, cases.produced), (screens.FOLDER, screens.screens)):
        folder.mkdir(exist_ok=True)
        _write(folder, dict(produced()))  # all of them before one is touched


def _write(folder: Path, files: dict[str, str]) -> None:
    for path in folder.iterdir():
        if path.is_file() and path.suffix not in (".py", ".md") and path.name not in files:
            path.unlink()
            print(f"removed    {path.name}")
    for name, text in files.items():
        path = folder / name
        same = path.is_file() and path.read_text(encoding="utf-8") == text
        path.write_text(text, encoding="utf-8")
        print(f"{'unchanged' if same else 'written':10} {name}")


if __name__ == "__main__":
    main()
