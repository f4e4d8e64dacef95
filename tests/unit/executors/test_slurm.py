"""Slurm without a cluster: values on their way into the script, and Slurm's words on their way back."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executors import shell as shell_module
from executors.base import JobState, SchedulerJob, UnreachableError
from executors.kinds import executor_of
from executors.shell import Shell
from executors.slurm.jobs import UNKNOWN_ID, expand, job_states
from executors.slurm.place import SlurmPlace, SlurmProfile
from executors.slurm.script import container_image, pyxis_name, quote, setup_lines, squash_path
from scripts.run.problems import JobError, ProblemsError
from tests.jobs import PlainJob

LAUNCH = PlainJob(id="probe_1-abcd", recipe="probe", run_dir=Path("/shared/runs/probe_1-abcd"))
JOB = SchedulerJob(
    run_id="probe_1-abcd", id="7", run_dir="/shared/runs/x", folder="/shared/experiments/probe/probe_1-abcd/probe"
)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_a_quoted_value_is_one_word_that_nobody_changes(text: str) -> None:
    for value in (text, f"{text}/nemo_run", f"/nemo_run/{text}\r"):
        word = quote(value)
        assert "/nemo_run" not in word
        assert "\r" not in word
        done = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True)
        assert done.stdout.decode() == value


@pytest.mark.parametrize(
    ("image", "name", "file"),
    [
        ("nvcr.io/nvidia/nemo:25.09", "nvcr.io#nvidia/nemo:25.09", "nvcr.io+nvidia+nemo+25.09.sqsh"),
        ("docker://nvcr.io/nvidia/nemo", "nvcr.io#nvidia/nemo", "nvcr.io+nvidia+nemo.sqsh"),
        ("nvcr.io#nvidia/nemo:25.09", "nvcr.io#nvidia/nemo:25.09", "nvcr.io+nvidia+nemo+25.09.sqsh"),
        ("localhost:5000/a/b:c", "localhost:5000#a/b:c", "localhost+5000+a+b+c.sqsh"),
        ("ubuntu:22.04", "ubuntu:22.04", "ubuntu+22.04.sqsh"),
        ("nvidia/cuda", "nvidia/cuda", "nvidia+cuda.sqsh"),
    ],
)
def test_an_image_is_spelled_as_pyxis_spells_it(image: str, name: str, file: str) -> None:
    assert pyxis_name(image) == name
    assert container_image(SlurmProfile(image=image)) == name
    cached = SlurmProfile(image=image, squash_dir="/sq")
    assert container_image(cached) == squash_path(cached) == f"/sq/{file}"


@pytest.mark.parametrize("file", ["/images/nemo.sqsh", "./nemo.sqsh", "/images/rootfs"])
def test_a_file_is_taken_as_it_is(file: str) -> None:
    profile = SlurmProfile(image=file, squash_dir="/sq")
    assert container_image(profile) == file
    assert squash_path(profile) is None
    assert "enroot" not in setup_lines(profile, LAUNCH)


def test_the_lines_come_in_an_order_that_lets_each_hold() -> None:
    profile = SlurmProfile(env={"A": "1", "PYTHONPATH": "/mine"}, setup=["module load x"], requeue=False)
    text = setup_lines(profile, replace(LAUNCH, secrets="/s/x", ranked=True))
    order = [
        "unset PYTHONPATH",
        "head_node_ip=",
        "Requeue=0",
        "export A=1",
        "module load x",
        "export PYTHONPATH=/nemo_run",
    ]
    at = [text.index(word) for word in [*order, "export NEMO_RUN_DIR=", "export MODELOPT_RECIPES_SECRETS=/s/x"]]
    assert at == sorted(at)
    assert "${PYTHONPATH:+:$PYTHONPATH}" in text
    done = subprocess.run(
        ["bash", "-c", setup_lines(replace(profile, requeue=True, setup=[]), LAUNCH) + "\nprintf %s $PYTHONPATH"],
        capture_output=True,
        check=True,
        env={"PATH": os.defpath, "PYTHONPATH": "/of/the/submitter"},
    )
    assert done.stdout.decode() == "/nemo_run/code/.recipes:/nemo_run/code:/mine"


def test_the_container_gets_the_folders_that_the_job_writes_to() -> None:
    place = SlurmPlace(profile=SlurmProfile(image="x", mounts=["/data:/data:ro"], job_dir="/j"))
    path = place.secrets_path("probe_1-abcd")
    executor = place.executor(replace(LAUNCH, secrets=path))
    assert path == "/j/.secrets/probe_1-abcd/secrets.json"
    assert executor.container_mounts == [
        "/shared/runs:/shared/runs:ro",
        "/data:/data:ro",
        "/shared/runs/probe_1-abcd:/shared/runs/probe_1-abcd",
        "/j/.secrets/probe_1-abcd:/j/.secrets/probe_1-abcd",
    ]
    whole = place.executor(replace(LAUNCH, run_dir=Path("/shared/runs"), array=3))
    assert whole.container_mounts == ["/data:/data:ro", "/shared/runs:/shared/runs"]
    assert whole.array == "0-2"


@pytest.mark.parametrize(
    ("mounts", "added"),
    [
        (["/shared:/shared"], False),
        (["/shared/runs/:/shared/runs/:ro"], False),
        (["/:/"], False),
        (["/shared:/data"], True),
        (["/other:/shared/runs"], True),
        (["/shared/runs/kept:/shared/runs/kept"], True),
        (["/share:/share"], True),
    ],
)
def test_other_runs_are_there_to_be_read_unless_the_profile_mounts_them(mounts: list[str], added: bool) -> None:
    executor = SlurmPlace(profile=SlurmProfile(image="x", mounts=mounts)).executor(LAUNCH)
    own = [f"{LAUNCH.run_dir}:{LAUNCH.run_dir}"]
    assert executor.container_mounts == [*(["/shared/runs:/shared/runs:ro"] if added else []), *mounts, *own]


def test_jobs_that_share_a_node_meet_at_different_ports() -> None:
    executor = SlurmPlace(profile=SlurmProfile()).executor(replace(LAUNCH, nodes=2, processes=2, ranked=True))
    port = executor.launcher.rdzv_port
    shown = [
        subprocess.run(["bash", "-c", f"echo host:{port}"], capture_output=True, check=True, env={"SLURM_JOB_ID": job})
        for job in ("41", "42", "123456")
    ]
    assert [done.stdout for done in shown] == [b"host:20041\n", b"host:20042\n", b"host:23456\n"]


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"host": "h"}, "job_dir"),
        ({"host": "-oProxyCommand=x", "job_dir": "/j"}, "host"),
        ({"user": "me"}, "user"),
        ({"job_dir": "relative"}, "job_dir"),
        ({"job_dir": "/with space"}, "job_dir"),
        ({"job_dir": "/data/nemo_run/x"}, "job_dir"),
        ({"job_dir": "/a:b", "image": "x"}, "job_dir"),
        ({"host": "h", "job_dir": "~/x"}, "job_dir"),
        ({"output_root": "/a;b"}, "output_root"),
        ({"time": "tomorrow"}, "time"),
        ({"mem": "lots"}, "mem"),
        ({"mem": "64 G"}, "mem"),
        ({"nodes": 0}, "nodes"),
        ({"gpus": -1}, "gpus"),
        ({"retries": 1, "requeue": False}, "retries"),
        ({"comment": "two\nlines"}, "comment"),
        ({"comment": "/srv/nemo_run"}, "comment"),
        ({"additional": {"partition": "x"}}, "additional.partition"),
        ({"additional": {"array": "0-3"}}, "additional.array"),
        ({"additional": {"ntasks_per_node": "3"}}, "additional.ntasks_per_node"),
        ({"additional": {"--hold": ""}}, "additional.--hold"),
        ({"additional": {"licenses": "a\nb"}}, "additional.licenses"),
        ({"srun_args": ["--mpi", "pmix"]}, "srun_args"),
        ({"mounts": ["/a:/b"]}, "mounts"),
        ({"squash_dir": "/s"}, "squash_dir"),
        ({"image": "x", "mounts": ["a:/b"]}, "mounts"),
        ({"image": "x", "mounts": ["/a,b:/b"]}, "mounts"),
        ({"image": "x", "squash_dir": "s"}, "squash_dir"),
        ({"image": "two words"}, "image"),
        ({"workdir": "here"}, "workdir"),
        ({"env": {"A B": "x"}}, "env.A B"),
        ({"env": {"NEMO_RUN_DIR": "x"}}, "env.NEMO_RUN_DIR"),
        ({"env": {"A": "\0"}}, "env.A"),
        ({"secrets": ["hf_abc def"]}, "secrets"),
    ],
)
def test_a_wrong_value_is_a_problem_that_names_it(values: dict[str, Any], key: str) -> None:
    problems = SlurmPlace(profile=SlurmProfile(**values)).problems()
    assert [problem.key for problem in problems] == [f"executor.{key}"]
    assert problems[0].cause
    assert "hf_abc" not in str(problems[0])


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"time": "4:00:00", "mem": "0", "gres": "gpu:a100:4", "additional": {"mail-type": "END", "hold": ""}},
        {"host": "login", "user": "me@site", "job_dir": "/lustre/a-b/c.d", "port": 22, "image": "x"},
        {"image": "x", "mounts": ["/a b:/c:ro"], "workdir": "/w", "comment": "/srv/nemo_run $x"},
        {"time": "1-12", "mem": "64g", "nodes": 4, "retries": 3, "srun_args": ["--mpi=pmix"]},
    ],
)
def test_right_values_are_no_problem(values: dict[str, Any]) -> None:
    assert SlurmPlace(profile=SlurmProfile(**values)).problems() == []


def test_the_factory_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ProblemsError) as refused:
        executor_of("slurm", partitoin="x")
    assert "partition" in refused.value.problems[0].remedy
    with pytest.raises(ProblemsError):
        executor_of("slurm", nodes=0)
    executor = executor_of(SlurmProfile(account="a"), nodes=2, partition="p", nodelist="n[1-2]")
    assert (executor.account, executor.partition, executor.nodes) == ("a", "p", 2)
    assert executor.additional_parameters == {"nodelist": "n[1-2]"}


@pytest.mark.parametrize(
    ("line", "ids"),
    [
        ("7", ["7"]),
        ("7_3", ["7_3"]),
        ("7_[0-2]", ["7_0", "7_1", "7_2"]),
        ("7_[0-2,5,8-9%2]", ["7_0", "7_1", "7_2", "7_5", "7_8", "7_9"]),
        ("7_[0-6:3]", ["7_0", "7_3", "7_6"]),
    ],
)
def test_a_waiting_array_is_all_of_its_elements(line: str, ids: list[str]) -> None:
    assert expand(line) == ids


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have sacct and squeue say what a test wants; for words that a cluster here cannot be made to say."""

    def say(sacct: str | None, squeue: str | None) -> Shell:
        for name, text in (("sacct", sacct), ("squeue", squeue)):
            (tmp_path / f"{name}.out").write_text(text or "")
            status = 0 if text is not None else 1
            body = f"#!/bin/sh\ncat {tmp_path}/{name}.out\n[ {status} = 0 ] || echo {name} is down >&2\nexit {status}\n"
            (tmp_path / name).write_text(body)
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        return Shell()

    return say


@pytest.mark.parametrize(
    ("slurm_state", "expected"),
    [
        ("PENDING", ("submitted", "")),
        ("REQUEUED", ("submitted", "")),
        ("RUNNING", ("running", "")),
        ("COMPLETING", ("running", "")),
        ("SUSPENDED", ("running", "")),
        ("COMPLETED", ("succeeded", "")),
        ("CANCELLED by 1000", ("cancelled", "cancelled")),
        ("CANCELLED+", ("cancelled", "cancelled")),
        ("FAILED", ("failed", "job_failed")),
        ("TIMEOUT", ("failed", "timeout")),
        ("DEADLINE", ("failed", "deadline")),
        ("OUT_OF_MEMORY", ("failed", "out_of_memory")),
        ("NODE_FAIL", ("failed", "node_failed")),
        ("BOOT_FAIL", ("failed", "node_failed")),
        ("PREEMPTED", ("failed", "preempted")),
        ("A_STATE_OF_LATER", ("running", "")),
    ],
)
def test_slurms_states_are_ours(said: Any, slurm_state: str, expected: tuple[str, str]) -> None:
    found = job_states(said(f"7|7|{slurm_state}|0:0|None|x\n", ""), [JOB])[JOB.run_id]
    assert found is not None
    assert (found.state, found.name) == expected
    assert slurm_state in found.detail


def test_the_present_counts_more_than_what_accounting_has_heard(said: Any) -> None:
    shell = said("7|7|RUNNING|0:0|None|x\n", "7|N/A|7|FAILED|768|NonZeroExitCode|x  \n")
    assert job_states(shell, [JOB]) == {
        JOB.run_id: JobState(state="failed", name="job_failed", detail="FAILED exit code 3:0 (NonZeroExitCode)")
    }


def test_either_of_the_two_is_enough_and_neither_is_an_error(said: Any) -> None:
    line = "7|7|COMPLETED|0:0|None|x\n"
    assert job_states(said(line, None), [JOB])[JOB.run_id] == JobState(state="succeeded", detail="COMPLETED")
    assert job_states(said(None, "7|N/A|7|PENDING|0|Priority|x"), [JOB])[JOB.run_id] == JobState(
        state="submitted", detail="PENDING (Priority)"
    )
    assert job_states(said("", ""), [JOB]) == {JOB.run_id: None}
    with pytest.raises(UnreachableError) as silent:
        job_states(said(None, None), [JOB])
    assert "squeue is down" in silent.value.cause
    assert job_states(said(None, None), []) == {}


def test_elements_of_an_array_and_a_job_without_an_id(said: Any) -> None:
    jobs = [replace(JOB, run_id=f"e{i}", id=f"7_{i}") for i in range(3)]
    lost = replace(JOB, run_id="alone", id=UNKNOWN_ID, folder="/shared/experiments/probe/probe_2-beef/probe")
    element = replace(
        JOB, run_id="element", id=f"{UNKNOWN_ID}_1", folder="/shared/experiments/probe/probe_3-array/probe"
    )
    shell = said(
        "7_0|7|COMPLETED|0:0|None|x\n7_[1-2]|7|PENDING|0:0|None|x\n9|9|RUNNING|0:0|None|probe_2-beef.probe\n"
        "8_0|8|FAILED|3:0|None|probe_3-array.probe\n8_1|10|RUNNING|0:0|None|probe_3-array.probe\n",
        "",
    )
    found = job_states(shell, [*jobs, lost, element])
    states = {run_id: state.state for run_id, state in found.items() if state}
    assert states == {"e0": "succeeded", "e1": "submitted", "e2": "submitted", "alone": "running", "element": "running"}


def test_files_appear_whole_and_private(tmp_path: Path) -> None:
    shell, path = Shell(), f"{tmp_path}/it's $new/file"
    shell.store({path: b"\0one\n", f"{tmp_path}/empty": b"", f"{tmp_path}/big": b"x" * 200_000})
    assert Path(path).read_bytes() == b"\0one\n"
    assert Path(path).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "big").stat().st_size == 200_000
    shell.store({path: b"two"})
    assert shell.read([path, f"{tmp_path}/absent", f"{tmp_path}/empty"]) == [b"two", b"", b""]
    shell.remove([path, f"{tmp_path}/absent"])
    assert not Path(path).parent.exists()  # nothing else was in it
    assert sorted(file.name for file in tmp_path.iterdir()) == ["big", "empty"]
    with pytest.raises(JobError) as refused:
        shell.store({f"{tmp_path}/big/below-a-file": b""})
    assert refused.value.name == "not_stored"


def test_a_file_that_arrives_half_is_not_put_in_place(tmp_path: Path) -> None:
    answer = Shell().sh(shell_module._STORE, stdin=f"10\n{tmp_path}/file\nshort".encode())
    assert answer.code != 0
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_hangs_or_is_missing() -> None:
    with pytest.raises(UnreachableError):
        Shell().run(["sleep", "5"], timeout=0.2)
    assert Shell().run(["no-such-command-here"]).code == 127


def test_ssh_never_asks_and_shares_a_connection_in_a_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Path("/tmp") / f"mo{os.getpid()}"
    short.mkdir()
    try:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
        argv = Shell(host="h", user="u", port=22, identity="~/key").ssh()
        assert "BatchMode=yes" in argv
        assert not any("StrictHostKeyChecking" in word for word in argv)
        folder = next(short.iterdir())
        assert f"ControlPath={folder}/" in " ".join(argv)
        assert folder.stat().st_mode & 0o777 == 0o700
        assert str(Path("~/key").expanduser()) in argv
        folder.chmod(0o755)  # somebody else could have made it
        assert not any("ControlPath" in word for word in Shell(host="h").ssh())
    finally:
        folder.rmdir()
        short.rmdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", f"{tmp_path}/{'x' * 100}")
    assert not any("ControlPath" in word for word in Shell(host="h").ssh())
