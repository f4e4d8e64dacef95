"""This machine as a place."""

from pathlib import Path

from executors.base import AnyJob, SchedulerJob
from executors.local import LocalPlace, LocalProfile


def test_a_job_that_never_began_shows_what_its_launcher_printed(tmp_path: Path) -> None:
    """An import that fails, say: the run directory has no log of its own then."""
    place = LocalPlace(LocalProfile())
    job = SchedulerJob(run_id="probe_1-a", id="h", run_dir=str(tmp_path / "run"), folder=str(tmp_path / "probe"))
    assert place.log(job, "rank0.log", 0) == b""
    launcher = tmp_path / "probe" / "nemo_run" / "probe-x" / "probe" / "0" / "combined.log"
    launcher.parent.mkdir(parents=True)
    launcher.write_bytes(b"ImportError: cannot import name 'CONFIGS'\n")
    assert place.log(job, "rank0.log", 13) == b"cannot import name 'CONFIGS'\n"
    own = tmp_path / "run" / "logs" / "rank0.log"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"rank 0 began\n")
    assert place.log(job, "rank0.log", 0) == b"rank 0 began\n"


def test_folders_of_common_names_where_somebody_works_are_not_taken_for_ours(tmp_path: Path) -> None:
    job = AnyJob(id="probe_1-a", recipe="probe", run_dir=tmp_path)
    assert LocalPlace(LocalProfile()).executor(job).env_vars["PYTHONSAFEPATH"] == "1"
