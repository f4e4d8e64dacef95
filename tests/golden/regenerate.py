"""Write the golden files anew: `python -m tests.golden.regenerate`. Then read `git diff tests/golden`."""

from tests.golden.cases import FOLDER, produced


def main() -> None:
    files = dict(produced())  # all of them before one is touched
    for path in FOLDER.iterdir():
        if path.is_file() and path.suffix not in (".py", ".md") and path.name not in files:
            path.unlink()
            print(f"removed    {path.name}")
    for name, text in files.items():
        path = FOLDER / name
        same = path.is_file() and path.read_text(encoding="utf-8") == text
        path.write_text(text, encoding="utf-8")
        print(f"{'unchanged' if same else 'written':10} {name}")


if __name__ == "__main__":
    main()
