"""A reader of pickles that executes nothing: it builds a tree of plain nodes and looks up no name.

The opcodes come from the standard library's disassembler (pickletools.genops), protocols 0 to 5. A global is
its dotted name, a call is a node with function and arguments. Calls other than those a tensor or a
torch.nn.Module needs are refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

MAX_OPCODES = 1_000_000  # bounds the memory of the tree; a pickled network has thousands

REBUILD_TENSOR = "torch._utils._rebuild_tensor_v2"
REBUILD_PARAMETER = "torch._utils._rebuild_parameter"
LOAD_STORAGE = "torch.storage._load_from_bytes"
ENCODE = "_codecs.encode"
ORDERED_DICT = "collections.OrderedDict"
CALLS = {
    REBUILD_TENSOR,
    REBUILD_PARAMETER,
    LOAD_STORAGE,
    ENCODE,  # how protocol 2 writes bytes
    ORDERED_DICT,
    "__builtin__.set",
    "builtins.set",
}


class PickleError(Exception):
    """The bytes are no pickle, or hold what is refused; the message says which in one line."""


# Nodes compare and hash by identity: a hostile tree can be deep, or refer to itself.


@dataclass(eq=False, repr=False)
class Global:
    """A name, never looked up."""

    name: str


@dataclass(eq=False, repr=False)
class Mapping:
    """A dict: its keys and values in the order written."""

    pairs: list[tuple[object, object]] = field(default_factory=list)

    def strings(self) -> dict[str, object]:
        """The entries whose key is a string."""
        return {key: value for key, value in self.pairs if isinstance(key, str)}


@dataclass(eq=False, repr=False)
class Call(Mapping):
    """A call that would have been made; ``pairs`` are the items that would have been set on the result.

    Attributes:
        function: dotted name.
        arguments: positional ones.
        state: what would have gone to ``__setstate__``.
    """

    function: str = ""
    arguments: tuple[object, ...] = ()
    state: object = None


@dataclass(eq=False, repr=False)
class New(Call):
    """An object that would have been made of the class ``function`` without arguments."""


@dataclass(eq=False, repr=False)
class Persistent:
    """A reference to something kept outside the pickle."""

    identity: object


@dataclass(eq=False, repr=False)
class Unordered:
    """A set; its elements are of no use here."""


def parse(stream: BytesIO) -> tuple[Any, list[Persistent]]:
    """Read one pickle from ``stream``, which is left behind its end.

    Returns:
        (the tree, every persistent reference in it).

    Raises:
        PickleError: no complete pickle of supported opcodes, or a call that is refused.
    """
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count >= MAX_OPCODES:
                raise PickleError(f"it has more than {MAX_OPCODES} operations")
            machine.execute(opcode.name, argument)
        return machine.pop(), machine.persistent
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        # What the disassembler and the stack raise on damaged bytes.
        raise PickleError("it is not a complete pickle") from error


def printable(name: str) -> str:
    """``name`` fit for a one-line message, whatever the file put there."""
    return name if len(name) <= 80 and name.isascii() and name.isprintable() else ascii(name[:80])


class _Machine:
    """The unpickler's stack and memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.persistent: list[Persistent] = []

    def execute(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _HANDLERS:
            _HANDLERS[name](self, argument)
        elif name not in _IGNORED:
            raise PickleError(f"it holds the operation {name}, which is not supported")

    def pop(self) -> Any:
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise IndexError("nothing above the mark")
        return self.stack.pop()

    def top(self, kind: type | tuple[type, ...]) -> Any:
        self.push(self.pop())
        if not isinstance(self.stack[-1], kind):
            raise ValueError("an operation on the wrong kind of object")
        return self.stack[-1]

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def make_tuple(self, size: int) -> None:
        values = [self.pop() for _ in range(size)]
        self.push(tuple(reversed(values)))

    def make_dict(self) -> None:
        node = Mapping()
        values = self.pop_mark()
        self.push(node)
        self.set_items(values)

    def set_items(self, values: list[Any]) -> None:
        node = self.top(Mapping)
        node.pairs.extend(zip(values[::2], values[1::2], strict=True))

    def memoize(self, index: int) -> None:
        self.memo[index] = self.top(object)

    def find_global(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is no string")
        self.push(Global(f"{module}.{name}"))

    def call(self, function: object, arguments: object) -> None:
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise ValueError("a call without a function or arguments")
        if function.name not in CALLS:
            raise PickleError(f"it calls {printable(function.name)}, which is refused; nothing was executed")
        self.push(Call(function=function.name, arguments=arguments))

    def new(self, kind: object, arguments: object) -> None:
        if not isinstance(kind, Global) or arguments != ():
            raise PickleError("it makes an object from arguments, which is refused; nothing was executed")
        self.push(New(function=kind.name))

    def instantiate(self, function: object, arguments: list[Any]) -> None:
        self.call(function, tuple(arguments))

    def reduce(self) -> None:
        arguments = self.pop()
        self.call(self.pop(), arguments)

    def new_object(self) -> None:
        arguments = self.pop()
        self.new(self.pop(), arguments)

    def build(self) -> None:
        state = self.pop()
        self.top(Call).state = state

    def refer(self, identity: object) -> None:
        node = Persistent(identity)
        self.persistent.append(node)
        self.push(node)

    def stack_global(self) -> None:
        name = self.pop()
        self.find_global(self.pop(), name)

    def set_item(self) -> None:
        value = self.pop()
        self.set_items([self.pop(), value])

    def append(self) -> None:
        value = self.pop()
        self.top(list).append(value)

    def extend(self, values: list[Any]) -> None:
        self.top(list).extend(values)

    def frozen_set(self) -> None:
        self.pop_mark()
        self.push(Unordered())

    def old_object(self) -> None:
        function, *arguments = self.pop_mark()
        self.instantiate(function, arguments)

    def pop_or_mark(self) -> None:
        # POP takes the mark itself if nothing lies above it.
        if self.marks and len(self.stack) == self.marks[-1]:
            self.marks.pop()
        else:
            self.pop()


_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": Mapping,
    "EMPTY_SET": Unordered,
}
_IGNORED = frozenset(["PROTO", "FRAME", "STOP"])
_HANDLERS: dict[str, Callable[[_Machine, Any], object]] = {
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "POP": lambda m, _: m.pop_or_mark(),
    "POP_MARK": lambda m, _: m.pop_mark(),
    "DUP": lambda m, _: m.push(m.top(object)),
    "LIST": lambda m, _: m.push(m.pop_mark()),
    "TUPLE": lambda m, _: m.push(tuple(m.pop_mark())),
    "TUPLE1": lambda m, _: m.make_tuple(1),
    "TUPLE2": lambda m, _: m.make_tuple(2),
    "TUPLE3": lambda m, _: m.make_tuple(3),
    "DICT": lambda m, _: m.make_dict(),
    "FROZENSET": lambda m, _: m.frozen_set(),
    "APPEND": lambda m, _: m.append(),
    "APPENDS": lambda m, _: m.extend(m.pop_mark()),
    "ADDITEMS": lambda m, _: (m.pop_mark(), m.top(Unordered)),
    "SETITEM": lambda m, _: m.set_item(),
    "SETITEMS": lambda m, _: m.set_items(m.pop_mark()),
    "PUT": lambda m, index: m.memoize(index),
    "BINPUT": lambda m, index: m.memoize(index),
    "LONG_BINPUT": lambda m, index: m.memoize(index),
    "MEMOIZE": lambda m, _: m.memoize(len(m.memo)),
    "GET": lambda m, index: m.push(m.memo[index]),
    "BINGET": lambda m, index: m.push(m.memo[index]),
    "LONG_BINGET": lambda m, index: m.push(m.memo[index]),
    "GLOBAL": lambda m, names: m.find_global(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.stack_global(),
    "INST": lambda m, names: m.instantiate(Global(names.replace(" ", ".", 1)), m.pop_mark()),
    "OBJ": lambda m, _: m.old_object(),
    "REDUCE": lambda m, _: m.reduce(),
    "NEWOBJ": lambda m, _: m.new_object(),
    "BUILD": lambda m, _: m.build(),
    "PERSID": lambda m, identity: m.refer(identity),
    "BINPERSID": lambda m, _: m.refer(m.pop()),
}
