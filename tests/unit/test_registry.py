"""Checks are functions: one that is added is made, one that stands twice is refused."""

from collections.abc import Iterator

import pytest

from recipes.experiment.job import Job
from recipes.preflight.subjects import preflight
from scripts.run.problems import Problem
from scripts.run.registry import REGISTRY, check
from tests.jobs import job_of


def odd_sample_count(job: Job) -> Iterator[Problem]:
    if job.get("samples") % 2:
        yield Problem(key=job.key("samples") or "", value=job.get("samples"), cause="it is odd")


def test_a_check_is_one_function() -> None:
    try:
        check("odd_sample_count", roles=("samples",), algorithms=("quantize",), severity="warning")(odd_sample_count)
        found = preflight(job_of("quantize_tiny", args__calib_size=7)).problems
        assert [(one.key, one.severity) for one in found if one.name == "odd_sample_count"] == [
            ("args.calib_size", "warning")
        ]
        assert "odd_sample_count" not in {one.name for one in preflight(job_of("quantize_tiny")).problems}
        with pytest.raises(ValueError, match="two checks are named odd_sample_count"):
            check("another")(odd_sample_count)
    finally:
        REGISTRY.pop("odd_sample_count", None)


def test_a_constraint_of_an_argument_is_a_check_by_itself() -> None:
    found = preflight(job_of("distill_mock", args__lr=0.0, args__kd_loss_scale=-1.0)).problems
    ranges = {one.key for one in found if one.name == "out_of_range"}
    assert {"args.lr", "args.kd_loss_scale"} <= ranges
