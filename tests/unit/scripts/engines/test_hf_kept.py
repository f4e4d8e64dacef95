"""What attempts leave until the checkpoints stand."""

from pathlib import Path

import pytest

from scripts.engines.hf.kept import bit_sum, forget, rescued
from scripts.run.files import staged
from scripts.run.problems import JobError
from scripts.run.record import Record, read_record


@pytest.fixture
def record(tmp_path: Path) -> Record:
    record = Record.submit(tmp_path / "run")
    record.update(state="running")
    return record


def failed(record: Record, place: Path) -> Record:
    """An attempt that made `place` and did not come to its end; what the next one is given."""
    with pytest.raises(JobError), staged(place) as partial, rescued(record) as whole:
        (partial / "weights").write_text("w")
        whole[partial] = place
        raise JobError("export_failed", "no.", "Take another.")
    record.finish("failed", None)
    return Record.reopen(record.dir)


def test_what_was_calibrated_outlives_a_failed_verification(record: Record, tmp_path: Path) -> None:
    for kept in ("mto.unverified", "mto.unverified-2"):
        with (
            pytest.raises(JobError, match=f"export_failed: no. What was calibrated is kept, unverified: .*{kept}"),
            staged(tmp_path / "mto") as partial,
            rescued(record) as whole,
        ):
            (partial / "weights").write_text("w")
            whole[partial] = tmp_path / "mto"
            raise JobError("export_failed", "no.", "Take another.")
        assert (tmp_path / kept / "weights").read_text() == "w"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mto.unverified", "mto.unverified-2", "run"]


def test_what_is_not_whole_is_not_kept(record: Record, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="not_written"), staged(tmp_path / "mto") as partial, rescued(record):
        (partial / "half").write_text("w")
        raise JobError("not_written", "no.")
    assert list(tmp_path.iterdir()) == [record.dir]


def test_a_defect_tells_where_too(record: Record, tmp_path: Path) -> None:
    with pytest.raises(KeyError) as caught, staged(tmp_path / "mto") as partial, rescued(record) as whole:
        whole[partial] = tmp_path / "mto"
        raise KeyError("x")
    assert "mto.unverified" in caught.value.__notes__[0]


@pytest.mark.parametrize("inside", [True, False])
def test_what_is_verified_takes_the_place_of_what_was_not(record: Record, tmp_path: Path, inside: bool) -> None:
    """An attempt's own folder goes aside with it."""
    place = (record.dir if inside else tmp_path) / "mto"
    for _ in range(2):
        record = failed(record, place)
    left = [Path(one["path"]).name for one in read_record(record.dir)["unverified"]]
    assert left == ["mto.unverified", "mto.unverified" if inside else "mto.unverified-2"]
    assert len(list(tmp_path.rglob("mto.unverified*"))) == 2
    forget(record, [place])
    assert not list(tmp_path.rglob("mto.unverified*"))


def test_what_is_somebody_s_own_stays(record: Record, tmp_path: Path) -> None:
    place = tmp_path / "mto"
    for name in ("mto.unverified", "mto.unverified-notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text("of another run")
    for _ in range(2):
        record = failed(record, place)
    (tmp_path / "mto.unverified-2" / "notes").write_text("worth a look")
    forget(record, [place])
    assert sorted(path.name for path in tmp_path.glob("mto*")) == [
        *("mto.unverified", "mto.unverified-2", "mto.unverified-notes")
    ]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mto.unverified-4").symlink_to(tmp_path / "elsewhere")
    forget(record, [place])
    assert (tmp_path / "mto.unverified-4").is_symlink()


@pytest.mark.parametrize("shape", [(), (3,), (5, 7), (8, 16)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64", "uint8", "float8_e4m3fn"])
def test_a_sum_of_weights_is_of_each_of_their_bits_wherever_they_lie(shape: tuple[int, ...], dtype: str) -> None:
    torch = pytest.importorskip("torch")
    weight = torch.randint(1, 100, shape).to(getattr(torch, dtype))
    bits, first = weight.reshape(-1).view(torch.uint8), bit_sum(weight)
    padded = torch.empty(weight.numel() + 1, dtype=weight.dtype)
    padded[1:] = weight.reshape(-1)
    assert bit_sum(padded[1:].view(shape)) == first
    if len(shape) == 2:
        assert bit_sum(weight.T.contiguous().T) == first
    for at in range(len(bits)):
        bits[at] ^= 1
        assert bit_sum(weight) != first
        bits[at] ^= 1
