"""Which files travel with a job: those that git tracks, those that patterns match, or none."""

import fnmatch
import os
import stat
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from executors.base import Packaging
from scripts.run.problems import Problem, ProblemsError

_TIMEOUT = 300
_SKIPPED_FOLDERS = frozenset({".git", "__pycache__"})
#: Files that hold secrets, by name.
_WITHHELD = (
    ".env", ".env.*", ".git-credentials", ".netrc", ".pypirc", "*.key", "*.p12", "*.pem", "*.pfx", "credentials*.json",
    "id_dsa", "id_ecdsa", "id_ed25519", "id_rsa",
)  # fmt: skip
_HARMLESS = (".env.example", ".env.sample", ".env.template", ".env.dist")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The user's files that travel, and what is worth knowing about the others."""

    packager: Literal["git", "pattern", "none"]
    root: Path  # what becomes the root of the job's code
    paths: tuple[str, ...] = ()  # below `root`, with `/`
    commit: str | None = None
    changed: tuple[str, ...] = ()  # tracked, with uncommitted changes, which travel
    untracked: tuple[str, ...] = ()  # not tracked: they do not travel
    withheld: tuple[str, ...] = ()  # left out because their names say that they hold secrets
    missing: tuple[str, ...] = ()  # submodules that are not checked out


def select(folder: Path, *, packager: Packaging, include: Sequence[str]) -> Selection:
    """The user's files for `packager`. Raises ProblemsError saying everything that is in the way.

    auto is git inside a repository; outside one it is pattern where patterns are given, else none.
    With git, the whole repository around `folder` travels, and what `include` matches besides.
    """
    folder = folder.absolute()
    if not folder.is_dir():
        raise _problem("missing_folder", "executor.packager", packager, f"{folder} is not a folder")
    if packager == "auto":
        inside = any(os.path.lexists(parent / ".git") for parent in (folder, *folder.parents))
        packager = "git" if inside else "pattern" if include else "none"
    if packager == "git":
        return _by_git(folder, include)
    if packager == "pattern":
        return _by_pattern(folder, include)
    if include:
        cause = "executor.packager=none packs nothing of yours"
        raise _problem("include_unused", "executor.include", list(include), cause, "Use executor.packager=pattern.")
    return Selection(packager="none", root=folder)


def shown(path: str) -> str:
    """A path as text that any encoding takes; bytes that are no UTF-8 become escapes."""
    return os.fsencode(path).decode("utf-8", errors="backslashreplace")


def _by_git(folder: Path, include: Sequence[str]) -> Selection:
    top = _git(folder, "rev-parse", "--show-toplevel")
    root = Path(os.fsdecode(top.removesuffix(b"\n")))
    listed = set(_names(_git(root, "ls-files", "-z", "--cached", "--recurse-submodules")))
    listed -= _export_ignored(root, listed)
    commit, changed, untracked = _status(root)
    extra = _matches(folder.resolve(), root, include)
    paths, missing = [], []
    for path in listed | extra:
        kind = _kind(root, path)
        if kind == "folder":
            missing.append(path)
        elif kind is not None:
            paths.append(path)
    kept, withheld = _withhold(paths, folder.resolve(), root, include)
    return Selection(
        packager="git",
        root=root,
        paths=kept,
        commit=commit,
        changed=_sorted(set(changed) - set(missing)),
        untracked=_sorted(set(untracked) - extra),
        withheld=withheld,
        missing=_sorted(missing),
    )


def _by_pattern(folder: Path, include: Sequence[str]) -> Selection:
    if not include:
        cause = "executor.packager=pattern needs patterns, and there are none"
        raise _problem("no_patterns", "executor.include", None, cause, "Set executor.include='[src/**/*.py]'.")
    root = folder.resolve()
    kept, withheld = _withhold(_matches(root, root, include), root, root, include)
    return Selection(packager="pattern", root=root, paths=kept, withheld=withheld)


def _matches(folder: Path, root: Path, patterns: Sequence[str]) -> set[str]:
    """Files below `root` that patterns, seen from `folder`, match; a folder stands for all that is in it."""
    found: set[str] = set()
    problems: list[Problem] = []
    for pattern in patterns:
        try:
            found |= {file.relative_to(root).as_posix() for file in _matched(folder, root, pattern)}
        except ProblemsError as error:
            problems += error.problems
    if problems:
        raise ProblemsError(problems)
    return found


def _matched(folder: Path, root: Path, pattern: str) -> set[Path]:
    """What one pattern matches. Raises ProblemsError."""

    def refuse(name: str, cause: str, remedy: str = "") -> ProblemsError:
        return _problem(name, "executor.include", pattern, cause, remedy)

    if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        cause, remedy = "it leaves the folder that is packed", f"Patterns are seen from {folder}."
        raise refuse("pattern_leaves_folder", cause, remedy)
    try:
        files = {file for match in folder.glob(pattern) for file in _files(match)}
    except ValueError as error:
        raise refuse("bad_pattern", f"it is not a pattern: {error}") from error
    except OSError as error:
        raise refuse("unreadable_file", f"{error.filename}: {error.strerror}") from error
    outside = next((file for file in files if not file.is_relative_to(root)), None)
    if outside:  # behind a symbolic link
        cause = f"{outside} lies outside the folder that is packed"
        raise refuse("pattern_leaves_folder", cause, "Copy it into the folder.")
    if not files:
        remedy = f"Patterns are seen from {folder}; `**/` stands for any folders."
        raise refuse("pattern_matches_nothing", "no file matches it", remedy)
    return files


def _files(match: Path) -> Iterator[Path]:
    """The files that a match stands for, under their real folders; symbolic links stay links."""
    if _SKIPPED_FOLDERS & set(match.parts) or match.suffix == ".pyc":
        return
    mode = match.lstat().st_mode
    if stat.S_ISDIR(mode):
        for child in match.iterdir():
            yield from _files(child)
    elif stat.S_ISREG(mode) or stat.S_ISLNK(mode):
        yield match.parent.resolve() / match.name


def _withhold(
    paths: Iterable[str], folder: Path, root: Path, include: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`paths` parted into those that travel and those that look like secrets and are not named one by one."""
    named = {os.path.relpath(folder / word, root) for word in include}
    withheld = [path for path in paths if path not in named and _looks_secret(path)]
    return _sorted(set(paths) - set(withheld)), _sorted(withheld)


def _looks_secret(path: str) -> bool:
    name = path.rpartition("/")[2].lower()
    return name not in _HARMLESS and any(fnmatch.fnmatchcase(name, pattern) for pattern in _WITHHELD)


def _kind(root: Path, path: str) -> Literal["file", "folder"] | None:
    """What stands at a tracked path; None for what git sees as deleted, or is neither file nor link."""
    full = root / path
    try:
        mode = full.lstat().st_mode
    except OSError:
        return None
    if any((root / parent).is_symlink() for parent in list(Path(path).parents)[:-1]):
        return None  # a folder that was replaced by a link
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) or stat.S_ISLNK(mode) else None


def _status(root: Path) -> tuple[str | None, list[str], list[str]]:
    """The commit, tracked files that differ from it, and untracked files (a new folder is one name)."""
    commit, changed, untracked = None, [], []
    for entry in _names(_git(root, "status", "--porcelain=v2", "--branch", "--no-renames", "-z")):
        if entry.startswith("# branch.oid "):
            oid = entry.removeprefix("# branch.oid ")
            commit = None if oid == "(initial)" else oid
        elif entry.startswith("1 "):
            changed.append(entry.split(" ", 8)[8])
        elif entry.startswith("u "):
            changed.append(entry.split(" ", 10)[10])
        elif entry.startswith("? "):
            untracked.append(entry[2:])
    return commit, changed, untracked


def _export_ignored(root: Path, paths: set[str]) -> set[str]:
    """Those of `paths` that .gitattributes keeps out of archives, by themselves or by a folder above."""
    if not any(path == ".gitattributes" or path.endswith("/.gitattributes") for path in paths):
        return set()
    above = {path: [f"{parent}/" for parent in list(Path(path).parents)[:-1]] for path in paths}
    asked = sorted({*paths, *(folder for folders in above.values() for folder in folders)})
    given = b"".join(os.fsencode(path) + b"\0" for path in asked)
    answer = list(_names(_git(root, "check-attr", "-z", "--stdin", "export-ignore", stdin=given)))
    ignored = {path for path, value in zip(answer[::3], answer[2::3], strict=True) if value == "set"}
    return {path for path in paths if path in ignored or not ignored.isdisjoint(above[path])}


def _names(output: bytes) -> Iterator[str]:
    return (os.fsdecode(name) for name in output.split(b"\0") if name)


def _git(folder: Path, *words: str, stdin: bytes = b"") -> bytes:
    """What git prints. Raises ProblemsError for a repository that git cannot or will not read."""
    # A hook or a shell that names another repository must not decide what is packed here.
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or "CONFIG" in name}
    env |= {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", "-C", str(folder), "-c", "core.fsmonitor=false", *words]

    def refuse(name: str, cause: str, remedy: str = "") -> ProblemsError:
        around = "Use executor.packager=pattern or none to go without git."
        return _problem(name, "executor.packager", "git", cause, f"{remedy}  {around}".strip())

    try:
        done = subprocess.run(command, input=stdin, capture_output=True, env=env, timeout=_TIMEOUT)
    except FileNotFoundError:
        raise refuse("git_missing", "git is not installed here", "Install it.") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise refuse("git_failed", f"git {words[0]}: {error}") from error
    if done.returncode == 0:
        return done.stdout
    said = " ".join(done.stderr.decode(errors="replace").split())
    if "dubious ownership" in said:
        cause = f"another user owns the repository around {folder}, and git refuses to read it"
        raise refuse("git_ownership", cause, "Allow it: git config --global --add safe.directory FOLDER.")
    if "not a git repository" in said:
        raise refuse("not_a_repository", f"{folder} is not inside a git repository")
    if "must be run in a work tree" in said:
        raise refuse("not_a_repository", f"{folder} is a repository without a working tree")
    raise refuse("git_failed", f"git {words[0]}: {said[:500]}")


def _sorted(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(paths), key=os.fsencode))


def _problem(name: str, key: str, value: object, cause: str, remedy: str = "") -> ProblemsError:
    return ProblemsError([Problem(name=name, key=key, value=value, cause=cause, remedy=remedy)])
