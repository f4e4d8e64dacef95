"""A new profile in the user's file, made of the one that ships, with its comments."""

import stat
import textwrap
from pathlib import Path
from typing import NoReturn

from executors.constraints import to_set_first
from executors.kinds import kind_of, kinds, template_of
from executors.profiles.files import NAME, ProfileFile, parse, user_file
from scripts.run.files import expanded, read_limited, write_text
from scripts.run.problems import JobError, Problem, ProblemsError, nearest

#: For a new file of one's own: names of hosts, users and accounts are nobody else's business.
_PRIVATE = 0o600
_MOST_BYTES = 8 << 20


def add_profile(kind: str, name: str, file: Path | None) -> Path:
    """Append profile `name` to `file` (None: the user's own), and return the file.

    Raises ProblemsError when the name is taken or the file is not one to append to, JobError
    `not_written` where the disk refuses. An existing file keeps its mode; a new one of the user's
    configuration folder is private, while one elsewhere is a project's and as the umask says.
    """
    if kind not in kinds():
        _refuse("unknown_kind", "kind", kind, "there is no such kind", nearest(kind, kinds()))
    if not NAME.fullmatch(name):
        _refuse("bad_profile_name", "--name", name, "a profile's name is letters, digits, `.`, `_` and `-`")
    if name in kinds() and name != kind:
        cause = f"a profile of kind {name} ships under that name"
        _refuse("name_taken", "--name", name, cause, "Choose another name.")
    own = user_file()
    target = expanded(file).absolute() if file is not None else own
    if target is None:
        _refuse("no_home", "--file", None, "neither XDG_CONFIG_HOME nor HOME says where your files lie", "Give --file.")
    target = target.resolve()  # a link stays one
    try:
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None if file is not None else _PRIVATE
        before = read_limited(target, _MOST_BYTES) if target.exists() else b""
        write_text(target, _appended(target, before, name, kind))
        if mode is not None:
            target.chmod(mode)
    except OSError as error:
        raise JobError("not_written", f"{target}: {error.strerror}.", "Give another file with --file.") from error
    except ProblemsError:
        raise
    except ValueError as error:  # more than any profiles are
        raise JobError("not_written", f"{target}: {error}.", "Give another file with --file.") from error
    return target


def _appended(target: Path, before: bytes, name: str, kind: str) -> str:
    """The new text of the file. It must read as the old one does, with one profile more."""
    old = parse(target, before)
    if old.problems:
        raise ProblemsError(old.problems)
    if name in old.layers:
        cause = f"{target}, line {old.layers[name].lines['']}: it is there already"
        _refuse("name_taken", "--name", name, cause, "Edit it, or choose --name.")
    text = before.decode("utf-8")
    if text.strip():
        text = text.rstrip("\n") + "\n\n"
    first = to_set_first(kind_of(kind).profile)
    lines = ["# Set first:", *(f"#   {key}: {what}" for key, what in first.items())] if first else []
    text += f"{name}:\n" + textwrap.indent("\n".join([*lines, template_of(kind)]), "  ").rstrip() + "\n"
    new = parse(target, text.encode())
    if not _is_old_and(name, old, new):
        cause = f"{target} is not written as `NAME:` with indented keys below, so nothing can be appended to it"
        _refuse("cannot_append", "--file", str(target), cause, "Rewrite it that way, or give another file with --file.")
    return text


def _is_old_and(name: str, old: ProfileFile, new: ProfileFile) -> bool:
    kept = {key: layer.values for key, layer in new.layers.items() if key != name}
    added = new.layers.get(name)
    whole = added is not None and bool(added.values) and not (added.problems or new.problems)
    return whole and kept == {key: layer.values for key, layer in old.layers.items()}


def _refuse(name: str, key: str, value: str | None, cause: str, remedy: str = "") -> NoReturn:
    raise ProblemsError([Problem(name=name, key=key, value=value, cause=cause, remedy=remedy)])
