"""The words of a script's command line, against real argparse: what its parser gets is what the arguments are."""

import argparse
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from recipes.catalogue import RECIPES
from scripts.args.convert import MegatronToHfArgs
from scripts.args.meaning import ScriptArgs, doc, meanings
from scripts.args.megatron_lm import MlmMmluArgs, MlmPruneArgs, MlmQuantizeArgs
from scripts.args.prune import PruneArgs
from scripts.args.quantize import QuantizeArgs, QuantizeModelOptArgs, QuantizeVlmArgs
from scripts.engines.script.command import Argv, compose, flags_of
from scripts.engines.script.flags.interface import Flag, Interface, plain
from scripts.engines.script.flags.tables import interface_of, releases_of, scripts
from scripts.engines.script.locate import is_module
from scripts.formats import CONFIG_NAMES
from tests.testbed.standin import parser_of

HOSTILE = (
    *("", " ", "a b", "it's", '"quoted"', "new\nline", "tab\there", "$(touch x)", "`id`", "${HOME}", "a;b|c&d>e", "*"),
    *(
        "--tp",
        "--tp=2",
        "-1",
        "-x y",
        "-",
        "---",
        "=",
        "a=b",
        "=--tp",
        "%s%n",
        "\\",
        "\\n",
        "#",
        "~",
        "é漢字🙂",
        "\u202e",
    ),
    *("\x1b[31m", "\x7f", "None", "null", "true", "@file", "{}", "[1, 2]", "{{x}}"),
)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])).filter(lambda text: text != "--")


@dataclass(frozen=True, kw_only=True)
class Args(ScriptArgs):
    """One field for each kind of flag."""

    model: str = doc("a value", "m")
    size: int = doc("an integer", 1)
    share: float = doc("a number", 0.5)
    fast: bool = doc("a switch", False)
    sync: bool | None = doc("a toggle", None)
    names: list[str] | None = doc("a list", None)
    numbers: list[int | float] | None = doc("a list of numbers", None)
    more: list[str] | None = doc("repeated", None)
    config: dict[str, Any] | None = doc("a mapping", None)
    missing: str | None = doc("nothing is said", None)
    tuning: int = doc("only some releases have it", 3, optional=True)


INTERFACE = Interface(
    flags=(
        Flag(names=("--model",)),
        Flag(names=("--size",), type="int"),
        Flag(names=("--share",), type="float"),
        Flag(names=("--fast",), kind="on"),
        Flag(names=("--sync",), kind="toggle"),
        Flag(names=("--names",), kind="list"),
        Flag(names=("--numbers",), kind="list", type="float"),
        Flag(names=("--more",), kind="append"),
        Flag(names=("--config",)),
        Flag(names=("--missing",)),
        Flag(names=("--tuning",), type="int"),
    )
)


def composed(args: ScriptArgs, interface: Interface = INTERFACE, **options: Any) -> Argv:
    return compose(args, interface, **{"style": "hyphen", **options})


def received(args: ScriptArgs, interface: Interface = INTERFACE, **options: Any) -> dict[str, Any]:
    """What a script with these flags gets, by name; there must be nothing wrong with it."""
    argv = composed(args, interface, **options)
    assert argv.problems == ()
    return parsed(argv, interface)


def parsed(argv: Argv, interface: Interface) -> dict[str, Any]:
    parser = parser_with(interface)
    if interface.closed:
        return vars(parser.parse_args(argv.words))
    known, rest = parser.parse_known_args(argv.words)
    return {**vars(known), "rest": rest}


@cache
def parser_with(interface: Interface) -> argparse.ArgumentParser:
    parser = parser_of(interface)
    parser.exit_on_error = False
    return parser


def problems(args: ScriptArgs, interface: Interface = INTERFACE, **options: Any) -> list[tuple[str, str]]:
    return [(problem.name, problem.key) for problem in composed(args, interface, **options).problems]


# --- values --------------------------------------------------------------------------------------------------------


def test_what_is_not_said_is_left_out() -> None:
    argv = composed(Args(tuning=3))
    assert "--missing" not in argv.words and "--fast" not in argv.words and "--names" not in argv.words
    got = parsed(argv, INTERFACE)
    assert (got["model"], got["size"], got["share"], got["fast"]) == ("m", 1, 0.5, False)
    assert got["names"] is got["sync"] is got["missing"] is None
    assert composed(Args(names=[])).words == argv.words, "an empty list is none"


@pytest.mark.parametrize("value", [True, False, None])
def test_a_toggle_has_three_states(value: bool | None) -> None:
    assert received(Args(sync=value))["sync"] is value


def test_switches() -> None:
    assert received(Args(fast=True))["fast"] is True
    off = Interface(flags=(Flag(names=("--fast",), kind="off"),))
    assert parsed(composed(Args(fast=True), off), off)["fast"] is False, "the flag itself says no"
    assert parsed(composed(Args(), off), off)["fast"] is True


@pytest.mark.parametrize("value", [6e9, 1e-05, 1e-07, -1.0, -1e-05, 0.1, 1.5e300, 0.30000000000000004])
def test_numbers_lose_nothing(value: float) -> None:
    assert received(Args(share=value))["share"] == value
    assert received(Args(numbers=[value]))["numbers"] == [value]


def test_numbers_in_lists() -> None:
    assert received(Args(numbers=[1, -1, -0.5, 2.5]))["numbers"] == [1, -1, -0.5, 2.5]
    assert received(Args(numbers=[-1e-05]))["numbers"] == [-1e-05]
    assert problems(Args(numbers=[1, -1e-05])) == [("looks_like_a_flag", "args.numbers")]


def test_an_integer_flag_takes_a_whole_float() -> None:
    assert received(dataclasses.replace(Args(), size=6.0))["size"] == 6  # type: ignore[arg-type]
    assert received(Args(size=-1))["size"] == -1
    assert "6e9" not in composed(dataclasses.replace(Args(), size=6e9)).words  # type: ignore[arg-type]
    assert received(dataclasses.replace(Args(), size=6e9))["size"] == 6_000_000_000  # type: ignore[arg-type]


def test_lists_come_first_and_end_where_a_flag_begins() -> None:
    got = received(Args(names=["a", "b c", "d"], model="m"), extra_args=["--missing", "x"])
    assert (got["names"], got["model"], got["missing"]) == (["a", "b c", "d"], "m", "x")
    assert composed(Args(names=["a"])).words[:2] == ("--names", "a")


def test_a_repeated_flag() -> None:
    assert received(Args(more=["a", "-b", "", "--tp"]))["more"] == ["a", "-b", "", "--tp"]


def test_a_mapping_is_json() -> None:
    value = {"hidden_size": 3072, "name": "it's “$(x)”", "none": None, "deep": {"list": [1, 2.5]}}
    assert json.loads(received(Args(config=value))["config"]) == value
    assert json.loads(received(Args(config={}))["config"]) == {}


def test_what_argparse_itself_would_spoil_is_refused() -> None:
    """`--x=--` arrives as an empty list, and of two list items one that begins with a hyphen is a flag."""
    assert parser_with(INTERFACE).parse_args(["--model=--"]).model == []
    assert problems(Args(model="--")) == [("looks_like_a_flag", "args.model")]
    assert problems(Args(names=["--"])) == [("looks_like_a_flag", "args.names")]
    assert problems(Args(more=["a", "--"])) == [("looks_like_a_flag", "args.more")]
    assert problems(Args(names=["a", "-b"])) == [("looks_like_a_flag", "args.names")]
    assert received(Args(names=["-b"]))["names"] == ["-b"]


# --- names ---------------------------------------------------------------------------------------------------------


def test_spelling_is_the_script_s_own() -> None:
    args = QuantizeModelOptArgs(export_megatron_path="/o", quant_cfg="fp8")
    underscore = composed(args, interface_of(args.SCRIPTS[0], "0.46.0"), style="hyphen")
    assert "--hf_model_name_or_path" in underscore.words
    bridge = QuantizeArgs(hf_model_id="a/b", megatron_save_path="/o")
    assert "--hf-model-id" in composed(bridge, interface_of(bridge.SCRIPTS[0], "v0.6.0"), style="underscore").words


@pytest.mark.parametrize(("style", "word"), [("hyphen", "--top-k"), ("underscore", "--top_k")])
def test_spelling_where_nothing_is_known(style: str, word: str) -> None:
    argv = composed(PruneArgs(), Interface(flags=(), closed=False), style=style)
    assert argv.words[argv.words.index(word) + 1] == "10"


@pytest.mark.parametrize(("release", "flag"), [("0.43.0", "--calib_mbs"), ("0.45.0", "--calib_batch_size")])
def test_an_older_name_of_a_flag(release: str, flag: str) -> None:
    args = PruneArgs(output_hf_path="/o", prune_target_params=6e9, calib_batch_size=1)
    got = received(args, interface_of(args.SCRIPTS[0], release))
    assert got[flag.removeprefix("--")] == 1
    assert got["prune_target_params"] == 6e9


@pytest.mark.parametrize(("release", "name"), [("core_v0.14.0", "percentage"), ("core_v0.15.0", "fraction")])
def test_an_older_name_in_megatron_lm(release: str, name: str) -> None:
    args = MlmMmluArgs(fraction=0.25, load="/c")
    assert received(args, interface_of(args.SCRIPTS[0], release))[name] == 0.25


def test_a_key_value_cache_is_a_switch_or_a_choice() -> None:
    seen = set()
    for args in (QuantizeArgs(hf_model_id="a/b"), QuantizeVlmArgs(megatron_save_path="/o")):
        for release in releases_of(args.SCRIPTS[0]):
            interface = interface_of(args.SCRIPTS[0], release)
            flag = interface.find("export_kv_cache_quant")
            assert flag is not None
            seen.add(flag.kind)
            on = dataclasses.replace(args, export_kv_cache_quant="fp8")
            other = dataclasses.replace(args, export_kv_cache_quant="nvfp4")
            assert received(args, interface)["export_kv_cache_quant"] in (False, "none", None)
            assert received(on, interface)["export_kv_cache_quant"] is True
            assert problems(other, interface) == [("unsupported_choice", "args.export_kv_cache_quant")]
    args = MlmQuantizeArgs(load="/c", export_kv_cache_quant="nvfp4")
    for release in releases_of(args.SCRIPTS[0]):
        seen.add(_kv_kind(args, interface_of(args.SCRIPTS[0], release)))
    assert seen == {"on", "value"}


def _kv_kind(args: MlmQuantizeArgs, interface: Interface) -> str:
    flag = interface.find("export_kv_cache_quant")
    assert flag is not None
    if flag.kind == "on":
        assert problems(args, interface) == [("unsupported_choice", "args.export_kv_cache_quant")]
    else:
        assert received(args, interface)["export_kv_cache_quant"] == "nvfp4"
    return flag.kind


FIRST = ("fp8", "nvfp4", "int8_sq", "fp8_blockwise", "int4_awq", "w4a8_awq")


@pytest.mark.parametrize("name", CONFIG_NAMES)
def test_a_format_has_the_name_that_the_release_knows(name: str) -> None:
    """ModelOpt's own name where the script takes any text, the short one where it lists those; refused where it lists
    neither, which is so of none of the first six."""
    short = set()
    for args in (
        QuantizeModelOptArgs(quant_cfg=name, export_megatron_path="/o"),
        MlmQuantizeArgs(export_quant_cfg=name),
    ):
        for release in releases_of(args.SCRIPTS[0]):
            interface = interface_of(args.SCRIPTS[0], release)
            flag = interface.find("quant_cfg") or interface.find("export_quant_cfg")
            assert flag is not None
            listed = flag.choices is not None and name in flag.choices
            if flag.choices is not None and not {name, CONFIG_NAMES[name]} & {*flag.choices}:
                assert name not in FIRST and [one for one, _ in problems(args, interface)] == ["unsupported_choice"]
                continue
            got = received(args, interface)
            value = got.get("quant_cfg") or got["export_quant_cfg"]
            short.add(listed)
            assert value == (name if listed else CONFIG_NAMES[name])
    assert short, "there are releases"


# --- what is wrong -------------------------------------------------------------------------------------------------


def test_extra_words_come_last_as_they_are() -> None:
    extra = ["--lr", "-1e-3", "a.b=c", "it's $(x)", "", "é\n"]
    opened = dataclasses.replace(INTERFACE, closed=False)
    argv = composed(Args(), opened, extra_args=extra)
    assert argv.problems == ()
    assert list(argv.words[-len(extra) :]) == extra


def test_a_command_comes_first() -> None:
    args = MegatronToHfArgs(megatron_path="/m", hf_path="/o")
    interface = interface_of(args.SCRIPTS[0], "v0.6.0")
    got = received(args, interface, command=args.COMMANDS[args.SCRIPTS[0]])
    assert (got["command"], got["megatron_path"]) == ("export", "/m")


def test_a_flag_given_twice() -> None:
    assert problems(Args(), extra_args=["--size=2"]) == [("flag_twice", "extra_args")]
    assert problems(Args(sync=True), extra_args=["--no-sync"]) == [("flag_twice", "extra_args")]
    assert problems(Args(), extra_args=["--missing", "--size"])[-1] == ("flag_twice", "extra_args")
    assert problems(Args(), extra_args=["--no-sync"]) == []


@pytest.mark.parametrize(
    ("extra", "stray"),
    [
        (["fp8"], ["fp8"]),
        (["--sync", "true"], ["true"]),
        (["--size=2", "3"], ["3"]),
        (["--size", "2", "3"], ["3"]),
        (["--size", "-2"], []),
        (["--names", "a", "b", "c"], []),
        (["--newer", "a", "b"], []),
        (["--", "x"], ["x"]),
        (["--no-sync", "--size", "2"], []),
    ],
)
def test_a_word_that_belongs_to_no_flag(extra: list[str], stray: list[str]) -> None:
    found = composed(Args(), extra_args=extra).problems
    assert [problem.value for problem in found if problem.name == "stray_word"] == stray
    opened = dataclasses.replace(INTERFACE, closed=False)
    assert not [one for one in composed(Args(), opened, extra_args=extra).problems if one.name == "stray_word"]


def test_an_unknown_flag_names_its_neighbour() -> None:
    (problem,) = composed(Args(), extra_args=["--modle", "x"]).problems
    assert (problem.name, problem.key, problem.value) == ("unknown_flag", "extra_args", "--modle")
    assert "model" in problem.remedy
    args = QuantizeArgs(hf_model_id="a/b", force_all_expert_routing=True)
    (problem,) = composed(args, interface_of(args.SCRIPTS[0], "v0.6.0")).problems
    assert (problem.name, problem.key) == ("unknown_flag", "args.force_all_expert_routing")
    assert problems(args, interface_of(args.SCRIPTS[0], "v0.3.0")) == []


def test_a_default_that_a_release_has_no_flag_for_is_left_out() -> None:
    without = Interface(flags=tuple(flag for flag in INTERFACE.flags if flag.name not in ("--size", "--tuning")))
    argv = composed(Args(tuning=7), without)
    assert argv.problems == ()
    assert argv.left_out == ("args.tuning",), "optional: said, not refused"
    assert "--size" not in argv.words
    assert problems(Args(size=2), without) == [("unknown_flag", "args.size")]


def test_a_required_flag_that_is_missing() -> None:
    required = Interface(flags=(Flag(names=("--model",)), Flag(names=("--out",), required=True)))
    only = dataclasses.replace(required, flags=(*required.flags, *INTERFACE.flags[1:]))
    assert problems(Args(), only) == [("missing_flag", "args.out")]
    assert problems(Args(), only, extra_args=["--out", "x"]) == []
    assert problems(Args(), only, extra_args=["--out=x"]) == []
    assert problems(Args(), dataclasses.replace(only, closed=False)) == [("missing_flag", "args.out")]
    assert problems(Args(), dataclasses.replace(only, commands=("import", "export"))) == [], "nobody knows of which"


def test_a_choice_that_the_script_does_not_have() -> None:
    interface = Interface(flags=(*INTERFACE.flags[1:], Flag(names=("--model",), choices=("fp8", "nvfp4"))))
    (problem,) = composed(Args(model="fp9"), interface).problems
    assert (problem.name, problem.key, problem.value) == ("unsupported_choice", "args.model", "fp9")
    assert "fp8" in problem.remedy


def test_an_open_script_takes_no_flag_of_another_release() -> None:
    """Megatron-LM's scripts take its whole argument list; what only other releases of the script have is not in it."""
    script = MlmPruneArgs.SCRIPTS[0]
    fixed = MlmPruneArgs(load="/c", prune_export_config={"hidden_size": 8})
    targets = MlmPruneArgs(load="/c", target_hidden_size=8)
    before, since = interface_of(script, "core_v0.17.0"), interface_of(script, "core_v0.18.0")
    assert problems(fixed, since) == problems(targets, before) == []
    assert problems(fixed, before) == [("unknown_flag", "args.prune_export_config")]
    assert ("unknown_flag", "args.target_hidden_size") in problems(targets, since)
    assert problems(fixed, since, extra_args=["--target-hidden-size", "8"]) == [("unknown_flag", "extra_args")]
    assert problems(fixed, since, extra_args=["--manual-gc"]) == [], "which may be Megatron-LM's own"


# --- every text field of every script ------------------------------------------------------------------------------


def _cases() -> Iterator[type[ScriptArgs]]:
    """The classes of arguments whose scripts are in the tables."""
    every = dict.fromkeys(recipe.family.args for recipe in RECIPES.values())
    yield from (one for one in every if any(not is_module(script) for script in getattr(one, "SCRIPTS", ())))


CLASSES = list(_cases())


def test_there_is_something_to_try() -> None:
    assert len(CLASSES) > 20
    tried = {script for one in CLASSES for script in one.SCRIPTS if not is_module(script)}
    assert len(tried) > 20 and tried <= set(scripts())
    fields = [name for one in CLASSES for name in text_fields(one)]
    assert len(fields) > 100


def text_fields(args: type[ScriptArgs]) -> dict[str, bool]:
    """Fields that a script can get and that take any text; whether as an item of a list."""
    found = {}
    hints = get_type_hints(args)
    for field, meaning in meanings(args):
        kinds = _alternatives(hints[field.name])
        items = [kind for one in kinds if get_origin(one) is list for kind in _alternatives(get_args(one)[0])]
        if meaning.used_by("script") and not meaning.into and not meaning.card and str in (*kinds, *items):
            found[field.name] = str in items
    return found


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


@pytest.mark.parametrize("args", CLASSES, ids=lambda args: args.__name__)
def test_any_text_arrives_unchanged(args: type[ScriptArgs]) -> None:
    """In every text field at once, for every release that has a flag for it."""
    fields = text_fields(args)
    met = [(script, release) for script in args.SCRIPTS if not is_module(script) for release in releases_of(script)]
    arrived: set[str] = set()

    def check(texts: Sequence[str]) -> None:
        texts_by_name = dict(zip(fields, texts, strict=True))
        values = {name: [text] if fields[name] else text for name, text in texts_by_name.items()}
        for script, release in met:
            arrived.update(_arrive(args, values, interface_of(script, release), args.COMMANDS.get(script, ())))

    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @example(texts=[f"-{name}=\n" for name in fields])
    @given(texts=st.lists(TEXT, min_size=len(fields), max_size=len(fields)))
    def check_any(texts: list[str]) -> None:
        check(texts)

    for text in HOSTILE:
        check([text] * len(fields))
    check_any()
    for name in set(fields) - arrived:  # then it is no text to any release
        flags = [_flag_for(args, name, interface_of(*one)) for one in met]
        assert any(flags) and all(flag is None or flag.choices for flag in flags), name


def _arrive(
    args: type[ScriptArgs], values: Mapping[str, Any], interface: Interface, command: Sequence[str]
) -> Iterator[str]:
    """Compose and parse; the fields that a script of this interface takes any text for, each arrived unchanged."""
    taking = {name: flag for name in values if (flag := _flag_for(args, name, interface)) and flag.choices is None}
    argv = composed(args(**{name: values[name] for name in taking}), interface, command=command)
    assert {problem.name for problem in argv.problems} <= {"missing_flag"}
    parser = _without_required(interface)
    got, rest = parser.parse_known_args(argv.words)
    assert rest == [], "no word was taken for another"
    for name, flag in taking.items():
        value = values[name]
        sent = value if flag.kind in ("list", "append") or not isinstance(value, list) else value[0]
        assert getattr(got, plain(flag.names[0])) == sent, (name, flag)
        yield name


def _flag_for(args: type[ScriptArgs], name: str, interface: Interface) -> Flag | None:
    """Its flag; one of Megatron-LM's own argument list, which no table has, as that has it."""
    (names,) = [flags_of(meaning, field.name) for field, meaning in meanings(args) if field.name == name]
    found = next((flag for one in names if (flag := interface.find(one))), None)
    if found is None and not any(map(interface.refuses, names)):
        return Flag(names=(f"--{names[0].replace('_', '-')}",))
    return found


@cache
def _without_required(interface: Interface) -> argparse.ArgumentParser:
    """The parser of a script, and of what it takes from elsewhere."""
    flags = [dataclasses.replace(flag, required=False) for flag in interface.flags]
    known = {plain(name) for flag in flags for name in flag.names} | interface.foreign
    elsewhere = {
        name: isinstance(field.default, bool)
        for one in CLASSES
        for field, meaning in meanings(one)
        if not interface.closed and not meaning.into and (name := flags_of(meaning, field.name)[0]) not in known
    }
    for name, switch in elsewhere.items():
        flags.append(Flag(names=(f"--{name.replace('_', '-')}",), kind="on" if switch else "value"))
    return parser_of(dataclasses.replace(interface, flags=tuple(flags)))
