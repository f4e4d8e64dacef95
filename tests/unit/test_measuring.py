"""What is measured of the code that tests run, and what is not."""

import subprocess
import sys
from pathlib import Path

from coverage import CoverageData

from tests.unmeasured import sweep

ROOT = Path(__file__).resolve().parents[2]


def test_packages_of_others_are_not_traced_while_they_are_imported(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text("import sys\nprint(sys.gettrace())\nimport scripts.formats\n")
    main = tmp_path / "main.py"
    main.write_text(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport theirs, scripts.run.files\n")
    measured = [sys.executable, "-m", "coverage", "run", f"--data-file={tmp_path}/data", str(main)]
    done = subprocess.run(measured, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"
    (file,) = tmp_path.glob("data*")
    data = CoverageData(str(file))
    data.read()
    for name in ("formats.py", "run/files.py"):  # imported by theirs, and after it
        assert data.lines(str(ROOT / "scripts" / name)), name


def test_data_that_is_not_whole_is_swept_away(tmp_path: Path) -> None:
    whole = tmp_path / ".coverage.whole"
    data = CoverageData(str(whole))
    data.add_arcs({f"{tmp_path}/{name}.py": [(line, line + 1) for line in range(400)] for name in range(40)})
    data.write()
    content = whole.read_bytes()
    for at in range(0, len(content), 4096):
        (tmp_path / f".coverage.gap{at}").write_bytes(content[:at] + bytes(4096) + content[at + 4096 :])
        (tmp_path / f".coverage.begun{at}").write_bytes(content[:at])
    sweep(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [whole.name]
