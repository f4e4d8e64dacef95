"""Artifacts: found by reference, read again, and traced back."""

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from executors.slurm.profile import SlurmProfile
from recipes.artifacts.artifact import Artifact, artifacts_of, find_artifacts
from recipes.artifacts.lineage import as_dot, graph_of, lines_of
from recipes.artifacts.lineage import lineage as traced
from recipes.artifacts.lineage_svg import as_svg
from recipes.artifacts.verification import Verification, verify
from recipes.experiment.runs import all_runs
from recipes.experiment.store import RunFolder
from scripts.args.convert import HfToMegatronArgs
from scripts.engines.inputs import inputs_of, made_by
from scripts.run.content import FOLDER, content_of
from scripts.run.problems import ProblemsError
from scripts.run.record import Record
from tests.answers import data_of
from tests.jobs import submitted
from tests.runs import Shell

#: Letters of the digests below belong to nothing else.
HUB = "Qwen/Qwen3-0.6B"


def run(home: Path, run_id: str, kinds: tuple[str, ...], inputs: list[dict[str, Any]], at: int) -> Record:
    """A run that left one folder of each type."""
    folder = home / "runs" / run_id
    record = Record.submit(folder, id=run_id, recipe=run_id.partition("_")[0], algorithm="probe", values={"args": {}})
    times = {
        key: f"2026-01-01T{at:02}:{minute}:00.000Z" for key, minute in (("submitted_at", "00"), ("started_at", 10))
    }
    record.update(inputs=inputs, **times)
    for kind in kinds:
        (folder / kind / "deep").mkdir(parents=True)
        (folder / kind / "weights").write_bytes(run_id.encode() * 1000)
        (folder / kind / "deep" / "config.json").write_text(kind)
        record.artifact(kind, folder / kind)
    record.finish("succeeded")
    record.update(finished_at=f"2026-01-01T{at:02}:50:00.000Z")
    return record


@pytest.fixture
def chain(home: Path) -> dict[str, Record]:
    """hub -> prune -> convert -> evaluate; the last records nothing but a path."""
    prune = run(
        home, "prune_0101-0000-00000a", ("checkpoint_hf", "eval_results"), [{"type": "checkpoint_hf", "name": HUB}], 0
    )
    path = prune.dir / "checkpoint_hf"
    convert = run(
        home, "convert_0101-0000-00000b", ("checkpoint_megatron",), inputs_of(HfToMegatronArgs(hf_model=str(path))), 1
    )
    inputs = [{"type": "checkpoint_megatron", "name": str(convert.dir / "checkpoint_megatron")}]
    return {
        "prune": prune,
        "convert": convert,
        "score": run(home, "score_0101-0000-00000c", ("eval_results",), inputs, 2),
    }


def only(word: str) -> Artifact:
    (found,) = find_artifacts(word)
    return found


def test_an_artifact_is_found_by_each_of_its_names(chain: dict[str, Record]) -> None:
    one = only("00000b")
    assert one.reference == "convert_0101-0000-00000b.checkpoint_megatron"
    for word in (one.reference, "latest:convert", str(one.path), f"{one.path}/deep", one.digest, str(one.digest)[7:17]):
        assert only(str(word)).reference == one.reference, word
    assert [found.type for found in find_artifacts("00000a")] == ["checkpoint_hf", "eval_results"]
    assert only("prune_0101-0000-00000a.eval_results").type == "eval_results"
    assert len(artifacts_of(all_runs())) == 4 and len(artifacts_of(all_runs(), "eval_results")) == 2


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("nothing", "no run of that id"),
        ("00000a.checkpoint_fh", "Did you mean checkpoint_hf?"),
        ("/nowhere/at/all", "no run is recorded here that left it"),
        ("sha256:00000000", "no artifact has that digest"),
        ("00000d", "left nothing; its state is failed"),
    ],
)
def test_what_names_no_artifact_is_told_why(word: str, says: str, chain: dict[str, Record], home: Path) -> None:
    Record.submit(home / "runs" / "probe_0101-0000-00000d", id="probe_0101-0000-00000d").finish("failed", None)
    with pytest.raises(ProblemsError) as caught:
        find_artifacts(word)
    assert says in str(caught.value.problems[0])


def change_a_bit(folder: Path) -> None:
    content = bytearray((folder / "weights").read_bytes())
    content[777] ^= 1
    (folder / "weights").write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], object], dict[str, Any]]] = {
    "nothing": (lambda folder: None, {"state": "intact"}),
    "touched": (lambda folder: (folder / "weights").touch(), {"state": "intact"}),
    "a bit": (change_a_bit, {"state": "damaged", "changed": ("weights",)}),
    "missing": (
        lambda folder: (folder / "deep" / "config.json").unlink(),
        {"state": "damaged", "missing": ("deep/config.json",)},
    ),
    "extra": (lambda folder: (folder / "x").touch(), {"state": "damaged", "extra": ("x",)}),
    "renamed": (
        lambda folder: (folder / "weights").rename(folder / "w"),
        {"state": "damaged", "missing": ("weights",), "extra": ("w",)},
    ),
    "gone": (lambda folder: folder.rename(folder.with_name("elsewhere")), {"state": "gone"}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_finds_what_is_another(damage: str, chain: dict[str, Record]) -> None:
    artifact = only("00000b")
    harm, expected = DAMAGES[damage]
    harm(Path(artifact.path))
    found = verify(artifact)
    assert found == Verification(artifact=artifact, **expected)
    done = Shell()("artifacts", "verify", "00000b")
    assert done.exit_code == (0 if found.sound else 1) and found.state in done.stdout
    assert all(
        f"{what}: {name}" in done.stdout for what in ("changed", "missing", "extra") for name in expected.get(what, ())
    )


def test_without_its_manifest_the_damage_is_still_found(chain: dict[str, Record]) -> None:
    artifact = only("00000b")
    change_a_bit(Path(artifact.path))
    for file in (artifact.run.dir / FOLDER).iterdir():
        file.write_text("")
    assert verify(artifact) == Verification(artifact=artifact, state="damaged", unnamed=True)
    assert "which files: not known" in Shell()("artifacts", "verify", "00000b").stdout


def test_an_artifact_is_traced_back_to_what_no_run_made(chain: dict[str, Record]) -> None:
    tree = traced(only("00000c"), artifacts_of(all_runs()))
    lines = [
        branch + (node.of.reference if isinstance(node.of, Artifact) else node.of.name)
        for branch, node, _ in lines_of(tree)
    ]
    assert lines == [
        "score_0101-0000-00000c.eval_results",
        "└─ convert_0101-0000-00000b.checkpoint_megatron",
        "   └─ prune_0101-0000-00000a.checkpoint_hf",
        f"      └─ {HUB}",
    ]
    dot = as_dot(tree)
    assert dot.count(" -> ") == 3 and f'"checkpoint_hf {HUB}" -> "prune_0101-0000-00000a.checkpoint_hf";' in dot


def test_an_input_that_was_replaced_is_not_taken_for_what_lies_there_now(chain: dict[str, Record], home: Path) -> None:
    """The run that is recorded with its digest is the parent; where it was removed, it is named and no other."""
    (home / "runs" / "prune_0101-0000-00000a" / "run.json").unlink()
    run(home, "other_0101-0000-00000e", (), [], 0).artifact("checkpoint_hf", chain["prune"].dir / "checkpoint_hf")
    done = Shell()("artifacts", "lineage", "00000c")
    assert "other_" not in done.stdout and "by prune_0101-0000-00000a" in done.stdout, done.stdout


def test_a_circle_in_changed_records_ends(chain: dict[str, Record]) -> None:
    prune, convert = chain["prune"], chain["convert"]
    row = {"type": "checkpoint_hf", "name": str(convert.dir / "checkpoint_megatron"), "run": "convert_0101-0000-00000b"}
    prune.update(inputs=[row], started_at="2026-01-01T09:00:00.000Z")
    assert Shell()("artifacts", "lineage", "00000c").exit_code == 0


def test_what_made_a_path_is_told_by_the_run_directory_it_lies_in(chain: dict[str, Record], tmp_path: Path) -> None:
    path, digest = chain["prune"].dir / "checkpoint_hf", chain["prune"].values["outputs"][0]["digest"]
    made = {"run": "prune_0101-0000-00000a", "digest": digest}
    (tmp_path / "link").symlink_to(path)
    assert made_by(path) == made_by(path / "deep") == made_by(tmp_path / "link") == made_by(path, digest) == made
    assert made_by(path, "sha256:other") == made_by(path.parent / "logs") == made_by(Path("relative")) == {}
    (path.parent / "run.json").write_text("{")
    assert made_by(path) == {}


def test_the_commands_list_show_and_draw(chain: dict[str, Record]) -> None:
    shell = Shell()
    listed = shell("artifacts").stdout.splitlines()
    assert len(listed) == 4 and listed[0].startswith("prune_0101-0000-00000a.checkpoint_hf ")
    assert len(shell("artifacts", "eval_results").stdout.splitlines()) == 2
    wrong = shell("artifacts", "eval_result")
    assert wrong.exit_code == 2 and "Did you mean eval_results?" in wrong.stderr
    shown = shell("artifacts", "show", "00000b").stdout
    assert "by prune_0101-0000-00000a" in shown and "in 2 files" in shown
    assert shell("artifacts", "lineage", "00000b", "--dot").stdout.startswith("digraph lineage {")
    rows = data_of(shell("artifacts", "--json").stdout)["artifacts"]
    assert [row["here"] for row in rows] == [True] * 4
    (row,) = data_of(shell("artifacts", "show", "00000b", "--json").stdout)["artifacts"]
    assert row["made_by"]["inputs"][0]["run"] == "prune_0101-0000-00000a"
    (tree,) = data_of(shell("artifacts", "lineage", "00000b", "--json").stdout)["artifacts"]
    assert tree["parents"][0]["reference"] == "prune_0101-0000-00000a.checkpoint_hf"
    (row,) = data_of(shell("artifacts", "verify", "00000b", "--json").stdout)["artifacts"]
    assert json.dumps(row) and row["state"] == "intact"
    assert "Example: nemo experiment artifacts" in " ".join(shell("artifacts", "--help").stdout.split())


def test_a_folder_that_may_not_be_looked_at_takes_nothing_else_away(chain: dict[str, Record]) -> None:
    """Root may look at everything: a name that is too long stands for it."""
    record = chain["convert"]
    odd = [{"type": "checkpoint_hf", "path": "/" + "x" * 5000, "bytes": 1, "files": 1, "digest": "sha256:aa"}]
    record.update(outputs=[*record.values["outputs"], *odd], versions="x", git=[1])
    shell = Shell()
    rows = data_of(shell("artifacts", "--json").stdout)["artifacts"]
    assert [row["here"] for row in rows].count(False) == 1 and len(rows) == 5
    shown = shell("artifacts", "show", "00000b")
    assert shown.exit_code == 0 and "cannot be looked at" in shown.stdout
    assert shell("artifacts", "verify", "00000b").exit_code == 1


@pytest.mark.parametrize("kind", ["a link to nothing", "a socket", "a linked folder", "a loop"])
def test_what_is_no_file_is_seen_too(
    kind: str, chain: dict[str, Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = only("00000b")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "w").write_text("1")
    if kind == "a socket":
        monkeypatch.chdir(artifact.path)  # its path is too long for a socket
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("odd")
    else:
        target = {
            "a link to nothing": "/nowhere",
            "a linked folder": tmp_path / "shards",
            "a loop": Path(artifact.path),
        }
        (Path(artifact.path) / "odd").symlink_to(target[kind])
    found = verify(artifact)
    assert (found.state, found.extra) == ("damaged", ("odd/w" if kind == "a linked folder" else "odd",))


def test_what_may_not_be_read_is_no_damage(chain: dict[str, Record], monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    artifact = only("00000b")
    monkeypatch.setattr(os, "scandir", closed)  # root may read everything
    with pytest.raises(PermissionError):
        verify(artifact)


def test_equal_contents_are_told_apart_by_where_they_lay(home: Path) -> None:
    runs = [run(home, f"made_0101-0000-00000{number}", (), [], number) for number in (1, 2)]
    outputs = [
        {"type": "data", "path": f"/nowhere/{record.dir.name}", "bytes": 1, "digest": "sha256:aa"} for record in runs
    ]
    for record, output in zip(runs, outputs, strict=True):
        record.update(outputs=[output])
    run(
        home,
        "used_0101-0000-000003",
        ("eval_results",),
        [{"type": "data", "name": outputs[0]["path"], "digest": "sha256:aa"}],
        3,
    )
    assert "made_0101-0000-000001.data" in Shell()("artifacts", "lineage", "latest:used").stdout


def test_a_diamond_is_told_once(home: Path) -> None:
    """Each run reads the one before twice: a tree of it would be of 2**20 lines."""
    before: list[dict[str, Any]] = []
    for number in range(20):
        made = run(home, f"made_0101-0000-0000{number:02}", ("checkpoint_hf",), before * 2, number)
        before = [{"type": "checkpoint_hf", "name": str(made.dir / "checkpoint_hf"), "run": made.dir.name}]
    shell = Shell()
    lines = shell("artifacts", "lineage", "made_0101-0000-000019").stdout.splitlines()
    assert len(lines) == 39 and sum("(see above)" in line for line in lines) == 18
    assert shell("artifacts", "lineage", "made_0101-0000-000019", "--dot").stdout.count(" -> ") == 19
    assert len(shell("artifacts", "lineage", "made_0101-0000-000019", "--json").stdout) < 60_000


def test_an_interrupted_reading_ends_at_once(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(40 << 30)  # no byte of it is on a disk

    def interrupt(read: int) -> None:
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        content_of(tmp_path, interrupt)
    assert time.monotonic() - began < 5


def test_a_picture_of_lineage_draws_each_thing_once(chain: dict[str, Record], home: Path) -> None:
    kinds = (("score", "eval_results"), ("prune", "checkpoint_hf"))
    both = [
        {"type": kind, "name": str(chain[name].dir / kind), "run": chain[name].values["id"]} for name, kind in kinds
    ]
    hub = {"type": "checkpoint_hf", "name": "a<b>&'\"\x1b\uffff\u6f22/" + "x" * 90, "revision": "0123456789abcdef" * 2}
    run(home, "export_0101-0000-00000e", ("checkpoint_hf",), [*both, hub], 4)
    tree = traced(only("00000e"), artifacts_of(all_runs()))
    drawn = ElementTree.fromstring(as_svg([tree]).encode())  # and not only HTML
    texts = ["".join(one.itertext()) for one in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("prune_0101-0000-00000a") == 1 and "hub commit 0123456789ab" in texts
    assert any(text.startswith("a<b>&'\"\\x1b") for text in texts) and max(map(len, texts)) <= 34
    nodes, edges = graph_of([tree])
    assert len(nodes) == 6 and len(edges) == 6
    shell = Shell()
    done = shell("artifacts", "lineage", "00000e", "--svg", "-o", str(home / "x.svg"))
    assert (done.exit_code, done.stdout) == (0, "") and (home / "x.svg").read_text().startswith("<svg ")
    assert shell("artifacts", "lineage", "00000e", "--svg", "-o", str(home / "x.svg")).exit_code == 2
    for words in (("--svg", "--json"), ("--dot", "--svg"), ("-o", str(home / "y.svg"))):
        refused = shell("artifacts", "lineage", "00000e", *words)
        assert refused.exit_code == 2 and "contradiction" in refused.stderr and not (home / "y.svg").exists()


def test_an_artifact_is_taken_along_whole(chain: dict[str, Record], tmp_path: Path) -> None:
    shell, out = Shell(), tmp_path / "out put"
    done = shell("artifacts", "export", "00000a.checkpoint_hf", "-o", str(out))
    assert done.exit_code == 0, done.stderr
    assert f"hf upload ORG/NAME '{out}'" in done.stdout and "lineage.json" in done.stdout
    source = chain["prune"].dir / "checkpoint_hf"
    assert {file: (out / file).read_bytes() for file in ("weights", "deep/config.json")} == {
        file: (source / file).read_bytes() for file in ("weights", "deep/config.json")
    }
    told = json.loads((out / "lineage.json").read_text())
    assert (told["recipe"], told["digest"]) == ("prune", only("00000a.checkpoint_hf").digest)
    assert [one["name"] for one in told["parents"]] == [HUB]
    card = (out / "README.md").read_text()
    assert f"base_model: {HUB}" in card
    assert str(tmp_path) not in card and str(tmp_path) not in json.dumps(told)
    again = shell("artifacts", "export", "00000a.checkpoint_hf", "-o", str(out), "--json")
    assert again.exit_code == 2 and "output_exists" in again.stderr
    inside = shell("artifacts", "export", "00000a.checkpoint_hf", "-o", str(source / "deep" / "mine"))
    assert inside.exit_code == 2 and not (source / "deep" / "mine").exists()
    assert "several_artifacts" in shell("artifacts", "export", "00000a", "-o", str(tmp_path / "x")).stderr


@pytest.mark.parametrize("harm", ["changed", "missing", "gone", "elsewhere"])
def test_what_is_not_whole_is_not_taken_along(harm: str, chain: dict[str, Record], tmp_path: Path) -> None:
    source, out = chain["prune"].dir / "checkpoint_hf", tmp_path / "out" / "mine"
    if harm == "changed":
        (source / "weights").write_bytes(b"x")
    elif harm == "missing":
        (source / "weights").unlink()
    elif harm == "gone":
        source.rename(tmp_path / "moved")
    else:
        profile = SlurmProfile(account="a", partition="p", host="login", user="me", image="x")
        submitted(RunFolder(dir=chain["prune"].dir), profile, "cluster", settled=True)
    done = Shell()("artifacts", "export", "00000a.checkpoint_hf", "-o", str(out), "--json")
    error = json.loads(done.stdout)["error"]
    named = {"gone": "artifact_gone", "elsewhere": "artifact_elsewhere"}.get(harm, "artifact_damaged")
    assert (done.exit_code, error["name"]) == (1, named)
    assert ("weights" in error["message"]) == (harm in ("changed", "missing"))
    assert not out.exists() and not (out.parent.exists() and list(out.parent.iterdir()))
