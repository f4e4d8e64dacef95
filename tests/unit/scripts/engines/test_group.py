"""Ranks that wait for one another: whoever will not come is named, and nobody waits for long."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from scripts.engines.hf import group  # noqa: E402
from scripts.engines.hf.group import Group  # noqa: E402
from scripts.run import identity  # noqa: E402
from scripts.run.files import write_json  # noqa: E402
from scripts.run.problems import JobError  # noqa: E402


def test_alone_everything_is_done_at_once() -> None:
    alone = Group()
    assert (alone.leads, alone.same(3), alone.gathered(3), alone.collected(3)) == (True, 3, [3], [3])
    assert alone.share([[1], [2]]) == [[1], [2]]


def test_passes_are_dealt_out_whole() -> None:
    passes = [[0, 1], [2], [3], [4], [5]]
    shares = [Group(rank, 3).share(passes) for rank in range(3)]
    assert shares == [[[0, 1], [4]], [[2], [5]], [[3]]]
    assert [Group(rank, 8).share(passes) for rank in (4, 5)] == [[[5]], []], "fewer than ranks"


def test_in_step_every_rank_makes_as_many_passes() -> None:
    passes = [[0, 1], [2], [3], [4]]
    for count, world in ((4, 3), (4, 4), (1, 4), (3, 2)):
        ranks = [Group(rank, world, in_step=True) for rank in range(world)]
        made = [[*one.share(passes[:count]), *one.again(passes[:count])] for one in ranks]
        assert {len(each) for each in made} == {-(-count // world)}, (count, world)
        assert all(each[-1] == passes[count - 1] for each in made if len(each) > len(passes[:count]) // world)
    assert Group(2, 3).again(passes) == [], "who computes alone waits for nobody"


def test_a_rank_that_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "WAIT_SECONDS", 0.05)
    store = torch.distributed.HashStore()
    store.set("1/2", "")
    with pytest.raises(JobError, match=r"ranks \[1\] did not get as far as rank 0") as error:
        Group(0, 3, store).meet()
    assert error.value.name == "rank_missing"


def test_whoever_waits_hears_of_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "_LOOK_SECONDS", 0.0)
    waiting = Group(0, 2, torch.distributed.HashStore(), lambda: JobError("out_of_memory", "rank1: no."))
    with pytest.raises(group._LostError):
        waiting.meet()


def test_of_ranks_that_are_gone_their_words_count_first(tmp_path: Path) -> None:
    def failure() -> JobError | None:
        return group._failure(tmp_path, here["started"], 2)

    here = identity.identity()
    write_json(group._mark(tmp_path, 0), here)
    assert failure() is None
    write_json(group._mark(tmp_path, 1), {**here, "ticks": 1})  # another process had that id
    assert (found := failure()) and found.name == "rank_killed" and f"process {here['pid']}" in found.cause
    write_json(tmp_path / "logs" / "rank1.error.json", {"name": "no_cuda", "message": "none.", "remedy": ""})
    assert (found := failure()) and (found.name, found.cause) == ("no_cuda", "rank1: none.")
