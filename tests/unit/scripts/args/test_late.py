from pathlib import Path

import pytest

from scripts.args.interpolation import UnresolvedError, resolve, run_tag
from scripts.run.problems import JobError

HOSTILE = [
    "a b",
    "'q'",
    '"q"',
    "line\nbreak",
    "$(touch /tmp/x)",
    "`id`",
    "$HOME",
    "ünïcode 漢字",
    "{a}",
    "???",
    "a;b|c&d",
    "%s",
    "\\",
    "-x",
    "null",
    "1e3",
]


def test_node_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEMO_RUN_DIR", raising=False)
    value = "${oc.env:NEMO_RUN_DIR,${oc.env:PWD}/output}/optimize/${run_tag}"
    assert resolve({"a": value}, run_dir=tmp_path, run_tag="m-fp8") == {"a": f"{tmp_path}/optimize/m-fp8"}
    import os

    assert "NEMO_RUN_DIR" not in os.environ


@pytest.mark.parametrize("text", HOSTILE)
def test_everything_else_passes_untouched(tmp_path: Path, text: str) -> None:
    values = {"s": text, "n": 3, "none": None, "l": [text], "d": {"k": text}}
    assert resolve(values, run_dir=tmp_path, run_tag="t") == values


@pytest.mark.parametrize("text", ["${oc.env:NO_SUCH_VARIABLE_HERE}", "${nope}", "${", "${oc.env:"])
def test_what_does_not_resolve_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(JobError, match="unresolved_value") as caught:
        resolve({"export_dir": text}, run_dir=tmp_path, run_tag="t")
    assert "export_dir=" in caught.value.cause


@pytest.mark.parametrize(
    ("text", "cause", "remedy"),
    [
        ("${oc.env:}", "${oc.env:} names nothing", "${oc.env:NAME}"),
        ("${artifact:}", "${artifact:} names nothing", "${artifact:RUN}"),
        ("${artifact:x", "is not closed", "Close it with }"),
        ("${oc.env:A,${oc.env:B,c}", "is not closed", "Close it with }"),
    ],
)
def test_a_reference_that_is_none_says_what_is_wrong(text: str, cause: str, remedy: str, tmp_path: Path) -> None:
    with pytest.raises(UnresolvedError) as caught:
        resolve({"a": text, "b": ["c", "${nope}"]}, run_dir=tmp_path, run_tag="t")
    first, second = caught.value.problems
    assert (first.key, first.value, second.key) == ("args.a", text, "args.b[1]")
    assert cause in first.cause and remedy in first.remedy


@pytest.mark.parametrize(
    ("model", "variant", "tag"),
    [
        ("Qwen/Qwen3-8B", "fp8", "Qwen3-8B-fp8"),
        ("tiny:qwen3", "nvfp4", "tiny-qwen3-nvfp4"),
        ("/models/my model/", "FP8_DEFAULT_CFG", "my-model-FP8_DEFAULT_CFG"),
        ("./m", "general/ptq/fp8_default-kv_fp8.yaml", "m-fp8_default-kv_fp8"),
        ("../..", "..", "model"),
    ],
)
def test_run_tag(model: str, variant: str, tag: str) -> None:
    assert run_tag(model, variant) == tag
    assert "/" not in run_tag(model, variant)


def test_the_working_directory_is_known_where_no_shell_says_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """cron and service managers set no PWD, which the default of every output names."""
    monkeypatch.delenv("PWD", raising=False)
    monkeypatch.chdir(tmp_path)
    value = "${oc.env:NEMO_RUN_DIR,${oc.env:PWD}/output}/${oc.env:PWD}"
    assert resolve({"out": value}, run_dir=Path("/r"), run_tag="t") == {"out": f"/r/{tmp_path}"}
