"""What a search tries next, and what it takes in the end: of made-up figures."""

import pytest

from scripts.engines.hf.best import decisions, size
from scripts.engines.hf.best.decisions import Space, Trial, Unit
from scripts.engines.hf.best.trials import Tried, taken_up
from scripts.evaluation.verdict import Limits
from scripts.formats import FORMATS, LEFT, format_of

BYTES = {"fp8": 100, "int4_awq": 50, LEFT: 200}
#: By format, what each unit adds to the divergence: the first unit suffers most.
NOISE = {"fp8": [0.004, 0.001, 0.001, 0.001], "int4_awq": [0.040, 0.008, 0.004, 0.002]}
UNITS = tuple(Unit(layers=(f"layer{at}",), sizes=BYTES) for at in range(4))
SPACE = Space(units=UNITS, noise=NOISE, options=("fp8", "int4_awq", LEFT), fixed=1000, most=1800)
LIMITS = Limits(max_kl=0.02)


def trial(number: int, formats: tuple[str, ...], stage: decisions.Stage = "mixtures", **facts: float) -> Trial:
    """As a fake measure has it: sizes and noise add up."""
    figures = facts or {"size": SPACE.fixed + sum(map(BYTES.__getitem__, formats)), "kl": SPACE.predicted(formats)}
    return Trial(
        number=number,
        stage=stage,
        formats=formats,
        size=int(figures["size"]),
        kl=figures["kl"],
        calibrated=8,
        scored=8,
        increase=figures["kl"],
        agreement=0.95,
        seconds=1.0,
    )


def alone(sizes: dict[str, tuple[int, float]]) -> list[Trial]:
    return [trial(at, (name,) * 4, "formats", size=size, kl=kl) for at, (name, (size, kl)) in enumerate(sizes.items())]


def test_the_better_half_is_what_no_other_beats_then_what_only_they_beat() -> None:
    six = {
        **{"fp8": (340, 0.0013), "nvfp4": (239, 0.0136), "int8_sq": (346, 0.0014), "fp8_blockwise": (339, 0.0006)},
        **{"int4_awq": (232, 0.0089), "w4a8_awq": (233, 0.0099)},
    }
    assert decisions.halved(alone(six)) == ["fp8_blockwise", "int4_awq", "fp8"]
    assert decisions.halved(alone({"fp8": (340, 0.1), "nvfp4": (339, 0.05)})) == ["fp8", "nvfp4"]


def test_a_mixture_lifts_what_suffers_most_within_its_bytes() -> None:
    assert decisions.mixture(UNITS, NOISE, 200, ("fp8", "int4_awq")) == ("int4_awq",) * 4
    assert decisions.mixture(UNITS, NOISE, 250, ("fp8", "int4_awq")) == ("fp8", *("int4_awq",) * 3)
    assert decisions.mixture(UNITS, NOISE, 399, ("fp8", "int4_awq")) == (*("fp8",) * 3, "int4_awq")
    assert decisions.mixture(UNITS, NOISE, 500, ("fp8", "int4_awq", LEFT)) == (LEFT, *("fp8",) * 3)
    assert decisions.mixture(UNITS, NOISE, 0, ("fp8", "int4_awq")) == ("int4_awq",) * 4  # the smallest there is


def test_the_first_guess_is_the_smallest_that_should_pass() -> None:
    guess = decisions.first_guess(SPACE, 0.02)
    assert guess is not None and SPACE.predicted(formats := SPACE.formats(guess)) <= 0.02
    assert sum(BYTES[name] for name in formats) == 250
    assert decisions.first_guess(SPACE, 1e-9) is None


def test_mixtures_are_looked_for_below_what_passes_alone() -> None:
    some = [trial(1, ("fp8",) * 4), trial(2, ("int4_awq",) * 4)]
    assert decisions.room(some, LIMITS, 1800) == 1400
    assert decisions.room(some, Limits(max_kl=0.02, max_size=0.7), 1800) == pytest.approx(1260)
    assert decisions.room(some, Limits(max_size=0.7), 1800) == pytest.approx(1260)
    assert decisions.room(some, Limits(max_kl=1e-9), 1800) == 1800


def test_optuna_proposes_the_same_after_the_same_trials() -> None:
    pytest.importorskip("optuna")
    tried: list[Trial] = []
    for number in range(9):
        asked = decisions.proposal(tried, SPACE, LIMITS, 1800, seed=3)
        assert asked == decisions.proposal(list(tried), SPACE, LIMITS, 1800, seed=3)
        least, most = SPACE.bounds()
        assert least <= asked["bytes"] <= most and set(asked["of"].split("+")) <= {*SPACE.options}
        formats = SPACE.formats(asked)
        assert set(formats) != {LEFT}
        tried.append(Trial(**{**vars(trial(number, formats)), "asked": asked}))
    assert len({one.formats for one in tried}) > 3
    whole = [trial(90, ("fp8",) * 4, "halved"), trial(91, ("int4_awq",) * 4, "halved")]
    best = decisions.winner([*whole, *tried], LIMITS, 1800)
    assert best is not None and best.kl <= 0.02 and best.size < whole[0].size


def test_the_smallest_that_passes_wins_and_by_size_alone_what_loses_least() -> None:
    some = [trial(1, ("fp8",) * 4), trial(2, ("fp8", "fp8", "int4_awq", "int4_awq")), trial(3, ("int4_awq",) * 4)]
    best = decisions.winner(some, LIMITS, 1800)
    assert best is not None and best.number == 2
    best = decisions.winner(some, Limits(max_size=0.77), 1800)
    assert best is not None and best.number == 2
    few = [trial(1, ("fp8",) * 4, "formats")]
    assert decisions.winner(few, LIMITS, 1800) is None  # few samples decide nothing
    assert decisions.winner(some, Limits(max_kl=1e-6), 1800) is None
    assert decisions.nearest(some, Limits(max_kl=1e-6), 1800).number == 1
    assert not decisions.passes(some[0], Limits(min_agreement=0.99), 1800)


def test_formats_by_patterns_the_last_that_matches_counts() -> None:
    given = {"int4_awq": ["*.mlp.*"], LEFT: ["model.layers.0.*"]}
    assert format_of("model.layers.1.mlp.down_proj", "fp8", given) == "int4_awq"
    assert format_of("model.layers.0.mlp.down_proj", "fp8", given) == LEFT
    assert format_of("model.layers.10.self_attn.o_proj", "fp8", given) == "fp8"


def test_every_format_has_a_size() -> None:
    sizes = {name: sum(width for _, width, _ in size._tensors(name, 256, 512, False)) for name in FORMATS}
    assert all(sizes.values())
    with pytest.raises(KeyError):
        list(size._tensors("none", 1, 1, True))


def test_trials_are_taken_up_where_figures_would_be_the_same(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from scripts.run.record import Record

    record = Record.submit(tmp_path / "run")
    record.update(state="running")
    tried = Tried(folder=record.dir / "search", of={"model": "a"})
    tried.add(trial(1, ("fp8",) * 4))
    tried.noise["fp8"] = [0.1]
    tried.write()
    record.finish("failed")
    again = Record.reopen(record.dir)
    found = taken_up(again, {"model": "a"})
    assert found.trials == tried.trials and found.noise == tried.noise and found.find("mixtures", ("fp8",) * 4)
    assert taken_up(again, {"model": "b"}).trials == []


def test_autoquantize_is_asked_for_sizes_between_what_fails_and_what_passes() -> None:
    pytest.importorskip("optuna"), pytest.importorskip("pulp")
    space = Space(**{**vars(SPACE), "scores": {"fp8": [0.1, 3.0, 0.1, 0.1], "int4_awq": [1.0, 90.0, 1.0, 1.0]}})
    tried: list[Trial] = []
    for number in range(6):
        asked = decisions.proposal(tried, space, LIMITS, 1800, seed=3)
        formats = space.formats(asked)
        stage: decisions.Stage = asked["by"]
        tried.append(Trial(**{**vars(trial(number, formats, stage)), "asked": asked}))
    assert [one.stage for one in tried[:5]] == ["mixtures", *["auto_quantize"] * 4]
    assert [one.asked["bytes"] for one in tried[1:5]] == [1499.5, 1649.25, 1549.75, 1499.75]
    assert [decisions.passes(one, LIMITS, 1800) for one in tried[1:5]] == [False, True, True, False]
    assert tried[1].formats == ("int4_awq", LEFT, "fp8", "fp8")  # what AutoQuantize says suffers most is left
    only = decisions.asked_of_auto_quantize([], space, Limits(max_size=0.8), 1800)
    assert only == {"bytes": 1799, "of": "fp8+int4_awq+none", "by": "auto_quantize"}
