"""A run folder is data: whatever lies in it, every command says so by name, soon, and shows all other runs.

Commands about other things that look at recorded runs are slower: they are tried on one folder of DAMAGED, by chance
(SEED); DAMAGED=1 is all.
"""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from recipes import Stage, find
from recipes.experiment.examine import examine
from tests.answers import data_of
from tests.runs import Shell, in_time, recorded

Damage = Callable[[Path], None]
GOOD, BAD = "probe_1-good", "probe_2-bad"
FILES = ("run.json", "job.json", ".job.lock", ".resume.lock", "partial.zlib", "logs/rank0.log")
SHOWN = ("report/report.json", "progress.json", "heartbeat", "logs/launcher.log", "logs/rank0.error.json")
DAMAGED = int(os.environ.get("DAMAGED", "20"))
SEED = int(os.environ.get("SEED", str(random.SystemRandom().randrange(10**6))))
ESCAPE = "\x1b]0;owned\x07\x1b[2J"


def instead(name: str, make: Callable[[Path], object]) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return damage


def changed(name: str, *keys: str, to: Any) -> Damage:
    def damage(folder: Path) -> None:
        value = outer = json.loads((folder / name).read_text())
        for key in keys[:-1]:
            value = value.setdefault(key, {})
        value[keys[-1]] = to
        (folder / name).write_text(json.dumps(outer))

    return damage


def without(name: str, *keys: str) -> Damage:
    def damage(folder: Path) -> None:
        value = outer = json.loads((folder / name).read_text())
        for key in keys[:-1]:
            value = value[key]
        del value[keys[-1]]
        (folder / name).write_text(json.dumps(outer))

    return damage


def sparse(path: Path) -> None:
    with path.open("wb") as handle:
        handle.write(b"{")
        handle.truncate(150_000_000)


def damages() -> Iterator[tuple[str, Damage]]:
    kinds: dict[str, Callable[[Path], object]] = {
        "fifo": os.mkfifo,
        "directory": Path.mkdir,
        "loop": lambda path: path.symlink_to(path.name),
        "dangling": lambda path: path.symlink_to("nowhere"),
        "zero": lambda path: path.symlink_to("/dev/zero"),
        "link": lambda path: path.symlink_to(path.parents[3] / "outside"),
    }
    for file in (*FILES, *SHOWN):
        for kind, make in kinds.items():
            yield f"{file} {kind}", instead(file, make)
    texts = {
        "empty": b"", "half": b"{", "list": b"[]", "null": b"null", "bytes": b"\xff\xfe\x00", "nested": b"[" * 200_000,
        "nested objects": b'{"a":' * 200_000, "deep": b'{"a":' + b"[" * 500 + b"]" * 500 + b"}", "text": b'"x"',
        "digits": b'{"a": ' + b"9" * 6000 + b"}",
    }  # fmt: skip
    for file in ("run.json", "job.json", "partial.zlib"):
        for kind, text in texts.items():
            yield f"{file} {kind}", instead(file, lambda path, text=text: path.write_bytes(text))  # type: ignore[misc]
        yield f"{file} large", instead(file, sparse)
        yield f"{file} gone", instead(file, lambda path: None)
    wrong: list[Any] = [
        7,
        "x",
        [],
        {},
        None,
        True,
        -1,
        10**30,
        1.5,
        float("nan"),
        "\ud800",
        ESCAPE,
        [[]],
        [7],
        [{}],
        "2",
    ]
    places = [
        *(("run.json", key) for key in ("schema", "state", "submitted_at", "started_at", "finished_at", "outputs")),
        *(("run.json", key) for key in ("error", "warnings", "diagnosis", "code", "attempts", "executor", "process")),
        *(
            ("run.json", key)
            for key in ("phase", "scheduler", "run_dir", "expects", "values", "id", "recipe", "timings")
        ),
        *(("run.json", "process", key) for key in ("pid", "started", "ticks", "host", "boot")),
        *(("run.json", "error", key) for key in ("name", "message", "remedy")),
        *(("job.json", key) for key in ("job", "scheduler", "submitting", "supervisor", "cancel_asked", "settled")),
        *(("job.json", "scheduler", key) for key in ("id", "run_dir", "folder", "run_id")),
        *(
            ("job.json", "job", key)
            for key in ("id", "name", "profile", "values", "run_dir", "after", "secrets", "args")
        ),
        *(
            ("job.json", "job", key)
            for key in ("nodes", "processes", "array", "archive", "warnings", "skipped", "recipe")
        ),
        *(("job.json", "job", "profile", key) for key in ("kind", "env", "output_root", "secrets")),
        *(("job.json", "job", "values", key) for key in ("args", "script", "torchrun", "extra_args")),
    ]
    for at, (file, *keys) in enumerate(places):
        for value in wrong[at % 5 :: 5]:  # each of them somewhere, and several everywhere
            yield f"{file} {'.'.join(keys)}={value!r}", changed(file, *keys, to=value)
    for file, key in (
        ("run.json", "state"),
        ("run.json", "submitted_at"),
        ("job.json", "job"),
        ("job.json", "settled"),
    ):
        yield f"{file} without {key}", without(file, key)


def commands(folder: Path, *, all_nine: bool) -> Iterator[list[str]]:
    yield ["ps", "--all", "--json"]
    yield from ([word, BAD] for word in ("status", "logs", "cancel", "resume"))
    yield ["ps", "--all"]
    if all_nine:
        yield ["status", BAD, "--json"]
        yield ["inspect", str(folder)]
        yield ["plan", "export", "executor=slurm", f"args.megatron_load_path={folder}/optimize/x"]
        yield ["run", "probe", "args.message=${artifact:" + BAD + "}", "--dryrun", "--json"]
        yield ["run", "probe", "--after", BAD, "--dryrun", "--json"]


def faults(shell: Shell, name: str, home: Path, *, all_nine: bool) -> Iterator[str]:
    """What a damaged folder does to the commands."""
    outside = (home.parent / "outside").read_bytes()
    for command in commands(home / "runs" / BAD, all_nine=all_nine):
        try:
            done = shell(*command, seconds=5 if command[0] in ("ps", "status", "logs", "cancel", "resume") else 30)
        except TimeoutError as error:
            yield f"{name}: {command} {error}"
            continue
        said = f"{name}: {command} ({done.exit_code}) {done.output[-300:]!r} {done.exception!r}"
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            yield f"traceback of {said}"
        elif "Traceback" in done.output or done.exit_code not in (0, 1, 2):
            yield said
        if "\x1b" in done.output or "secret outside" in done.output:
            yield f"not shown as text: {said}"
        if command[0] == "ps" and done.exit_code:
            yield said
        if command == ["ps", "--all"] and not all(one in done.stdout for one in (GOOD, BAD)):
            yield f"not listed: {said}"
        if "--json" in command and done.exit_code == 0:
            json.loads(done.stdout, parse_constant=lambda word: pytest.fail(f"{word} in a document"))
    if (home.parent / "outside").read_bytes() != outside:
        yield f"{name}: wrote outside"


def test_whatever_lies_in_a_run_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.experiment.submit.spawn", lambda runs: None)
    (home.parent / "outside").write_text("secret outside\n")
    recorded(home, GOOD)
    kept = [recorded(home.parent / str(ended), BAD, ended=ended) for ended in (True, False)]
    shell, found, tried, nine, draw = Shell(), [], 0, 0, random.Random(SEED)
    for name, damage in damages():
        folder, as_it_was = home / "runs" / BAD, kept[tried % 2]
        shutil.copytree(as_it_was, folder)
        for file in ("run.json", "job.json"):
            (folder / file).write_text((folder / file).read_text().replace(str(as_it_was), str(folder)))
        damage(folder)
        nine += (all_nine := draw.randrange(DAMAGED) == 0)
        found += list(faults(shell, name, home, all_nine=all_nine))
        shutil.rmtree(folder)
        tried += 1
    print(f"SEED={SEED}: {tried} folders, {nine} of them with all commands")
    assert tried > 300 and nine
    assert not found, f"SEED={SEED}: {len(found)} of {tried}\n" + "\n".join(found[:40])


@pytest.mark.parametrize("file", ["run.json", "job.json", ".job.lock"])
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_makes_a_run_unreadable(home: Path, file: str, make: Callable[[Path], object]) -> None:
    recorded(home, GOOD)
    instead(file, make)(recorded(home, BAD))
    done = Shell()("ps", "--all", "--json")
    rows = {row["id"]: row for row in data_of(done.stdout)}
    assert (rows[GOOD]["state"], rows[BAD]["state"]) == ("failed", "unreadable")
    assert file in rows[BAD]["error"]["message"]


def test_what_a_damaged_run_was_to_leave_is_refused(home: Path) -> None:
    instead("run.json", os.mkfifo)(recorded(home, BAD))
    recipe = find("probe").build()
    recipe.args.message = f"${{artifact:{BAD}}}"
    with in_time(20):
        problems = examine([Stage(name="x", partial=recipe, after=[BAD])]).problems
    assert {problem.name for problem in problems} >= {"damaged_record", "unknown_artifact"}
    assert all("run.json" in problem.cause for problem in problems if problem.name == "unknown_artifact")
