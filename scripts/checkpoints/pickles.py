"""Pickles read without unpickling: what one describes as inert nodes. Nothing that it names is imported or called.

A pickle is a program for a machine with a stack and a memo. Here the instructions that would look up a class, call
it or set its state write down what they were asked for instead. No instruction can jump back, so the time is
bounded by the length of the program; the nodes are never hashed, compared or printed, since a program can make them
nested without end.
"""

import io
import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import IO, Any

MAX_OPCODES = 50_000_000  # the list of 50,000 pieces of tensors takes 6 million, and as many again for its plans
_STOP = b"."


class PickleError(ValueError):
    """A program that is cut short, damaged, or too long to be a checkpoint's."""


class Pairs(list[tuple[object, object]]):
    """A dictionary as the pairs it was made of: a key can be any node, and is not hashed."""

    __slots__ = ()


@dataclass(slots=True, eq=False)
class Global:
    """A name that unpickling would import."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Call:
    """An object that unpickling would make: what it would call, with what, and what it would then put in."""

    function: object
    args: object
    state: object = None
    items: list[object] | None = None
    pairs: Pairs | None = None


@dataclass(slots=True, eq=False)
class Persistent:
    """A reference to something outside the pickle, such as a tensor's storage."""

    id: object


def read_pickle(stream: io.BytesIO) -> object:
    """The node of the pickle that begins where `stream` stands; the stream is left behind its end.

    Raises PickleError.
    """
    try:
        return _Machine(stream).run()
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error, OverflowError) as error:
        # What an instruction does when the stack does not hold what it needs, as in a damaged program.
        reason = str(error) if isinstance(error, PickleError) else f"{type(error).__name__}: {error}"
        raise PickleError(f"not a whole pickle ({reason}, byte {stream.tell()})") from None


def pairs_of(node: object) -> Pairs:
    """The pairs of a dictionary or of an object that is one, such as an OrderedDict; else none."""
    if isinstance(node, Pairs):
        return node
    return (node.pairs if isinstance(node, Call) else None) or Pairs()


def mapping_of(node: object) -> dict[str, object]:
    """What a dictionary holds under names; its other keys are left out."""
    return {key: value for key, value in pairs_of(node) if isinstance(key, str)}


def attributes_of(node: object) -> dict[str, object]:
    """The attributes that an object's state would set."""
    state = node.state if isinstance(node, Call) else None
    if isinstance(state, tuple) and len(state) == 2:  # (of __dict__, of __slots__)
        return mapping_of(state[0]) | mapping_of(state[1])
    return mapping_of(state)


def is_call(node: object, *names: str) -> bool:
    """Whether `node` is an object of one of these classes or functions, whatever module they come from."""
    return isinstance(node, Call) and isinstance(node.function, Global) and node.function.name in names


class _Machine:
    def __init__(self, stream: io.BytesIO) -> None:
        self.stream = stream
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # stacks put aside by MARK
        self.memo: dict[int, object] = {}

    def run(self) -> object:
        stream, read, table = self.stream, self.stream.read, _TABLE
        for _ in range(MAX_OPCODES):
            code = read(1)
            if code == _STOP:
                return self.stack.pop()
            if code not in table:
                raise PickleError(f"no instruction {code.hex()}" if code else "it is cut short")
            reader, act = table[code]
            act(self, reader(stream) if reader else None)
        raise PickleError(f"it has more than {MAX_OPCODES} instructions")

    def push(self, value: object) -> None:
        self.stack.append(value)

    def top(self, count: int) -> list[Any]:
        """Take the last of the stack, in the order in which they were put there."""
        stack = self.stack
        items = stack[-count:]
        del stack[-count:]
        if len(items) < count:
            raise IndexError("the stack is empty")
        return items

    def mark(self, _: object) -> None:
        self.below.append(self.stack)
        self.stack = []

    def above_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def extend(self, items: list[Any]) -> None:
        node = self.stack[-1]
        if isinstance(node, Call):
            node.items = node.items or []
            node = node.items
        if not isinstance(node, list) or isinstance(node, Pairs):
            raise PickleError("an item for something that is no list")
        node.extend(items)

    def assign(self, items: list[Any]) -> None:
        node = self.stack[-1]
        if isinstance(node, Call):
            node.pairs = node.pairs or Pairs()
            node = node.pairs
        if not isinstance(node, Pairs):
            raise PickleError("a pair for something that is no dictionary")
        node.extend(_paired(items))

    def name(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError("a name that is no text")
        self.push(Global(module, name))

    def call(self, function: object, *args: object) -> None:
        self.push(Call(function, args))

    def build(self, _: object) -> None:
        state = self.stack.pop()
        self.stack[-1].state = state


def _paired(items: list[Any]) -> Pairs:
    return Pairs(zip(items[::2], items[1::2], strict=True))


_Act = Callable[[_Machine, Any], object]
_VALUES = """NONE INT LONG LONG1 LONG4 BININT BININT1 BININT2 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE
    BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8"""
#: What each instruction does, by its name in pickletools; sets are kept as lists, which need no hash. PROTO and FRAME
#: say nothing about the content. What takes the items above a mark changes `m.stack`, and looks it up afterwards: push.
_ACTS: dict[str, _Act] = {
    **dict.fromkeys(_VALUES.split(), _Machine.push),
    "NEWTRUE": lambda m, _: m.stack.append(True),
    "NEWFALSE": lambda m, _: m.stack.append(False),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_SET"), lambda m, _: m.stack.append([])),
    "EMPTY_DICT": lambda m, _: m.stack.append(Pairs()),
    "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
    "TUPLE1": lambda m, _: m.stack.append((m.stack.pop(),)),
    "TUPLE2": lambda m, _: m.stack.append(tuple(m.top(2))),
    "TUPLE3": lambda m, _: m.stack.append(tuple(m.top(3))),
    "TUPLE": lambda m, _: m.push(tuple(m.above_mark())),
    **dict.fromkeys(("LIST", "FROZENSET"), lambda m, _: m.push(m.above_mark())),
    "DICT": lambda m, _: m.push(_paired(m.above_mark())),
    "MARK": _Machine.mark,
    "POP": lambda m, _: m.stack.pop() if m.stack else m.above_mark(),
    "POP_MARK": lambda m, _: m.above_mark(),
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "MEMOIZE": lambda m, _: m.memo.setdefault(len(m.memo), m.stack[-1]),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, index: m.stack.append(m.memo[index])),
    "APPEND": lambda m, _: m.extend(m.top(1)),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda m, _: m.extend(m.above_mark())),
    "SETITEM": lambda m, _: m.assign(m.top(2)),
    "SETITEMS": lambda m, _: m.assign(m.above_mark()),
    "GLOBAL": lambda m, words: m.name(*words.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.name(*m.top(2)),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), lambda m, code: m.name("copyreg", f"extension {code}")),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda m, _: m.stack.append(Call(*m.top(2)))),
    "NEWOBJ_EX": lambda m, _: m.stack.append(Call(*m.top(3))),  # the names of its arguments are what it is set to
    "OBJ": lambda m, _: m.call(*m.above_mark()),
    "INST": lambda m, words: m.call(Global(*words.split(" ", 1)), *m.above_mark()),
    "BUILD": _Machine.build,
    "BINPERSID": lambda m, _: m.stack.append(Persistent(m.stack.pop())),
    "PERSID": lambda m, name: m.stack.append(Persistent(name)),
    **dict.fromkeys(("PROTO", "FRAME"), lambda m, _: None),
}
#: Each instruction by its byte: the standard library's reader of its argument, and what it does here.
_TABLE: Mapping[bytes, tuple[Callable[[IO[bytes]], Any] | None, _Act]] = MappingProxyType(
    {
        opcode.code.encode("latin-1"): (opcode.arg.reader if opcode.arg else None, _ACTS[opcode.name])
        for opcode in pickletools.opcodes
        if opcode.name in _ACTS
    }
)
