"""What is measured of the code that tests run, and what is not."""

import os
import subprocess
import sys
from pathlib import Path

from coverage import CoverageData

from tests.measuring import sweep

ROOT = Path(__file__).resolve().parents[2]
#: Of a process that is measured by nobody yet.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


def test_a_process_that_another_starts_is_measured_without_a_tracer(tmp_path: Path) -> None:
    """A tracer is called for each function of torch too, and takes as long again as the test."""
    main = tmp_path / "main.py"
    main.write_text("import sys\nimport scripts.run.files\nprint(sys.gettrace())\n")
    code = f"import subprocess, sys; subprocess.run([sys.executable, {str(main)!r}], check=True)"
    (tmp_path / "first.py").write_text(code)
    measured = [sys.executable, "-m", "coverage", "run", f"--data-file={tmp_path}/data", str(tmp_path / "first.py")]
    done = subprocess.run(measured, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout == "None\n" or sys.version_info < (3, 12)
    assert any(_lines(file) for file in tmp_path.glob("data*"))


def _lines(file: Path) -> bool:
    data = CoverageData(str(file))
    data.read()
    return bool(data.lines(str(ROOT / "scripts" / "run" / "files.py")))


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
