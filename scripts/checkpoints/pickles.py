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

MAX_BYTES = 256 << 20
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

    def nothing(self, _: object) -> None:
        """PROTO and FRAME say nothing about the content."""

    def mark(self, _: object) -> None:
        self.below.append(self.stack)
        self.stack = []

    def above_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def pop(self, _: object) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.above_mark()

    def memoize(self, _: object) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def append(self, _: object) -> None:
        item = self.stack.pop()
        _items(self.stack[-1]).append(item)

    def appends(self, _: object) -> None:
        items = self.above_mark()
        _items(self.stack[-1]).extend(items)

    def setitem(self, _: object) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _pairs(self.stack[-1]).append((key, value))

    def setitems(self, _: object) -> None:
        items = self.above_mark()
        _pairs(self.stack[-1]).extend(zip(items[::2], items[1::2], strict=True))

    def dictionary(self, _: object) -> None:
        items = self.above_mark()
        self.push(Pairs(zip(items[::2], items[1::2], strict=True)))

    def tuple_of_1(self, _: object) -> None:
        self.stack[-1] = (self.stack[-1],)

    def tuple_of_2(self, _: object) -> None:
        last = self.stack.pop()
        self.stack[-1] = (self.stack[-1], last)

    def tuple_of_3(self, _: object) -> None:
        last, middle = self.stack.pop(), self.stack.pop()
        self.stack[-1] = (self.stack[-1], middle, last)

    def name(self, words: str) -> None:
        module, _, name = words.partition(" ")
        self.push(Global(module, name))

    def stack_name(self, _: object) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError("a name that is no text")
        self.push(Global(module, name))

    def extension(self, code: int) -> None:
        self.push(Global("copyreg", f"extension {code}"))

    def call(self, _: object) -> None:
        args = self.stack.pop()
        self.stack[-1] = Call(self.stack[-1], args)

    def call_with_names(self, _: object) -> None:
        names, args = self.stack.pop(), self.stack.pop()
        self.stack[-1] = Call(self.stack[-1], args, state=names)

    def call_above_mark(self, _: object) -> None:
        function, *args = self.above_mark()
        self.push(Call(function, tuple(args)))

    def instance(self, words: str) -> None:
        args = tuple(self.above_mark())
        self.name(words)
        self.push(Call(self.stack.pop(), args))

    def build(self, _: object) -> None:
        state = self.stack.pop()
        self.stack[-1].state = state

    def persistent(self, _: object) -> None:
        self.push(Persistent(self.stack.pop()))


def _items(node: object) -> list[object]:
    if isinstance(node, Call):
        node.items = node.items or []
        return node.items
    if not isinstance(node, list) or isinstance(node, Pairs):
        raise PickleError("an item for something that is no list")
    return node


def _pairs(node: object) -> Pairs:
    if isinstance(node, Call):
        node.pairs = node.pairs or Pairs()
        return node.pairs
    if not isinstance(node, Pairs):
        raise PickleError("a pair for something that is no dictionary")
    return node


_Act = Callable[[_Machine, Any], object]


def _acts() -> dict[str, _Act]:
    """What each instruction does, by its name in pickletools; sets are kept as lists, which need no hash."""
    machine = _Machine
    values = """INT LONG LONG1 LONG4 BININT BININT1 BININT2 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE
        BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8"""
    acts: dict[str, _Act] = dict.fromkeys(values.split(), machine.push)
    acts |= {
        "NONE": machine.push,  # its argument is None
        "NEWTRUE": lambda m, _: m.stack.append(True),
        "NEWFALSE": lambda m, _: m.stack.append(False),
        "EMPTY_LIST": lambda m, _: m.stack.append([]),
        "EMPTY_SET": lambda m, _: m.stack.append([]),
        "EMPTY_DICT": lambda m, _: m.stack.append(Pairs()),
        "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
        "TUPLE1": machine.tuple_of_1,
        "TUPLE2": machine.tuple_of_2,
        "TUPLE3": machine.tuple_of_3,
        "TUPLE": lambda m, _: m.push(tuple(m.above_mark())),
        "LIST": lambda m, _: m.push(m.above_mark()),
        "FROZENSET": lambda m, _: m.push(m.above_mark()),
        "DICT": machine.dictionary,
        "DUP": lambda m, _: m.stack.append(m.stack[-1]),
        "POP_MARK": lambda m, _: m.above_mark(),
        "PERSID": lambda m, name: m.stack.append(Persistent(name)),
    }
    return acts | {
        "MARK": machine.mark,
        "POP": machine.pop,
        "MEMOIZE": machine.memoize,
        **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), machine.put),
        **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), machine.get),
        "APPEND": machine.append,
        **dict.fromkeys(("APPENDS", "ADDITEMS"), machine.appends),
        "SETITEM": machine.setitem,
        "SETITEMS": machine.setitems,
        "GLOBAL": machine.name,
        "STACK_GLOBAL": machine.stack_name,
        **dict.fromkeys(("EXT1", "EXT2", "EXT4"), machine.extension),
        **dict.fromkeys(("REDUCE", "NEWOBJ"), machine.call),
        "NEWOBJ_EX": machine.call_with_names,
        "OBJ": machine.call_above_mark,
        "INST": machine.instance,
        "BUILD": machine.build,
        "BINPERSID": machine.persistent,
        **dict.fromkeys(("PROTO", "FRAME"), machine.nothing),
    }


def _table() -> Mapping[bytes, tuple[Callable[[IO[bytes]], Any] | None, _Act]]:
    """Each instruction by its byte: the standard library's reader of its argument, and what it does here."""
    acts = _acts()
    known = [opcode for opcode in pickletools.opcodes if opcode.name in acts]
    return MappingProxyType(
        {
            opcode.code.encode("latin-1"): (opcode.arg.reader if opcode.arg else None, acts[opcode.name])
            for opcode in known
        }
    )


_TABLE = _table()
