"""Flags read from a script's source: every construct, other modules, what cannot be told, argparse itself as judge."""

import argparse
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.engines.script.flags.interface import Flag, Interface
from scripts.engines.script.flags.reader import read_interface
from scripts.run.problems import JobError

HEAD = "import argparse\n"
#: Ways of adding flags to the parser `p`, one after each empty line.
WAYS = """\
try:
    from absent import K
except ImportError:
    K = 1
else:
    K = 2
finally:
    p.add_argument('--x')

try:
    p.add_argument('--x')
except ValueError:
    raise
p.add_argument('--y')

import contextlib
with contextlib.suppress(ValueError) as held:
    p.add_argument('--x')

n = 1
while n:
    p.add_argument('--x')
    n = 0
else:
    p.add_argument('--y')

match p.prog:
    case str():
        p.add_argument('--x')

for n in ('a', 'b', 'c', 'd'):
    if n == 'b':
        continue
    if n == 'd':
        break
    p.add_argument('--' + n)
else:
    p.add_argument('--never')

for n, (k, m) in enumerate({'a': 'b'}.items()):
    p.add_argument(f'--{k}-{m}-{n}')
else:
    p.add_argument('--z')

def f(q, *names, kind='store_true', **more):
    for n in names:
        q.add_argument(n, action=kind, **more)
f(p, '--x', '--y', help='h')
f(p, *['--z'], kind='store_false')

g = None or p.add_argument_group('g')
g.add_argument('--x')
(h := p).add_argument('--y')

g = p.add_argument_group() if p.prog else p
g.add_argument('--x', default=-1)

add = lambda q, n: q.add_argument(n, required=not False)
add(p, '--x')

q, names = p, ['--x', '--y']
for n in names[1:][:1] + ['--w']:
    q.add_argument(names[0] if n == '--w' else n)

K = ['a']
K += ['b']
p.add_argument('--x', choices=K)

K: list = ['a']
del K[0]
K: list = ['a', 'b']
p.add_argument('--x', choices=K)

K = {'a': 1, **{'b': 2}} | {'c': 3}
p.add_argument('--x', choices=K)

p.add_argument('--x', choices=list(dict(a=1)) if False else 'a b'.upper().split())

p.add_argument('--' + '-'.join(['x', str(1)]), '--y_z'.replace('_', '-'))

class A:
    K = ['a']
    @classmethod
    def add(cls, q): q.add_argument('--x', choices=A.K)
A.add(p)

class A:
    def add(self, q): q.add_argument('--x')
a = A()
a.add(p)

class B(argparse.Action):
    def __call__(self, *a): ...
p.add_argument('--x', action=B, nargs=0)

p.add_argument('--x', action='store_const', const=1)
p.add_argument('--v', action='version', version='1')

p.add_argument('--x', action='extend', nargs='*')
p.add_argument('-n', '--dry', action='count', default=0)
"""


def read(folder: Path, script: str, *, roots: tuple[Path, ...] = (), **modules: str) -> Interface:
    """The interface of `script`, with `modules` (a__b: a/b.py) beside it."""
    for name, source in modules.items():
        path = folder.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
    path = folder / "script.py"
    path.write_text(HEAD + textwrap.dedent(script))
    return read_interface(path, roots)


def names(interface: Interface) -> list[str]:
    return [flag.name for flag in interface.flags]


def kind_of(action: argparse.Action) -> str:
    kinds = {"_StoreFalseAction": "off", "_AppendAction": "append", "_ExtendAction": "list"}
    if isinstance(action, argparse.BooleanOptionalAction):
        return "toggle"
    if action.nargs == 0:
        return kinds.get(type(action).__name__, "on")
    return kinds.get(type(action).__name__, "list" if action.nargs is not None else "value")


def agree(found: Interface, parser: argparse.ArgumentParser) -> None:
    """The interface says of each flag what argparse does."""
    actions = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    assert found.closed
    assert len(found.flags) == len(actions)
    for flag, action in zip(found.flags, actions, strict=True):
        spelled = [name for name in action.option_strings if not (flag.kind == "toggle" and name.startswith("--no-"))]
        assert flag.names == tuple(spelled)
        assert flag.kind == kind_of(action)
        assert flag.required == action.required
        assert flag.choices == (None if action.choices is None else tuple(map(str, action.choices)))
        assert flag.type == (getattr(action.type, "__name__", "str"))


def test_each_kind_of_flag(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        def positive(text): return int(text)

        parser = argparse.ArgumentParser()
        parser.add_argument("input")
        parser.add_argument("-m", "--model", "--model-id", required=True)
        parser.add_argument("--size", type=positive, default=512)
        parser.add_argument("--rate", type=float, default=1e-4)
        parser.add_argument("--format", choices=["fp8", "nvfp4"], default="fp8")
        parser.add_argument("--paths", nargs="+", default=["a", "b"])
        parser.add_argument("--rest", nargs=argparse.REMAINDER)
        parser.add_argument("--pair", nargs=2, type=int)
        parser.add_argument("--maybe", nargs="?")
        parser.add_argument("--compress", action="store_true")
        parser.add_argument("--no-export", dest="export", action="store_false")
        parser.add_argument("--save", action=argparse.BooleanOptionalAction, default=True)
        parser.add_argument("--mount", action="append", default=[])
        parser.add_argument("--home", default=str(positive("x")))
        args = parser.parse_args()
        """,
    )
    assert found == Interface(
        flags=(
            Flag(names=("-m", "--model", "--model-id"), required=True),
            Flag(names=("--size",), type="positive", default="512"),
            Flag(names=("--rate",), type="float", default="0.0001"),
            Flag(names=("--format",), choices=("fp8", "nvfp4"), default="fp8"),
            Flag(names=("--paths",), kind="list", default="a b"),
            Flag(names=("--rest",), kind="list"),
            Flag(names=("--pair",), kind="list", type="int"),
            Flag(names=("--maybe",)),
            Flag(names=("--compress",), kind="on"),
            Flag(names=("--no-export",), kind="off"),
            Flag(names=("--save",), kind="toggle", default="True"),
            Flag(names=("--mount",), kind="append"),
            Flag(names=("--home",), default="<str(positive('x'))>"),
        )
    )


def test_nothing_of_the_script_or_its_modules_is_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    effect = f"open({str(ran)!r}, 'w').close()\nraise SystemExit(3)\n"
    found = read(
        tmp_path,
        f"from helper import add\nparser = argparse.ArgumentParser()\nadd(parser)\nparser.parse_args()\n{effect}",
        helper=f"def add(parser):\n    parser.add_argument('--x')\n{effect}",
    )
    assert names(found) == ["--x"]
    assert not ran.exists()


def test_groups_subcommands_and_parents(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        def main():
            base = argparse.ArgumentParser(add_help=False)
            base.add_argument("--seed", type=int)
            parser = argparse.ArgumentParser(parents=[base])
            target = parser.add_mutually_exclusive_group(required=True)
            target.add_argument("--params", type=float)
            parser.add_argument_group("data").add_argument("--data")
            commands = parser.add_subparsers(dest="command")
            one = commands.add_parser("import", aliases=["in"], parents=[base])
            one.add_argument("--device", choices=["cpu", "gpu"], required=True)
            one.add_argument("--hf-model")
            two = commands.add_parser("export")
            two.add_argument("--device", choices=("gpu", "tpu"))
            two.add_argument("--hf-model", "--hf-model-id")
            args = parser.parse_args()

        if __name__ == "__main__":
            main()
        """,
    )
    assert found.commands == ("import", "in", "export")
    assert names(found) == ["--seed", "--params", "--data", "--device", "--hf-model"]
    device, model = found.flags[-2:]
    assert device.choices == ("cpu", "gpu", "tpu")
    assert model.names == ("--hf-model", "--hf-model-id")
    assert found.closed


def test_constants_and_loops_are_resolved(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        import torch
        from kinds import MORE, NAMES

        FORMATS = {"fp8": torch.float8, "nvfp4": object()}
        BOTH = [*FORMATS, *MORE]
        PREFIX = "--calib"
        parser = argparse.ArgumentParser()
        parser.add_argument("--a", choices=FORMATS.keys())
        parser.add_argument("--b", choices=list(FORMATS))
        parser.add_argument("--c", choices=BOTH)
        parser.add_argument("--d", choices=sorted(NAMES) + ["none"])
        parser.add_argument("--e", choices=[name for name in FORMATS if name != "fp8"])
        parser.add_argument("--f", choices=tuple(torch.choices()))
        parser.add_argument("--g", choices=range(1, 4), type=int)
        parser.add_argument(PREFIX + "-size", default=PREFIX)
        for name in ("tp", "pp"):
            parser.add_argument(f"--{name}", f"--{name}_size", type=int, default=1)
        common = {"type": float, "default": 0.5, "required": True}
        parser.add_argument("--ratio", **common)
        parser.parse_args()
        """,
        kinds="NAMES = {'w8', 'w4'}\nMORE = tuple(['int8'])\n",
    )
    choices = {flag.name: flag.choices for flag in found.flags}
    assert choices["--a"] == choices["--b"] == ("fp8", "nvfp4")
    assert choices["--c"] == ("fp8", "nvfp4", "int8")
    assert choices["--d"] == ("w4", "w8", "none")
    assert choices["--e"] == ("nvfp4",)
    assert choices["--f"] is None
    assert choices["--g"] == ("1", "2", "3")
    assert found.find("calib_size") == Flag(names=("--calib-size",), default="--calib")
    assert found.find("pp_size") == Flag(names=("--pp", "--pp_size"), type="int", default="1")
    assert found.find("ratio") == Flag(names=("--ratio",), type="float", default="0.5", required=True)
    assert found.closed


def test_a_constant_that_is_changed_is_not_taken_for_what_it_was(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        import sys
        A = ["x"]
        A.append(sys.argv)
        B = {"x": 1}
        B[sys.platform] = 2
        C = ["x"]
        if sys.platform == "linux":
            C = ["y"]
        D = ["x"]
        if sys.platform == "linux":
            pass
        parser = argparse.ArgumentParser()
        for index, choices in enumerate([A, B, C, D]):
            parser.add_argument(f"--{index}", choices=choices)
        parser.parse_args()
        """,
    )
    assert [flag.choices for flag in found.flags] == [None, None, None, ("x",)]


def test_functions_of_other_modules_are_followed_and_their_own_parsers_are_not(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        from quantize import prompts
        from quantize_utils import CHOICES, add_common, console

        def main(args):
            prompts(args.model, console)

        if __name__ == "__main__":
            parser = argparse.ArgumentParser()
            add_common(parser)
            parser.add_argument("--format", choices=list(CHOICES))
            main(parser.parse_args())
        """,
        quantize="""
        import argparse
        from quantize_utils import add_common
        early = argparse.ArgumentParser()
        early.add_argument("--early")
        def prompts(model, console):
            return model
        if __name__ == "__main__":
            parser = argparse.ArgumentParser()
            parser.add_argument("--only-there", required=True)
            parser.parse_args()
        """,
        quantize_utils="""
        import heavy.library as heavy
        CHOICES = {"fp8": heavy.FP8, "nvfp4": heavy.NVFP4}
        console = heavy.Console()
        def add_model(group):
            group.add_argument("--model", required=True)
        def add_common(parser):
            group = parser.add_argument_group("common")
            add_model(group)
            return parser
        def add_unused(parser):
            parser.add_argument("--unused")
        """,
    )
    assert names(found) == ["--model", "--format"]
    assert found.flags[1].choices == ("fp8", "nvfp4")
    assert found.closed


def test_a_parser_that_another_module_builds_with_the_arguments_given_to_it(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        from arguments import build_parser

        def main(argv=None):
            args = build_parser(launcher=False).parse_args(argv)

        if __name__ == "__main__":
            main()
        """,
        arguments="""
        import argparse
        def _add_launcher(parser, *, device="cpu"):
            parser.add_argument("--account")
        def build_parser(*, launcher):
            parser = argparse.ArgumentParser()
            if launcher:
                _add_launcher(parser)
            else:
                parser.add_argument("--device", choices=("cpu", "gpu"), required=True)
            if not launcher:
                return parser
            parser.add_argument("--never")
            return parser
        """,
    )
    assert names(found) == ["--device"]
    assert found.closed


@pytest.mark.parametrize(
    "line",
    ["from pkg.sub.more import add", "from pkg.sub import add", "import pkg.sub.more as m; add = m.add"],
)
def test_modules_are_found_in_roots_in_the_checkout_and_in_its_src(tmp_path: Path, line: str) -> None:
    script = f"{line}\nparser = argparse.ArgumentParser()\nadd(parser)\nparser.parse_args()\n"
    more = "from ..flags import *\nfrom .. import flags\ndef add(parser):\n    flag(parser)\n    flags.other(parser)\n"
    flags = "def flag(p):\n    p.add_argument('--x')\ndef other(p):\n    p.add_argument('--y')\n"
    for place, roots in (("checkout/src", ()), ("checkout", ()), ("elsewhere", (tmp_path / "elsewhere",))):
        package = tmp_path / place / "pkg"
        (package / "sub").mkdir(parents=True)
        (package / "flags.py").write_text(flags)
        (package / "sub" / "__init__.py").write_text("from .more import add\n")
        (package / "sub" / "more.py").write_text(more)
        folder = tmp_path / "checkout" / "examples" / place.replace("/", "_")
        folder.mkdir(parents=True)
        (tmp_path / "checkout" / "pyproject.toml").write_text("")
        found = read(folder, script, roots=roots)
        assert (names(found), found.closed) == (["--x", "--y"], True)
        (package / "sub" / "more.py").unlink()
        (package / "sub" / "__init__.py").unlink()


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("p = argparse.ArgumentParser()\np.add_argument('--x')\nargs, rest = p.parse_known_args()", ["--x"]),
        ("from absent import add\np = argparse.ArgumentParser()\np.add_argument('--x')\nadd(p)", ["--x"]),
        ("from absent import add\np = add(argparse.ArgumentParser())\np.add_argument('--x')", ["--x"]),
        ("import sys\np = argparse.ArgumentParser()\np.add_argument('--x')\np.add_argument(f'--{sys.argv}')", ["--x"]),
        ("import sys\np = argparse.ArgumentParser()\nfor n in sys.path:\n    p.add_argument('--' + n)", []),
        ("import hydra\n@hydra.main()\ndef main(config): ...\nmain()", []),
        ("from absent import HfArgumentParser\np = HfArgumentParser(())\np.add_argument('--x')", ["--x"]),
        ("def add(parser):\n    parser.add_argument('--x')\n", ["--x"]),
        ("from absent import build\np = argparse.ArgumentParser(parents=[build()])\np.add_argument('--x')", ["--x"]),
        (
            "from absent import initialize\ndef add(parser):\n    g = parser.add_argument_group('g')\n"
            "    g.add_argument('--x')\n    return parser\ninitialize(extra_args_provider=add)",
            ["--x"],
        ),
        ("from absent import initialize, provider\ninitialize(extra_args_provider=provider)", []),
    ],
    ids=[
        *(
            "known_args",
            "absent_import",
            "absent_wrapper",
            "text",
            "unknown_loop",
            "hydra",
            "other_parser",
            "no_parser",
        ),
        *("absent_parent", "handed_in", "absent_provider"),
    ],
)
def test_an_interface_is_open_where_flags_may_be_out_of_sight(tmp_path: Path, script: str, flags: list[str]) -> None:
    found = read(tmp_path, script)
    assert names(found) == flags
    assert not found.closed


def test_a_provider_that_adds_the_flags_of_a_checkout(tmp_path: Path) -> None:
    """The way of Megatron-LM's examples, whose own argument list stays out of sight."""
    found = read(
        tmp_path,
        """
        import sys
        from functools import partial
        from megatron.post_training.arguments import add_modelopt_args
        from megatron.training import get_args, initialize_megatron
        def add_convert_args(parser):
            group = parser.add_argument_group(title="convert")
            group.add_argument("--extra-model-path", type=str, default=None)
            add_modelopt_args(parser)
            return parser
        def model_provider(builder, pre_process=True): ...
        if __name__ == "__main__":
            initialize_megatron(extra_args_provider=add_convert_args, args_defaults={"no_load_rng": True})
            model = partial(model_provider, None)
        """,
        megatron__post_training__arguments="""
        def add_modelopt_args(parser):
            group = parser.add_argument_group(title="modelopt")
            group.add_argument("--export-quant-cfg", type=str, default=None)
            return parser
        """,
    )
    assert names(found) == ["--extra-model-path", "--export-quant-cfg"]
    assert not found.closed


def test_parsers_in_classes(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        from base import Base

        class Parser(Base):
            def __init__(self):
                super().__init__()
                self.add_argument("--own")
                self.add_rest()
            def add_rest(self):
                self.add_argument("--rest", action="store_true")

        class App:
            KINDS = ["a"]
            def __init__(self):
                self.parser = argparse.ArgumentParser()
            def build(self):
                self.parser.add_argument("--app", choices=App.KINDS)
                self._more(self.parser)
            @staticmethod
            def _more(parser):
                parser.add_argument("--more")
            def run(self):
                self.build()
                return self.parser.parse_args()

        def _more(parser): ...
        App().run()
        Parser().parse_args()
        """,
        base="""
        from argparse import ArgumentParser
        class Base(ArgumentParser):
            def add_rest(self): ...
        """,
    )
    assert sorted(names(found)) == ["--app", "--more", "--own", "--rest"]
    assert found.find("app") == Flag(names=("--app",), choices=("a",))
    assert found.closed


def test_a_script_that_leaves_the_command_line_to_another_module(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "from tool.cli import main\nfrom tool import work\nif __name__ == '__main__':\n    work.do()\n    main()\n",
        tool__work="def do(): ...\n",
        tool__cli="""
        from argparse import ArgumentParser
        def main():
            parser = ArgumentParser()
            parser.add_argument("--x")
            parser.parse_args()
        """,
    )
    assert (names(found), found.closed) == (["--x"], True)


def test_functions_and_modules_that_use_each_other_come_to_an_end(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        from other import add
        def down(parser, level, seen):
            parser.add_argument(f"--level-{len(seen)}")
            down(parser, level - 1, [*seen, level])
        parser = argparse.ArgumentParser()
        add(parser, 0)
        down(parser, 10, [])
        parser.parse_args()
        """,
        other="from back import again\ndef add(parser, n):\n    parser.add_argument('--x')\n    again(parser, n)\n",
        back="from other import add\nfrom back import absent\ndef again(parser, n):\n    add(parser, n)\n",
    )
    assert names(found)[:2] == ["--x", "--level-0"]


@pytest.mark.parametrize("body", WAYS.split("\n\n"))
def test_what_python_does_with_a_parser_is_followed(tmp_path: Path, body: str) -> None:
    made: dict[str, Any] = {}
    source = f"import argparse\np = argparse.ArgumentParser()\n{body}\n"
    exec(compile(source, "script", "exec"), made)
    (tmp_path / "script.py").write_text(source)
    agree(read_interface(tmp_path / "script.py"), made["p"])


def test_a_package_of_many_star_imports_comes_to_an_end(tmp_path: Path) -> None:
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").write_text("".join(f"from .part{n} import *\n" for n in range(400)))
    (package / "part7.py").write_text("def add(parser):\n    parser.add_argument('--x')\n")
    script = "from pkg import absent, add\np = argparse.ArgumentParser()\nadd(p)\nabsent(p)\np.parse_args()\n"
    found = read(tmp_path, script)
    assert (names(found), found.closed) == (["--x"], False)


def test_a_script_that_is_not_there_or_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="script_not_found"):
        read_interface(tmp_path / "absent.py")
    with pytest.raises(JobError, match="script_not_found"):
        read_interface(tmp_path)
    path = tmp_path / "script.py"
    for content in (
        b"print 'python 2'\n",
        b"\x80\x81\x00",
        b"# coding: nonsense\n",
        b"x = " + b"(" * 5000 + b")" * 5000,
    ):
        path.write_bytes(content)
        with pytest.raises(JobError, match=r"script_unreadable.*script\.py"):
            read_interface(path)


def test_an_expression_too_long_to_follow_hides_only_itself(tmp_path: Path) -> None:
    text = "TEXT = " + " + ".join(["'x'"] * 2000)
    found = read(tmp_path, f"{text}\np = argparse.ArgumentParser()\np.add_argument('--x', default=TEXT)\n")
    assert (names(found), found.flags[0].default, found.closed) == (["--x"], "<TEXT>", False)


def test_a_module_of_three_thousand_lines_is_read_at_once(tmp_path: Path) -> None:
    lines = []
    for group in range(60):
        lines += [f"def add_{group}(parser):", f"    group = parser.add_argument_group('{group}')"]
        for flag in range(12):
            lines += [
                f"    group.add_argument('--f-{group}-{flag}', type=int,",
                "        default=1,",
                "        help='x'",
            ]
            lines += ["        'y')"]
    lines += ["def add_all(parser):", *(f"    add_{group}(parser)" for group in range(60))]
    assert len(lines) > 3000
    script = "from many import add_all\nparser = argparse.ArgumentParser()\nadd_all(parser)\nparser.parse_args()\n"
    read(tmp_path, script, many="\n".join(lines))
    begin = time.process_time()
    found = read_interface(tmp_path / "script.py")
    assert time.process_time() - begin < 5  # of 0.2 s on an idle machine: what grows with the square takes minutes
    assert (len(found.flags), found.closed) == (720, True)


WORDS = st.text("abcdefghij", min_size=2, max_size=6)
VALUES = st.lists(WORDS, min_size=1, max_size=4, unique=True)


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    """The keywords of one add_argument call, as source text."""
    kind = draw(st.sampled_from(["value", "list", "on", "off", "append", "toggle"]))
    found: dict[str, Any] = {"help": repr(draw(WORDS))}
    if kind in ("on", "off"):
        found["action"] = repr("store_true" if kind == "on" else "store_false")
        return found
    if kind == "toggle":
        return found | {"action": "argparse.BooleanOptionalAction", "default": draw(st.sampled_from(["None", "True"]))}
    if kind == "append":
        found["action"] = "'append'"
    elif kind == "list":
        found["nargs"] = draw(st.sampled_from(["'+'", "'*'", "2"]))
    found["required"] = repr(draw(st.booleans()))
    if draw(st.booleans()):
        choices = draw(VALUES)
        form = draw(st.sampled_from(["{0!r}", "tuple({0!r})", "list({1!r})", "{1!r}.keys()", "sorted({0!r})"]))
        found["choices"] = form.format(choices, dict.fromkeys(choices, 0))
    elif draw(st.booleans()):
        found["type"] = draw(st.sampled_from(["int", "float", "str"]))
    return found


@st.composite
def parsers(draw: st.DrawFn) -> str:
    """A script whose build() makes a parser in one of many ways of writing it down."""
    stems = draw(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=8, unique_by=lambda pair: "".join(pair)))
    body, constants = ["    parser = argparse.ArgumentParser(allow_abbrev=False)"], []
    for index, (one, two) in enumerate(stems):
        spelled = [f"--{one}{draw(st.sampled_from('-_'))}{two}-{index}"]
        spelled += [f"--also-{index}"] * draw(st.booleans())
        keywords = draw(options())
        if "choices" in keywords and draw(st.booleans()):
            constants.append(f"CHOICES_{index} = {keywords['choices']}")
            keywords["choices"] = f"CHOICES_{index}"
        call = ", ".join([*map(repr, spelled), *(f"{key}={value}" for key, value in keywords.items())])
        way = draw(st.sampled_from(["parser", "group", "loop", "function", "method"]))
        if way == "parser":
            body.append(f"    parser.add_argument({call})")
        elif way == "group":
            body.append(f"    parser.add_argument_group('g').add_argument({call})")
        elif way == "method":
            body += ["    add = parser.add_argument", f"    add({call})"]
        elif way == "loop":
            body.append(f"    for name in [{spelled[0]!r}]:")
            body.append(f"        parser.add_argument({call.replace(repr(spelled[0]), 'name', 1)})")
        else:
            constants += [f"def add_{index}(to, on=False):", "    if on:", f"        to.add_argument({call})"]
            body.append(f"    add_{index}(parser, on=True)")
    head = ["import argparse", *constants, "def build():", *body, "    return parser"]
    return "\n".join([*head, "if __name__ == '__main__':", "    build().parse_args()", ""])


@settings(max_examples=150, deadline=None)
@given(source=parsers())
def test_what_is_read_is_what_argparse_makes_of_it(source: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    made: dict[str, Any] = {}
    exec(compile(source, "script", "exec"), made)
    path = tmp_path_factory.mktemp("script") / "script.py"
    path.write_text(source)
    agree(read_interface(path), made["build"]())
