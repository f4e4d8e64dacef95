"""Packaging with real git, real tar and NeMo-Run's own serialization: what travels, and what is said of the rest."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from executors.base import Packaging
from executors.packaging import code as packaging
from executors.packaging import files as packaging_files
from executors.packaging.code import NODE_PACKAGES, Code, package, plan
from scripts import probe
from scripts.run.problems import JobError, Problem, ProblemsError

ROOT = Path(__file__).resolve().parents[3]
Git = Callable[..., str]


@pytest.fixture(autouse=True)
def _git_of_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the user's git configuration counts; submodules may come from a folder."""
    config = tmp_path / "gitconfig"
    config.write_text('[user]\n name = T\n email = t@example.org\n[protocol "file"]\n allow = always\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "user's project"
    path.mkdir()
    return path


@pytest.fixture
def git(folder: Path) -> Git:
    """Run git in the folder, which is a repository from then on."""

    def run(*words: str, cwd: Path = folder) -> str:
        done = subprocess.run(["git", *words], cwd=cwd, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout.strip()

    run("init", "-q", "-b", "main")
    return run


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def pack(folder: Path, packager: Packaging = "auto", include: Sequence[str] = ()) -> tuple[Code, Path]:
    """Pack, check that the plan said the same, and unpack with the tar that NeMo-Run uses."""
    archive = folder.parent / "out" / "code.tar.gz"
    planned = plan(folder, packager=packager, include=include)
    code = package(folder, archive, packager=packager, include=include)
    assert code.archive == archive
    assert code.as_record() == planned.as_record()
    assert code.bytes == archive.stat().st_size
    json.dumps(code.as_record())
    unpacked = folder.parent / "unpacked"
    subprocess.run(["rm", "-rf", str(unpacked)], check=True)
    unpacked.mkdir()
    command = ["tar", "-xzf", str(archive), "-C", str(unpacked), "--ignore-zeros"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    assert [path.name for path in archive.parent.iterdir()] == ["code.tar.gz"]
    return code, unpacked


def users(unpacked: Path) -> set[str]:
    """The user's files in an unpacked archive."""
    paths = (
        path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_symlink() or path.is_file()
    )
    return {path for path in paths if not path.startswith(".recipes/")}


def refused(folder: Path, packager: Packaging = "auto", include: Sequence[str] = ()) -> list[Problem]:
    into = folder.parent / "out" / "code.tar.gz"
    with pytest.raises(ProblemsError) as caught:
        package(folder, into, packager=packager, include=include)
    assert not into.exists()
    return list(caught.value.problems)


# --- our own packages --------------------------------------------------------------------------


def test_none_packs_our_packages_alone(folder: Path) -> None:
    write(folder, {"mine.py": ""})
    code, unpacked = pack(folder, "none")
    assert users(unpacked) == set()
    assert {path.name for path in (unpacked / ".recipes").iterdir()} == set(NODE_PACKAGES)
    assert (unpacked / ".recipes/scripts/probe.py").read_bytes() == Path(probe.__file__).read_bytes()
    assert (unpacked / ".recipes/configs/quantize/fp8.yaml").is_file()
    kinds = {path.suffix for path in unpacked.rglob("*") if path.is_file()}
    assert kinds == {".py", ".yaml", ".json"}  # what runs, and nothing else
    assert code.digest == code.own_digest
    assert (code.commit, code.largest) == (None, ())
    assert code.notes() == []


def test_the_packed_packages_are_imported_without_the_checkout(folder: Path) -> None:
    """As on a node: the user's own `scripts` beside them does not get in the way."""
    write(folder, {"scripts/__init__.py": "raise SystemExit('the wrong scripts')", "mine.py": ""})
    _, unpacked = pack(folder, "pattern", ["**/*.py"])
    env = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": f"{unpacked}/.recipes:{unpacked}"}
    code = "import scripts.run.record, scripts.entrypoints as e, mine\nprint(e.__file__); print(*e.ALGORITHMS)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=unpacked, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{unpacked}/.recipes/scripts/entrypoints.py")
    assert "quantize" in done.stdout


def test_an_installed_copy_packs_without_a_repository(folder: Path, tmp_path: Path) -> None:
    """Our packages in a site-packages folder, git not to be found."""
    site = tmp_path / "site-packages"
    for name in ("configs", "executors", "scripts"):
        shutil.copytree(ROOT / name, site / name, ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "from pathlib import Path; from executors.packaging.code import package;"
        f"print(package(Path({str(folder)!r}), Path('out.tgz').absolute(), packager='auto', include=[]).packager)"
    )
    python = [sys.executable, "-c", code]
    env = {"PYTHONPATH": str(site), "PATH": "/nowhere", "HOME": str(tmp_path)}
    done = subprocess.run(python, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout == "none\n", done.stderr
    with tarfile.open(tmp_path / "out.tgz") as tar:
        assert ".recipes/scripts/run/record.py" in tar.getnames()


# --- git ---------------------------------------------------------------------------------------


def test_git_packs_the_working_tree(folder: Path, git: Git) -> None:
    write(folder, {"a.py": "old", "gone.py": "", "sub/run.sh": "#!/bin/sh", ".gitignore": "*.log\n"})
    (folder / "sub/run.sh").chmod(0o750)
    (folder / "link").symlink_to("sub/run.sh")
    (folder / "dangling").symlink_to("/nowhere/at all")
    git("add", "-A")
    git("commit", "-qm", "one")
    write(folder, {"a.py": "new", "staged.py": "", "loose.py": "", "loose dir/x": "", "noise.log": ""})
    git("add", "staged.py")
    (folder / "gone.py").unlink()
    code, unpacked = pack(folder)
    assert users(unpacked) == {"a.py", "sub/run.sh", ".gitignore", "link", "dangling", "staged.py"}
    assert (unpacked / "a.py").read_text() == "new"
    assert os.access(unpacked / "sub/run.sh", os.X_OK) and not os.access(unpacked / "a.py", os.X_OK)
    assert (unpacked / "link").readlink() == Path("sub/run.sh")
    assert (unpacked / "dangling").readlink() == Path("/nowhere/at all")
    assert code.packager == "git"
    assert code.commit == git("rev-parse", "HEAD")
    assert code.changed == ("a.py", "gone.py", "staged.py")
    assert code.untracked == ("loose dir/", "loose.py")
    assert any("uncommitted changes are packed: a.py" in note for note in code.notes())
    assert any("not packed: loose dir/, loose.py" in note for note in code.notes())


def test_a_clean_repository_has_nothing_to_say(folder: Path, git: Git) -> None:
    write(folder, {"a.py": "x"})
    git("add", "-A")
    git("commit", "-qm", "one")
    code, _ = pack(folder)
    assert (code.changed, code.untracked, code.notes()) == ((), (), [])


def test_the_whole_repository_from_a_folder_below(folder: Path, git: Git, tmp_path: Path) -> None:
    """Patterns are seen from the folder; the archive's root is the repository's."""
    write(folder, {"a.py": "", "deep/er/b.py": "", "deep/er/data.bin": ""})
    git("add", "a.py", "deep/er/b.py")
    code = package(folder / "deep/er", tmp_path / "code.tgz", packager="git", include=["*.bin"])
    with tarfile.open(tmp_path / "code.tgz") as tar:
        names = {name for name in tar.getnames() if not name.startswith(".recipes/")}
    assert names == {"a.py", "deep/er/b.py", "deep/er/data.bin"}
    assert code.root == str(folder)
    assert code.untracked == ()


def test_a_repository_without_a_commit(folder: Path, git: Git) -> None:
    write(folder, {"a.py": ""})
    git("add", "a.py")
    code, unpacked = pack(folder)
    assert (code.commit, code.changed) == (None, ("a.py",))
    assert users(unpacked) == {"a.py"}


ODD = ["a b", "q'uo\"te", "new\nline", "täb\tü", "-dash", "$HOME;x", "back\\slash", "日本", ":(top)x", "x" * 200]


def test_odd_names(folder: Path, git: Git) -> None:
    write(folder, {f"{name}/{name}": name for name in ODD})
    raw = os.fsencode(folder) + b"/\xff\xfe"
    Path(os.fsdecode(raw)).write_text("bytes")
    git("add", "-A")
    code, unpacked = pack(folder)
    for name in ODD:
        assert (unpacked / name / name).read_text() == name
    assert Path(os.fsdecode(os.fsencode(unpacked) + b"/\xff\xfe")).read_text() == "bytes"
    assert "\\xff\\xfe" in code.changed


def test_submodules(folder: Path, git: Git, tmp_path: Path) -> None:
    for name in ("inner", "outer"):
        (tmp_path / name).mkdir()
        git("init", "-q", cwd=tmp_path / name)
        write(tmp_path / name, {f"{name}.py": "committed"})
        git("add", "-A", cwd=tmp_path / name)
        if name == "outer":
            git("submodule", "--quiet", "add", str(tmp_path / "inner"), "inner", cwd=tmp_path / name)
        git("commit", "-qm", "x", cwd=tmp_path / name)
    git("submodule", "--quiet", "add", str(tmp_path / "outer"), "third party/outer")
    git("submodule", "--quiet", "update", "--init", "--recursive")
    write(folder / "third party/outer", {"outer.py": "changed", "loose.py": ""})
    code, unpacked = pack(folder)
    below = "third party/outer"
    assert users(unpacked) == {".gitmodules"} | {f"{below}/{p}" for p in (".gitmodules", "outer.py", "inner/inner.py")}
    assert (unpacked / below / "outer.py").read_text() == "changed"
    assert below in code.changed
    git("commit", "-qm", "all")
    git("submodule", "--quiet", "deinit", "--all", "-f")
    code, unpacked = pack(folder)
    assert users(unpacked) == {".gitmodules"}
    assert code.missing == (below,)
    assert any(f"not checked out are not packed: {below}" in note for note in code.notes())


def test_export_ignore(folder: Path, git: Git) -> None:
    write(folder, {"docs/x/a": "", "tests/t": "", "b.bin": "", "keep": "", "x/.gitattributes": "y export-ignore\n"})
    write(
        folder,
        {"x/y/z": "", "y": "", ".gitattributes": "docs export-ignore\ntests/ export-ignore\n*.bin export-ignore\n"},
    )
    git("add", "-A")
    _, unpacked = pack(folder)
    assert users(unpacked) == {"keep", "y", ".gitattributes", "x/.gitattributes"}
    _, unpacked = pack(folder, "git", ["b.bin"])
    assert "b.bin" in users(unpacked)


def test_a_tracked_folder_that_became_a_link(folder: Path, git: Git, tmp_path: Path) -> None:
    """What lies behind the link is not what git tracks."""
    write(folder, {"data/x": "tracked", "a": ""})
    git("add", "-A")
    (tmp_path / "away").mkdir()
    write(tmp_path / "away", {"x": "somebody else's"})
    (folder / "data").rename(folder / "moved")
    (folder / "data").symlink_to(tmp_path / "away")
    _, unpacked = pack(folder)
    assert users(unpacked) == {"a"}


def test_a_merge_with_conflicts(folder: Path, git: Git) -> None:
    write(folder, {"a": "base\n"})
    git("add", "-A")
    git("commit", "-qm", "base")
    git("checkout", "-qb", "other")
    write(folder, {"a": "other\n"})
    git("commit", "-qam", "other")
    git("checkout", "-q", "main")
    write(folder, {"a": "main\n"})
    git("commit", "-qam", "main")
    with pytest.raises(subprocess.CalledProcessError):
        git("merge", "other")
    code, unpacked = pack(folder)
    assert "<<<<<<<" in (unpacked / "a").read_text()
    assert code.changed == ("a",)


def test_another_repository_in_the_environment_does_not_count(
    folder: Path, git: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, {"a": ""})
    git("add", "-A")
    (tmp_path / "other").mkdir()
    git("init", "-q", cwd=tmp_path / "other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other/.git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "none"))
    assert users(pack(folder)[1]) == {"a"}


def test_not_a_repository(folder: Path) -> None:
    (problem,) = refused(folder, "git")
    assert problem.name == "not_a_repository"
    assert "executor.packager=pattern" in problem.remedy


def test_a_bare_repository(folder: Path, git: Git) -> None:
    assert [problem.name for problem in refused(folder / ".git", "git")] == ["not_a_repository"]


def test_git_is_not_there(folder: Path, git: Git, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    (problem,) = refused(folder)
    assert (problem.name, problem.cause) == ("git_missing", "git is not installed here")


def test_a_damaged_repository(folder: Path, git: Git) -> None:
    (folder / ".git/index").write_text("damaged")
    (problem,) = refused(folder)
    assert problem.name == "git_failed"
    assert "index" in problem.cause


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to somebody else")
def test_a_repository_of_somebody_else(folder: Path, git: Git) -> None:
    os.chown(folder, 12345, 12345)
    (problem,) = refused(folder)
    assert problem.name == "git_ownership"
    assert "safe.directory" in problem.remedy


# --- patterns ----------------------------------------------------------------------------------


def test_patterns(folder: Path) -> None:
    write(folder, {"a.py": "", "src/b.py": "", "src/deep/c.py": "", "src/deep/d.txt": "", "src/__pycache__/b.pyc": ""})
    write(folder, {"data/x/1": "", "data/.hidden": "", "other": ""})
    (folder / "data/link").symlink_to("../other")
    os.mkfifo(folder / "data/pipe")
    code, unpacked = pack(folder, "pattern", ["src/**/*.py", "data", "a.*"])
    assert users(unpacked) == {"a.py", "src/b.py", "src/deep/c.py", "data/x/1", "data/.hidden", "data/link"}
    assert (code.packager, code.commit) == ("pattern", None)


def test_auto_outside_a_repository(folder: Path) -> None:
    write(folder, {"a.py": "", "b": ""})
    assert pack(folder, "auto")[0].packager == "none"
    code, unpacked = pack(folder, "auto", ["*.py"])
    assert code.packager == "pattern"
    assert users(unpacked) == {"a.py"}


def test_every_wrong_pattern_is_told(folder: Path, tmp_path: Path) -> None:
    write(folder, {"a.py": "", "__pycache__/x.pyc": ""})
    write(tmp_path, {"away/secret.py": ""})
    (folder / "out").symlink_to(tmp_path / "away")
    patterns = ["*.txt", "/etc/*", "../*", "a/../../b", "", "out/*.py", "**/*.pyc"]
    problems = refused(folder, "pattern", [*patterns, "*.py"])
    assert [problem.value for problem in problems] == patterns
    assert [problem.name for problem in problems] == [
        "pattern_matches_nothing",
        "pattern_leaves_folder",
        "pattern_leaves_folder",
        "pattern_leaves_folder",
        "bad_pattern",
        "pattern_leaves_folder",
        "pattern_matches_nothing",
    ]


def test_files_behind_a_link_inside_the_folder_travel_under_their_real_name(folder: Path) -> None:
    write(folder, {"real/a.py": "x"})
    (folder / "alias").symlink_to("real")
    _, unpacked = pack(folder, "pattern", ["alias/*.py", "alias"])
    assert users(unpacked) == {"real/a.py", "alias"}
    assert (unpacked / "alias/a.py").read_text() == "x"


def test_patterns_that_are_missing_or_unused(folder: Path) -> None:
    assert [problem.name for problem in refused(folder, "pattern")] == ["no_patterns"]
    assert [problem.name for problem in refused(folder, "none", ["*.py"])] == ["include_unused"]
    assert [problem.name for problem in refused(folder / "none", "none")] == ["missing_folder"]


# --- secrets -----------------------------------------------------------------------------------

SECRET_FILES = [".env", "x/.env.local", "id_rsa", "x/tls.PEM", "server.key", ".netrc", "credentials-prod.json"]


@pytest.mark.parametrize("packager", ["git", "pattern"])
def test_files_that_look_like_secrets_stay_here(folder: Path, git: Git, packager: Packaging) -> None:
    write(folder, dict.fromkeys(SECRET_FILES, "MARKER") | {".env.example": "", "id_rsa.pub": "", "keys.py": ""})
    git("add", "-A")
    code, unpacked = pack(folder, packager, ["**/*"])
    assert users(unpacked) == {".env.example", "id_rsa.pub", "keys.py"}
    assert code.withheld == tuple(sorted(SECRET_FILES))
    assert any("look like secrets" in note for note in code.notes())
    code, unpacked = pack(folder, packager, ["*.py", "x/tls.PEM"])
    assert "x/tls.PEM" in users(unpacked)
    assert "x/tls.PEM" not in code.withheld


# --- the archive -------------------------------------------------------------------------------


def test_the_same_files_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write(folder, {"b": "1", "a/c": "2"})
    first, _ = pack(folder, "pattern", ["**/*"])
    content = (tmp_path / "out/code.tar.gz").read_bytes()
    os.utime(folder / "b", (1, 1))
    (folder / "a/c").chmod(0o600)
    second = package(folder, tmp_path / "out/other name.tgz", packager="pattern", include=["a", "b"])
    assert (tmp_path / "out/other name.tgz").read_bytes() == content
    assert first.digest == second.digest
    with tarfile.open(tmp_path / "out/code.tar.gz") as tar:
        members = tar.getmembers()
    names = [member.name for member in members]
    assert names == sorted(names)
    assert {(member.uid, member.gid, member.uname, member.mtime) for member in members} == {(0, 0, "", 946684800)}


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "a").write_text("2"),
        lambda folder: (folder / "a").rename(folder / "b"),
        lambda folder: (folder / "a").chmod(0o755),
        lambda folder: ((folder / "a").unlink(), (folder / "a").symlink_to("1")),
        lambda folder: (folder / "z").write_text(""),
    ],
)
def test_the_digest_tells_changes(folder: Path, change: Callable[[Path], object]) -> None:
    write(folder, {"a": "1"})
    before = plan(folder, packager="pattern", include=["*"])
    change(folder)
    after = plan(folder, packager="pattern", include=["*"])
    assert before.digest != after.digest
    assert before.own_digest == after.own_digest


def test_a_folder_with_our_name_is_refused(folder: Path) -> None:
    write(folder, {".recipes/x": ""})
    assert [problem.name for problem in refused(folder, "pattern", [".recipes/*"])] == ["reserved_folder"]


def test_large_archives_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaging, "LARGE_BYTES", 1_000_000)
    (folder / "weights.bin").write_bytes(os.urandom(2_000_000))
    (folder / "small.py").write_text("x")
    code, _ = pack(folder, "pattern", ["*"])
    assert code.largest == (("weights.bin", 2_000_000), ("small.py", 1))
    (note,) = code.notes()
    assert "weights.bin 2 MB" in note


def test_a_full_disk_leaves_nothing(folder: Path) -> None:
    """/dev/full stands for the disk; the archive's folder is a link to a device that takes no byte."""
    into = folder.parent / "out" / "code.tar.gz"
    into.parent.mkdir()
    code = f"""
import resource, signal
from pathlib import Path
from executors.packaging.code import package
from scripts.run.problems import JobError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    package(Path({str(folder)!r}), Path({str(into)!r}), packager="none", include=[])
except JobError as error:
    print(error.name, error.cause)
"""
    python = [sys.executable, "-c", code]
    done = subprocess.run(
        python, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.startswith("packaging_failed"), done.stderr
    assert "File too large" in done.stdout
    assert list(into.parent.iterdir()) == []


def test_a_file_that_shrinks_while_it_is_packed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, {"a": "12345"})
    chosen = packaging_files.select(folder, packager="pattern", include=["a"])

    class Shrinking:
        def read(self, size: int) -> bytes:
            return b"1"

    with pytest.raises(OSError, match="became shorter"):
        packaging._Hashing(Shrinking(), folder / "a").read(5)  # type: ignore[arg-type]
    (folder / "a").unlink()
    monkeypatch.setattr(packaging, "select", lambda *_, **__: chosen)
    with pytest.raises(JobError, match=r"packaging_failed: .*/a: No such file"):
        package(folder, folder.parent / "out/x", packager="pattern", include=["a"])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.sets(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40))
)
def test_any_names_travel(folder: Path, git: Git, names: set[str]) -> None:
    subprocess.run(["git", "rm", "-rqf", "--ignore-unmatch", "."], cwd=folder, check=True)
    names = {n for n in names if n not in (".", "..") and len(n.encode()) < 200 and not n.lower().startswith(".git")}
    names = {n for n in names if not packaging_files._looks_secret(n) and n != ".recipes"}
    for name in names:
        (folder / name).write_text(name)
    subprocess.run(["git", "add", "-Af", "."], cwd=folder, check=True, capture_output=True)
    _, unpacked = pack(folder, "git")
    assert {os.fsencode(name) for name in users(unpacked)} == {name.encode() for name in names}


def test_this_project_packs(folder: Path, git: Git, tmp_path: Path) -> None:
    """As a user's repository and as our own packages at once."""
    for name in (*NODE_PACKAGES, "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    git("add", "-A")
    code = package(folder, tmp_path / "code.tgz", packager="git", include=[])
    assert code.files > 100


# --- NeMo-Run ----------------------------------------------------------------------------------


def nemo_run(code: str, *words: str, cwd: Path) -> str:
    """Run `code` in a Python of its own, as NeMo-Run re-imports the main module of whoever submits."""
    script = cwd / "submit.py"
    script.write_text(code)
    env = {**os.environ, "NEMORUN_HOME": str(cwd / "home")}
    python = [sys.executable, str(script), *words]
    done = subprocess.run(
        python, capture_output=True, text=True, timeout=120, cwd=cwd, env=env, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


_SLURM = """
import sys
import fiddle
import nemo_run as run
from fiddle.experimental.dataclasses import convert_dataclasses_to_configs
from nemo_run.core.serialization.zlib_json import ZlibJSONSerializer
from nemo_run.core.execution.slurm import LocalTunnel
from executors.packaging.archive import ArchivePackager

if __name__ == "__main__":
    packager = ArchivePackager(archive=sys.argv[1])
    executor = run.SlurmExecutor(account="a", tunnel=LocalTunnel(job_dir=""), packager=packager)
    executor.experiment_id, executor.job_dir = "x_1", sys.argv[2]
    executor.package(packager, "x")
    packager.package(".", sys.argv[2], "x")  # a second time replaces it
    for value in (packager, executor):  # what a job's process and a later command read back
        text = ZlibJSONSerializer().serialize(convert_dataclasses_to_configs(value, allow_post_init=True))
        again = fiddle.build(ZlibJSONSerializer().deserialize(text))
        assert getattr(again, "packager", again) == packager, again
"""


def test_slurm_gets_the_archive(folder: Path, tmp_path: Path) -> None:
    write(folder, {"mine.py": "x"})
    code, _ = pack(folder, "pattern", ["*.py"])
    job = tmp_path / "job"
    job.mkdir()
    nemo_run(_SLURM, str(code.archive), str(job), cwd=tmp_path)
    assert (job / "code/mine.py").read_text() == "x"
    assert (job / "code/.recipes/scripts/run/record.py").is_file()
    assert (job / "x.tar.gz").stat().st_size == code.bytes
    assert {path.name for path in job.iterdir()} == {"code", "x.tar.gz"}
