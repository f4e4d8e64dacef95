"""Profiles from the user's side: YAML files in, a typed profile and every Problem out."""

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from executors.base import Profile
from executors.kinds import SHIPPED, kinds, place_of, profile_from_record
from executors.local import LocalPlace, LocalProfile
from executors.profiles import files as profile_files
from executors.profiles.load import list_profiles, load_profile, profile_names
from scripts.run.problems import JobError, Problem
from scripts.run.secrets import looks_secret

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No file of whoever runs the tests counts."""
    (tmp_path / "project" / "deep").mkdir(parents=True)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path / "project" / "deep")


@pytest.fixture
def own(tmp_path: Path) -> Write:
    """Write the nearest executors.yaml, or another file."""

    def write(text: str | bytes, file: str = "project/executors.yaml") -> Path:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def problem_of(name: str = "mine", **overrides: str) -> Problem:
    """The one problem of a profile."""
    (problem,) = load_profile(name, overrides)[1]
    return problem


def good(name: str = "mine", **overrides: str) -> Profile:
    profile, problems = load_profile(name, overrides)
    assert problems == []
    return profile


def test_shipped_profiles_load() -> None:
    sources, broken = list_profiles()
    assert broken == []
    assert {source.name for source in sources} >= {"local"}
    for source in sources:
        assert source.problems == (), source
        assert source.name == source.kind
        assert source.profile is not None
        assert place_of(source.profile).profile == source.profile


def test_shipped_files_name_every_key_of_their_kind() -> None:
    """They are what `executors init` writes for a user to edit: a key that is missing would never be found."""
    shared = {field.name for field in dataclasses.fields(Profile)} - {"env", "output_root"}
    for name in profile_names():
        keys = {field.name for field in dataclasses.fields(good(name))} - shared
        text = (SHIPPED / f"{name}.yaml").read_text()
        assert {key for key in keys if not re.search(rf"\b{key}:", text)} == set(), name


def test_a_name_that_nobody_has() -> None:
    profile, problems = load_profile("locl", {})
    assert profile == LocalProfile()
    assert [problem.name for problem in problems] == ["unknown_executor"]
    assert "Did you mean local?" in problems[0].remedy


def test_overlay_of_a_shipped_profile_key_by_key(own: Write) -> None:
    own("local:\n  env: {A: '1'}\n")
    own("local:\n  env: {A: '0', B: '2'}\n  packager: git\n", "config/modelopt-recipes/executors.yaml")
    profile = good("local")
    assert (profile.env, profile.packager, profile.kind) == ({"A": "1", "B": "2"}, "git", "local")


def test_the_nearest_file_counts_and_only_that_one(own: Write) -> None:
    own("mine: {kind: local, env: {FROM: above}}\n")
    own("mine: {kind: local, env: {FROM: near}}\n", "project/deep/executors.yaml")
    own("mine: {kind: local, output_root: /data}\n", "config/modelopt-recipes/executors.yaml")
    profile = good()
    assert (profile.env, profile.output_root) == ({"FROM": "near"}, "/data")


def test_a_file_named_is_read_alone(own: Write, tmp_path: Path) -> None:
    own("mine: {kind: local}\n")
    file = own("other: {extends: local}\n", "elsewhere/mine.yaml")
    assert {"local", "other"} <= set(profile_names(file))
    assert "mine" not in profile_names(file)
    _, problems = load_profile("local", {}, files=tmp_path / "none.yaml")
    assert [problem.name for problem in problems] == ["broken_profile_file"]
    assert "No such file" in problems[0].cause


def test_a_relative_config_home_is_ignored(own: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "config")
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    assert profile_files.user_file() == tmp_path / "user/.config/modelopt-recipes/executors.yaml"


def test_extends_starts_from_another(own: Write) -> None:
    own(
        "base: {kind: local, env: {A: '1', B: '2'}, include: [a, b], output_root: /x}\n"
        "mine: {extends: base, env: {B: null, C: '3'}, include: [c], output_root: null}\n"
        "third: {extends: mine, env: {A: last}}\n"
    )
    assert good() == LocalProfile(env={"A": "1", "C": "3"}, include=["c"])
    assert good("third").env == {"A": "last", "C": "3"}


def test_extends_across_files(own: Write) -> None:
    own("base: {kind: local, env: {A: '1'}}\nmine: {extends: base}\n", "config/modelopt-recipes/executors.yaml")
    own("mine: {env: {B: '2'}}\nbase: {env: {C: '3'}}\n")
    assert good().env == {"A": "1", "B": "2", "C": "3"}


@pytest.mark.parametrize(
    ("text", "name", "key", "says"),
    [
        ("mine: {extends: mine}", "circular_extends", "mine.extends", "mine -> mine"),
        ("mine: {extends: b}\nb: {extends: mine}", "circular_extends", "b.extends", "mine -> b -> mine"),
        ("local: {extends: local}\nmine: {extends: local}", "circular_extends", "local.extends", "local -> local"),
        ("mine: {extends: loca}", "unknown_profile", "mine.extends", "no profile of that name"),
        ("mine: {extends: [local]}", "wrong_value", "mine.extends", "one profile"),
        ("mine: {env: {A: '1'}}", "missing_kind", "mine.kind", "it has no kind"),
        ("mine:", "missing_kind", "mine.kind", "it has no kind"),
        ("mine: {kind: slrm}", "unknown_kind", "mine.kind", "no such kind"),
        ("mine: {kind: [local]}", "unknown_kind", "mine.kind", "no such kind"),
        ("mine: {extends: local, kind: slurm}", "wrong_value", "mine.kind", "a kind cannot change"),
        ("mine: word", "not_a_profile", "mine", "a profile is a mapping"),
        ("mine: [1, 2]", "not_a_profile", "mine", "a profile is a mapping"),
        ("mine:\n  kind: local\n  kind: local", "duplicate_key", "mine.kind", "line 3: the key stands there twice"),
        ("mine: {kind: local, env: {A: '1', A: '2'}}", "duplicate_key", "mine.env.A", "twice"),
        ("mine:\n  kind: local\n  nods: 2", "unknown_key", "mine.nods", "line 3: a local profile has no such key"),
        ("mine: {kind: local, nodes: two}", "wrong_value", "mine.nodes", "valid integer"),
        ("mine: {kind: local, packager: gti}", "wrong_value", "mine.packager", "Did you mean git?"),
        ("mine: {kind: local, include: '*.py'}", "wrong_value", "mine.include", "a list is expected"),
        ("mine: {kind: local, include: {a: b}}", "wrong_value", "mine.include", "valid list"),
        ("mine: {kind: local, env: word}", "wrong_value", "mine.env", "a mapping is expected"),
        ("mine: {kind: local, env: [a]}", "wrong_value", "mine.env", "valid dictionary"),
        ("mine: {kind: local, env: {A: [1]}}", "wrong_value", "mine.env.A", "valid string"),
        ("mine: {kind: local, env: {1A: x}}", "wrong_value", "mine.env.1A", "variable's name"),
        ("mine: {kind: local, env: {'A B': x}}", "wrong_value", "mine.env.A B", "variable's name"),
        ("mine: {kind: local, env: {NEMO_RUN_DIR: x}}", "wrong_value", "mine.env.NEMO_RUN_DIR", "for each job"),
        ("mine: {kind: local, packager: null}", "wrong_value", "mine.packager", "choices"),
        ("mine: {kind: local, ? [a] : b}", "wrong_value", "mine", "a key is a word"),
    ],
)
def test_what_does_not_fit(own: Write, text: str, name: str, key: str, says: str) -> None:
    file = own(text + "\n")
    problem = problem_of()
    assert (problem.name, problem.key) == (name, key)
    assert str(file) in problem.cause
    assert says in f"{problem.cause} {problem.remedy}"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"mine: [", "is not YAML at line"),
        (b"mine: {a: *b}", "aliases"),
        (b"a: &a [*a]", "aliases"),
        (b"mine: {kind: local}\n---\nother: {}", "is not YAML at line 2"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"mine: a\x07b", "is not YAML"),
        (b"- a\n- b", "must map names to profiles"),
        (b"word", "must map names to profiles"),
        (b"[" * 20000, "is not YAML"),
        (b"mine: {kind: local}\nmine: {}", "stands there before, at line 1"),
        (b"a b: {kind: local}", "a profile's name"),
        (b"[x]: {kind: local}", "a profile's name"),
        (b"#" * (1 << 21), "larger than"),
    ],
)
def test_a_file_that_is_broken(own: Write, content: bytes, says: str) -> None:
    file = own(content)
    profile, problems = load_profile("local", {})
    assert profile == LocalProfile()
    assert len(problems) == 1
    assert str(file) in str(problems[0])
    assert says in problems[0].cause
    assert list_profiles()[1] == problems


def test_an_unreadable_file(own: Write) -> None:
    file = own("x: 1")
    file.unlink()
    file.mkdir()
    (problem,) = load_profile("local", {}, files=file)[1]
    assert problem.cause == "cannot be read: Is a directory"


def test_a_profile_without_its_name(own: Write) -> None:
    """The shape of the shipped files, copied as it is."""
    own("kind: local\nnodes: 1\n")
    remedies = [problem.remedy for source in list_profiles()[0] for problem in source.problems]
    assert any("write `NAME:` above" in remedy for remedy in remedies)


def test_a_problem_of_one_profile_is_none_of_another(own: Write) -> None:
    own("bad: {kind: nope}\nmine: {kind: local}\n")
    assert good() == LocalProfile()
    assert {source.name for source in list_profiles()[0] if source.problems} == {"bad"}


def test_every_problem_at_once_and_what_fits_is_kept(own: Write) -> None:
    own("mine: {kind: local, nods: 1, nodes: two, packager: none, env: {A: ok, HF_TOKEN: x}}\n")
    profile, problems = load_profile("mine", {"nope": "1", "nodes": "three", "env.B": "2"})
    assert [problem.key for problem in problems] == [
        "mine.nods",
        "mine.nodes",
        "mine.env.HF_TOKEN",
        "executor.nope",
        "executor.nodes",
    ]
    assert profile == LocalProfile(packager="none", env={"A": "ok", "B": "2"})


def test_numbers_of_a_word_s_variables_are_texts_and_a_wrong_name_is_told() -> None:
    profile, problems = load_profile("local", {"env": '{A: 1, "B C": x, D: 1e3}'})
    assert profile is not None and profile.env == {"A": "1", "D": "1e3"}
    (problem,) = problems
    assert problem.key == "executor.env.B C" and "a variable's name is letters" in problem.cause


def test_text_stays_text(own: Write) -> None:
    """YAML would make numbers, truth values and times of these."""
    own(
        "mine:\n  kind: local\n  nodes: 2\n  output_root: 12:00:00\n  env:\n    A: yes\n    B: 1\n    C: 1e3\n"
        '    D: 12:30:00\n    E: \' a "b" $c \'\n    F: 010\n    G: ""\n    H: ~\n  include: [1, true]\n'
    )
    profile = good()
    assert (profile.nodes, profile.output_root, profile.include) == (2, "12:00:00", ["1", "true"])
    env = {"A": "yes", "B": "1", "C": "1e3", "D": "12:30:00", "E": ' a "b" $c ', "F": "010", "G": ""}
    assert profile.env == env
    assert {type(value) for value in profile.env.values()} == {str}


def test_sections_with_only_comments_say_nothing(own: Write) -> None:
    own("base: {kind: local, env: {A: '1'}, secrets: [X]}\nmine:\n  extends: base\n  env:\n    # B: 2\n  secrets:\n")
    assert good() == LocalProfile(env={"A": "1"}, secrets=["X"])


def test_variables_of_this_machine(own: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SITE", "a b")
    monkeypatch.setenv("COUNT", "3")
    monkeypatch.delenv("UNSET", raising=False)
    own(
        "mine:\n  kind: local\n  nodes: ${oc.env:COUNT}\n  output_root: /x/${oc.env:SITE}\n"
        "  env:\n    A: ${oc.env:UNSET,WARN}\n    B: '${oc.env:UNSET,${oc.env:SITE}}'\n    C: \\${HOME} and $HOME\n"
        "  include: ['${oc.env:SITE}', plain]\n"
    )
    profile = good()
    assert (profile.nodes, profile.output_root, profile.include) == (3, "/x/a b", ["a b", "plain"])
    assert profile.env == {"A": "WARN", "B": "a b", "C": "${HOME} and $HOME"}


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        ("${oc.env:UNSET}", "unset_variable", "the variable UNSET is not set"),
        ("a ${oc.env:UNSET} b", "unset_variable", "${oc.env:UNSET,VALUE}"),
        ("${HOME}", "wrong_value", "only ${oc.env:NAME}"),
        ("${oc.env:HOME", "wrong_value", "only ${oc.env:NAME}"),
        ("${oc.decode:1}", "wrong_value", "only ${oc.env:NAME}"),
        ("${oc.env:${oc.env:HOME}}", "wrong_value", "only ${oc.env:NAME}"),
        ("${env.A}", "wrong_value", "only ${oc.env:NAME}"),
    ],
)
def test_variables_that_cannot_be_filled_in(
    own: Write, monkeypatch: pytest.MonkeyPatch, text: str, name: str, says: str
) -> None:
    monkeypatch.delenv("UNSET", raising=False)
    file = own(f"mine:\n  kind: local\n  env:\n    A: '{text}'\n")
    problem = problem_of()
    assert (problem.name, problem.key) == (name, "mine.env.A")
    assert f"{file}, line 4" in problem.cause
    assert says in f"{problem.cause} {problem.remedy}"


def test_an_overlaid_value_is_not_asked_for(own: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNSET", raising=False)
    own("base: {kind: local, output_root: '${oc.env:UNSET}'}\nmine: {extends: base, output_root: /x}\n")
    assert good().output_root == "/x"


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ("env: {HF_TOKEN: 'MARKER-1'}", "mine.env.HF_TOKEN"),
        ("env: {MY_API_KEY: 'MARKER-1'}", "mine.env.MY_API_KEY"),
        ("secrets: [PLAIN], env: {PLAIN: 'MARKER-1'}", "mine.env.PLAIN"),
        ("env: {A: '${oc.env:WANDB_API_KEY}'}", "mine.env.A"),
        ("env: {A: '${oc.env:WANDB_API_KEY,x}'}", "mine.env.A"),
        ("output_root: '/${oc.env:DB_PASSWORD}'", "mine.output_root"),
        ("include: ['${oc.env:SECRET}']", "mine.include"),
    ],
)
def test_secrets_stay_out(own: Write, monkeypatch: pytest.MonkeyPatch, values: str, key: str) -> None:
    for name in ("WANDB_API_KEY", "DB_PASSWORD", "SECRET"):
        monkeypatch.setenv(name, "MARKER-1")
    own(f"mine: {{kind: local, {values}}}\n")
    profile, problems = load_profile("mine", {})
    assert [(problem.name, problem.key) for problem in problems] == [("secret_in_env", key)]
    assert "secrets: [" in problems[0].remedy
    assert "MARKER" not in f"{problems} {profile}"


@pytest.mark.parametrize(
    "text", ["secrets: {HF_TOKEN: MARKER-1}", "secrets: [MARKER-1]", "secrets: MARKER-1", "env: {HF_TOKEN: [MARKER-1]}"]
)
def test_a_secret_in_the_wrong_place_is_not_shown(own: Write, text: str) -> None:
    own(f"mine: {{kind: local, {text}}}\n")
    assert "MARKER" not in str(load_profile("mine", {}))
    own(f"mine: {{kind: local, {text} oops\n]\n")
    assert "MARKER" not in str(load_profile("mine", {}))


def test_secrets_on_the_command_line() -> None:
    assert problem_of("local", **{"env.HF_TOKEN": "MARKER"}).name == "secret_in_env"
    _, problems = load_profile("local", {"secrets": "[PLAIN]", "env.PLAIN": "MARKER", "env": "{MY_TOKEN: MARKER}"})
    assert {problem.key for problem in problems} == {"executor.env.PLAIN", "executor.env.MY_TOKEN"}
    assert "MARKER" not in str(problems)


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("HF_TOKEN", True),
        ("hf_token", True),
        ("WANDB_API_KEY", True),
        ("NGC_CLI_APIKEY", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("DB_PASSWORD", True),
        ("TOKENIZERS_PARALLELISM", False),
        ("MAX_TOKENS", False),
        ("HF_TOKEN_PATH", False),
        ("NCCL_DEBUG", False),
    ],
)
def test_what_looks_secret(name: str, secret: bool) -> None:
    assert looks_secret(name) is secret


def test_a_switch_is_no_secret() -> None:
    assert good("local", **{"env.HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}).env == {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}


def test_command_line_values() -> None:
    profile = good(
        "local", nodes="2", output_root="/a b", include="[a, 'b c']", **{"env.A": "x y", "env.B": "$HOME ${X}"}
    )
    assert profile.env == {"A": "x y", "B": "$HOME ${X}"}
    assert (profile.nodes, profile.output_root, profile.include) == (2, "/a b", ["a", "b c"])
    assert good("local", nodes="null").nodes is None
    assert good("local", env="{A: 'b'}").env == {"A": "b"}
    assert good("local", include="**/*.py").include == ["**/*.py"]
    assert good("local", include="").include == []


def test_values_of_any_type(own: Write) -> None:
    """docker's `additional` goes to a library that wants numbers and truth values."""
    own(
        "mine:\n  extends: docker\n  additional:\n    a: 1\n    b: '1'\n    c: true\n    d: [1.5, x]\n"
        "    e: {f: no, g: null}\n    h: 10:20\n    i: ${oc.env:UNSET,3}\n"
    )
    profile = good("mine", **{"additional.j": "4", "additional.k": "a: [b"})
    expected = {"a": 1, "b": "1", "c": True, "d": [1.5, "x"], "e": {"f": False}, "h": "10:20", "i": "3"}
    assert vars(profile)["additional"] == {**expected, "j": 4, "k": "a: [b"}


@pytest.mark.parametrize("key", ["kind", "extends", "nods", "nodes.x", "include.0", ""])
def test_command_line_keys_that_there_are_not(key: str) -> None:
    assert problem_of("local", **{key: "x"}).name == "unknown_key"


def test_a_recorded_profile_comes_back() -> None:
    for name in profile_names():
        profile = dataclasses.replace(good(name), env={"A": "b c"}, secrets=["HF_TOKEN"], nodes=3)
        recorded = json.loads(json.dumps({"name": "some", **dataclasses.asdict(profile)}))
        assert profile_from_record(recorded) == profile
        assert profile_from_record({**recorded, "of_another_version": 1}) == profile
    assert profile_from_record({"kind": "local"}) == LocalProfile()


@pytest.mark.parametrize("record", [{}, {"kind": "nope"}, {"kind": None}, {"kind": "local", "nodes": "x"}])
def test_a_recorded_profile_that_cannot_be_read(record: dict[str, object]) -> None:
    with pytest.raises(JobError, match="unknown_profile"):
        profile_from_record(record)


def test_place_of_a_profile() -> None:
    assert isinstance(place_of(LocalProfile()), LocalPlace)
    assert "local" in kinds()


def test_loading_a_profile_imports_no_service() -> None:
    code = (
        "import sys; from executors import load_profile, place_of; from executors.profiles.load import list_profiles;"
        "place_of(load_profile('local', {})[0]); list_profiles();"
        "print([m for m in ('nemo_run', 'docker', 'leptonai', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


# --- damaged files -----------------------------------------------------------------------------

_GOOD = b"""# a comment
base:
  kind: local
  env: {A: "1", B: ${oc.env:HOME,x}}
mine:
  extends: base
  include:
    - src/**/*.py
  nodes: 2
"""


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_never_ends_in_a_traceback(own: Write, data: st.DataObject) -> None:
    content = bytearray(_GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        end = min(len(content), at + data.draw(st.integers(0, 6)))
        content[at:end] = data.draw(st.one_of(st.binary(max_size=4), st.sampled_from(_PIECES)))
    own(bytes(content))
    profile, problems = load_profile("mine", {"env.C": "3"})
    assert isinstance(profile, Profile)
    assert all(isinstance(problem, Problem) and str(problem) for problem in problems)
    list_profiles()


_PIECES = [
    b"{",
    b"}",
    b"[",
    b"*a",
    b"&a ",
    b"!!python/object:os.system ",
    b"${",
    b"}",
    b"\t",
    b"\n",
    b": ",
    b"? ",
    b"---\n",
    b"'",
]


_LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8), st.just("${oc.env:HOME}"))
_TREES = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=8,
)
_KEYS = st.sampled_from(["kind", "extends", "env", "nodes", "secrets", "include", "packager", "output_root", "other"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.dictionaries(
        st.sampled_from(["mine", "local", "b"]),
        st.one_of(
            st.dictionaries(_KEYS, st.one_of(_TREES, st.sampled_from(["local", "b", "mine"])), max_size=5), _TREES
        ),
    )
)
def test_values_of_any_shape_never_end_in_a_traceback(own: Write, content: dict[str, object]) -> None:
    own(json.dumps(content))  # JSON is YAML
    for name in ("mine", "local", "b"):
        profile, problems = load_profile(name, {})
        assert isinstance(profile, Profile)
        assert all(str(problem) for problem in problems)
        if not problems:
            assert profile_from_record(dataclasses.asdict(profile)) == profile
    list_profiles()
