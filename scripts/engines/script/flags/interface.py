"""What a script's command line accepts: the flags of its argparse parser, as plain data."""

from dataclasses import dataclass, replace
from typing import Literal

#: value: `--flag VALUE`; list: `--flag A B C`; on, off: a switch; toggle: `--flag` or `--no-flag`; append: repeated.
FlagKind = Literal["value", "list", "on", "off", "toggle", "append"]


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One option of a parser."""

    names: tuple[str, ...]  # every spelling, the first one first: ("--gpus-per-node", "--gpus_per_node")
    kind: FlagKind = "value"
    type: str = "str"  # the parser's own word: str, int, float, bool, or a function's name
    choices: tuple[str, ...] | None = None  # None: not limited, or not known without running the script
    required: bool = False
    default: str | None = None  # as text, for people; None where there is none
    commands: tuple[str, ...] = ()  # the subcommands that have it; empty: every one, or none is needed

    @property
    def name(self) -> str:
        """The spelling that is used."""
        return next((name for name in self.names if name.startswith("--")), self.names[0])


@dataclass(frozen=True, kw_only=True)
class Interface:
    """What one script, of one release, accepts."""

    flags: tuple[Flag, ...]
    closed: bool = True  # whether these are all; a parser that takes part of its flags from elsewhere is open
    commands: tuple[str, ...] = ()  # subcommands; then `required` says nothing, for nobody knows of which
    foreign: frozenset[str] = frozenset()  # plain names that only other releases have: an open one takes no such flag

    def find(self, name: str) -> Flag | None:
        """The flag of that name, whatever way its words are joined and however many hyphens it begins with."""
        wanted = plain(name)
        for flag in self.flags:
            if wanted in map(plain, flag.names):
                return flag
        return None

    def under(self, command: str) -> "Interface":
        """What that subcommand accepts; all of it where the script has none of that name."""
        if command not in self.commands:
            return self
        flags = tuple(flag for flag in self.flags if not flag.commands or command in flag.commands)
        return replace(self, flags=flags, commands=())

    def refuses(self, name: str) -> bool:
        """Whether a flag that is not in `flags` cannot come from elsewhere either."""
        return self.closed or plain(name) in self.foreign


def plain(name: str) -> str:
    """A flag's name without hyphens in front and with underscores inside: `--calib-size` -> `calib_size`."""
    return name.lstrip("-").replace("-", "_")


#: For a script that no table lists and no file here shows: it says nothing, and takes everything.
UNKNOWN = Interface(flags=(), closed=False)
