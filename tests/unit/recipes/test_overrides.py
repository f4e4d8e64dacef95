import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes import find, quantize_fp8
from recipes.catalogue import FAMILIES, config_of
from recipes.values import field_types, load_yaml, merge, parse_words, set_value
from scripts.run.problems import ProblemsError

STRING_KEYS = [key for key, kind in field_types(quantize_fp8()).items() if kind is str or kind == str | None]


def _get(partial: Any, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(partial, section), name) if name else getattr(partial, section)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("args.calib_size", "64", 64),
        ("args.trust_remote_code", "true", True),
        ("args.compress", "no", False),
        ("args.export_kv_cache_quant", "nvfp4_rotate", "nvfp4_rotate"),
        ("args.hf_model_id", "1e3", "1e3"),
        ("args.calib_dataset", "null", None),
        ("args.hf_model_id", "null", "null"),
        ("torchrun.nproc_per_node", "4", 4),
        ("script.flag_style", "underscore", "underscore"),
        ("engine", "hf", "hf"),
        ("extra_args", '["--a", "b c"]', ["--a", "b c"]),
    ],
)
def test_text_becomes_the_field_s_type(key: str, text: str, value: Any) -> None:
    recipe = quantize_fp8()
    assert set_value(recipe, key, text) == []
    assert _get(recipe, key) == value


@pytest.mark.parametrize(
    ("recipe", "key", "right"),
    [
        ("quantize_fp8", "args.calib_size", "a whole number"),
        ("quantize_fp8", "torchrun.nnodes", "a whole number"),
        ("quantize_fp8", "args.compress", "true or false"),
        ("evaluate", "args.tasks", "a list, [a, b]"),
        ("probe", "args.seconds", "a number"),
    ],
)
@pytest.mark.parametrize("value", ["", "null", None])
def test_what_is_left_empty_is_told_what_would_be_right(recipe: str, key: str, right: str, value: str | None) -> None:
    (problem,) = set_value(find(recipe).build(), key, value, strict=value is None)
    assert problem.cause == f"is empty.  Write {right}, or leave the key out."


@pytest.mark.parametrize(
    ("key", "text", "remedy"),
    [
        ("args.calib_sze", "64", "args.calib_size"),
        ("arg.calib_size", "64", "args.calib_size"),
        ("args", "64", "args."),
        ("enginee", "hf", "engine"),
        ("args.calib_size.x", "64", "args.calib_size"),
        ("args.", "64", "args."),
    ],
)
def test_unknown_keys_name_the_nearest(key: str, text: str, remedy: str) -> None:
    (problem,) = set_value(quantize_fp8(), key, text)
    assert problem.name == "unknown_key"
    assert remedy in problem.remedy


def test_a_slip_in_a_section_s_name_is_known_and_no_choice_is_told_twice() -> None:
    (slip,), (other,) = (set_value(quantize_fp8(), key, "x", strict=True) for key in ("executr", "zzzzzzzz"))
    assert slip.remedy.startswith("Did you mean executor?")
    choices = other.remedy.removeprefix("Choices: ").removesuffix(".").split(", ")
    assert len(choices) == len(set(choices)) and {"engine", "extra_args"} <= set(choices)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("args.calib_size", "abc"),
        ("args.calib_size", "1.5"),
        ("args.calib_size", "true"),
        ("args.calib_size", ""),
        ("args.compress", "maybe"),
        ("args.export_kv_cache_quant", "fp7"),
        ("args.dtype", "bf16"),
        ("engine", "megatron"),
        ("extra_args", "[1"),
        ("extra_args", "word"),
    ],
)
def test_wrong_values_change_nothing(key: str, text: str) -> None:
    recipe = quantize_fp8()
    before = _get(recipe, key)
    (problem,) = set_value(recipe, key, text)
    assert (problem.name, problem.key, problem.value) == ("wrong_value", key, text)
    assert _get(recipe, key) == before


@given(text=st.text())
@pytest.mark.parametrize("key", STRING_KEYS)
def test_any_text_reaches_a_string_field_unchanged(key: str, text: str) -> None:
    recipe = quantize_fp8()
    assert set_value(recipe, key, text) == []
    expected = None if text in ("null", "None", "~") and key != "args.hf_model_id" else text
    if key in ("args.hf_model_id", "args.export_quant_cfg", "args.prompts"):
        expected = text
    assert _get(recipe, key) == expected


@given(words=st.lists(st.text(min_size=1), max_size=5))
def test_words_never_raise(words: list[str]) -> None:
    parsed, problems = parse_words(words)
    assert len(problems) <= len(words)
    assert isinstance(parsed.recipe, dict)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("x.yaml", "Write --config x.yaml."),
        ("\u0430rgs.calib_size=3", "CYRILLIC SMALL LETTER A"),
        ("args.\u0441alib_size=3", "CYRILLIC SMALL LETTER ES"),
        ("args.calib\u2010size=3", "HYPHEN"),
        ("fp8", "KEY=VALUE"),
    ],
)
def test_a_word_that_is_no_override_says_what_to_type(word: str, said: str) -> None:
    (problem,) = parse_words([word])[1]
    assert problem.name == "not_an_override" and said in str(problem)


def test_words_are_sorted_by_whom_they_address() -> None:
    parsed, problems = parse_words(
        ["run.executor=slurm", "executor.nodes=2", "args.a=b=c", "args.prompts=x\ny", "args.a=last"]
    )
    assert problems == []
    assert parsed.executor == "slurm"
    assert parsed.profile == {"nodes": "2"}
    assert parsed.recipe == {"args.a": "last", "args.prompts": "x\ny"}


def test_a_file_is_checked_like_words(tmp_path: Path) -> None:
    recipe = quantize_fp8()
    problems = merge(recipe, {"args": {"calib_size": 64, "prompts": 7, "calib_siz": 1}, "torchrun": 3, "argz": {}})
    assert recipe.args.calib_size == 64
    assert [(problem.name, problem.key) for problem in problems] == [
        ("wrong_value", "args.prompts"),
        ("unknown_key", "args.calib_siz"),
        ("wrong_value", "torchrun"),
        ("unknown_key", "argz"),
    ]
    problems = merge(recipe, {"args": {"calib_size": True}})
    assert problems, "YAML true is not the number 1"


@pytest.mark.parametrize(
    "content", ["a: [", "- 1\n- 2", "3", "1: 2", "\x00", "a: !!python/object/apply:os.system [id]"]
)
def test_files_that_are_no_config(tmp_path: Path, content: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(ProblemsError) as caught:
        load_yaml(config_of(FAMILIES["quantize"], str(path)))
    assert caught.value.problems[0].name == "unreadable_config"


def test_a_config_says_nothing_of_places() -> None:
    (problem,) = merge(quantize_fp8(), {"executor": "slurm"})
    assert problem.key == "executor" and "executor=NAME" in problem.remedy


def test_a_key_that_stands_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("summary: x\nargs:\n  calib_size: 3\n  tp: 1\n  calib_size: 4\n")
    with pytest.raises(ProblemsError, match="calib_size stands at line 3 and at line 5"):
        load_yaml(path)
    path.write_text("a: &a {x: 1, y: 2}\nargs: {<<: *a, x: 3}\nextra: [{x: 1}, {x: 1}]\n")
    assert load_yaml(path)["args"] == {"x": 3, "y": 2}, "a merged key may be said anew"


ENDLESS = {
    "aliases": "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)),
    "brackets": "a: " + "[" * 50_000,
    "braces": "a: " + "{a: " * 50_000,
    "steps": "\n".join(" " * n + "a:" for n in range(900)),
    "itself": "a: &a [*a]",
    "large": "a: '" + "x" * 60_000_000 + "'",
    "values": "a: [" + "x," * 400_000 + "]",
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_file_that_is_too_much_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(ENDLESS[kind])
    began = time.monotonic()
    with pytest.raises(ProblemsError) as caught:
        load_yaml(path)
    assert caught.value.problems[0].name == "unreadable_config"
    assert len(str(caught.value)) < 1000 and time.monotonic() - began < 5


def test_a_recipe_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "mine.yaml")
    with pytest.raises(ProblemsError, match="no regular file"):
        load_yaml(tmp_path / "mine.yaml")
    (tmp_path / "whole.yaml").write_text("summary: x")
    (tmp_path / "link.yaml").symlink_to("whole.yaml")
    assert load_yaml(tmp_path / "link.yaml") == {"summary": "x"}


@pytest.mark.parametrize("digits", [20, 400, 5000])
@pytest.mark.parametrize(
    "key", ["args.calib_size", "torchrun.nnodes", "args.prune_target_params", "args.config.train.lr"]
)
def test_a_number_of_many_digits(digits: int, key: str) -> None:
    name = {"args.prune_target_params": "prune", "args.config.train.lr": "qat"}.get(key, "quantize_fp8")
    number = "9" * digits
    text = set_value(find(name).build(), key, number)
    if key == "args.prune_target_params" and digits == 20:
        assert text == [], "a float"
        return
    assert [one.name for one in text] == ["wrong_value"]
    if digits < 4000:  # Python itself refuses to write more
        assert [one.name for one in set_value(find(name).build(), key, int(number), strict=True)] == ["wrong_value"]


@pytest.mark.parametrize(
    ("recipe", "key", "text", "meant"),
    [
        ("quantize_fp8", "args.calib_size", "1e3", "Write 1000."),
        ("quantize_fp8", "args.calib_size", "2k", "Write 2000."),
        ("quantize_fp8", "args.calib_size", "64.5", "Write 64."),
        ("quantize_fp8", "args.calib_size", "[8]", "Write 8."),
        ("quantize_fp8", "args.calib_size", "many", ""),
        ("prune", "args.prune_target_params", "6B", "Write 6e+09."),
        ("prune", "args.prune_target_params", "1.5b", "Write 1.5e+09."),
        ("evaluate", "args.tasks", "mmlu,gsm8k", "Write [mmlu,gsm8k]."),
        ("quantize_fp8", "extra_args", "--a,--b", "Write [--a,--b]."),
    ],
)
def test_a_value_of_another_type_says_how_to_write_it(recipe: str, key: str, text: str, meant: str) -> None:
    (problem,) = set_value(find(recipe).build(), key, text)
    assert problem.name == "wrong_value" and problem.cause.endswith(meant)
    assert bool(meant) == ("Write" in problem.cause)


def test_config_by_bare_name_or_path(tmp_path: Path) -> None:
    assert config_of(FAMILIES["quantize"], "nvfp4").name == "nvfp4.yaml"
    (tmp_path / "my_values.yaml").touch()
    with pytest.raises(ProblemsError, match=r"unknown_config .*Did you mean .*/my_values.yaml\?"):
        config_of(FAMILIES["quantize"], str(tmp_path / "my_value.yaml"))
    with pytest.raises(ProblemsError, match="nvfp4"):
        config_of(FAMILIES["quantize"], "nvfp")


def test_numbers_with_an_exponent_are_numbers_in_yaml_too() -> None:
    partial = find("prune").build()
    assert partial.args.prune_target_params == 6e9
    assert set_value(partial, "args.prune_target_params", "2.4e9") == []
    assert set_value(partial, "args.prune_export_config", "{hidden_size: 3072, x: 1e-5}") == []
    assert (partial.args.prune_target_params, partial.args.prune_export_config) == (
        2.4e9,
        {"hidden_size": 3072, "x": 1e-5},
    )


def test_a_longer_key_reaches_into_a_mapping() -> None:
    partial = find("qat").build()
    before = dict(partial.args.config["model"])
    assert set_value(partial, "args.config.train.train_iters", "5") == []
    assert set_value(partial, "args.config.optimizer.new.lr", "1e-6") == []
    assert partial.args.config["train"]["train_iters"] == 5
    assert partial.args.config["optimizer"]["new"] == {"lr": 1e-6}
    assert partial.args.config["model"] == before
    assert find("qat").build().args.config["train"]["train_iters"] == 1000, "the shipped recipe stays as it is"
    (problem,) = set_value(partial, "args.config.train.train_iters.more", "5")
    assert (problem.name, "train_iters is a value" in problem.cause) == ("wrong_value", True)
    (problem,) = set_value(partial, "args.confg.train.train_iters", "5")
    assert problem.name == "unknown_key"


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999"])
def test_a_number_is_finite(text: str) -> None:
    partial = find("prune_active").build()
    (problem,) = set_value(partial, "args.prune_target_params", text)
    assert (problem.name, problem.cause) == ("wrong_value", "input should be a finite number")


@pytest.mark.parametrize(
    ("recipe", "key", "value", "said"),
    [
        ("evaluate", "args.model_args", "x", "{gpu_memory_utilization: 0.8}"),
        ("quantize_fp8", "extra_args", "--flag", "extra_args=[--flag, value]"),
        ("distill", "args.data_paths", "{a: 1}", "[weight, prefix"),
    ],
)
def test_a_value_of_another_kind_is_shown_a_right_one(recipe: str, key: str, value: str, said: str) -> None:
    (problem,) = set_value(find(recipe).build(), key, value)
    assert said in problem.remedy and "Write a " in problem.cause


def test_a_text_that_is_a_list_in_yaml_is_told_what_it_is() -> None:
    (problem,) = set_value(find("quantize_fp8").build(), "args.prompts", ["a", "b"], strict=True)
    assert "separated by |" in problem.remedy


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("args:\n\ttp: 2\n", "line 2 is indented with a tab, and YAML takes spaces alone"),
        ("args:\n  a: 1\n\tb: 2\n", "line 3 is indented with a tab"),
        ("a: [1\n", "at its end, after line 1: while parsing a flow sequence"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed"),
        ("a: 1\na: 2", "the key a stands at line 1 and at line 2"),
    ],
)
def test_what_is_no_yaml_says_the_file_and_the_line(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(ProblemsError) as caught:
        load_yaml(file)
    (problem,) = caught.value.problems
    assert problem.value == file and problem.cause.startswith(said)
    assert "<unicode string>" not in str(problem)
