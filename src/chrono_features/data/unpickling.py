"""Pickles from strangers: `pickle` runs what they say; here they can only describe arrays and plain values.

A pickle is a program for a stack machine. The machine below knows the opcodes of `OPCODES` and the globals of
`pickled_arrays.GLOBALS`, and nothing else. That is enough for what NumPy and the plain types write in protocols 0 to 5,
and it is safe, because no opcode reaches an object that could do anything:

- A global is an entry of `GLOBALS`, not a Python object. Only REDUCE can use it, which calls our function for it with
  arguments that the function checks; modules are never imported, nor attributes looked up.
- Arrays are read-only views of `bytes`, which nothing can free, resize or change. BUILD completes an array or a dtype
  of this pickle, each once, and accepts nothing else; APPEND(S) extend lists, SETITEM(S) fill dicts.
- The keys of a dict are text or integers: hashing runs no code, and no deep recursion. A key comes once.
- Memory is bounded by the size of the file: lengths and memo indices beyond it are refused, and functions that encode,
  view or copy what is memoised may not do so for more bytes than the file holds. What is memoised may stand in several
  places, as one object: whoever copies values bounds the copies, as `tapvid` does for frames.
"""

from __future__ import annotations

import os
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

from ..files import check_regular
from .pickled_arrays import GLOBALS, Budget, PickledDtype, Refused, UnbuiltArray

MAX_DEPTH = 32  # of containers; TAP-Vid's files have 4


def load_arrays(path: str | os.PathLike[str]) -> Any:
    """Returns what a pickle holds: dicts, lists, tuples, text, bytes, numbers and read-only NumPy arrays of those.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It asks for anything else, is truncated, or is no pickle or no regular file.
    """
    check_regular(path, "a pickle")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            return _checked(_Machine(size).run(_Reader(file, size)))
        except Refused as error:
            raise ValueError(f"{os.fspath(path)}: refused, {error}; expected only arrays and plain values") from error
        except _Truncated as error:
            raise ValueError(f"{os.fspath(path)}: truncated after {size} bytes") from error
        except OSError:
            raise
        except Exception as error:  # a damaged pickle raises anything
            what = f"{type(error).__name__}: {error}"
            raise ValueError(f"{os.fspath(path)}: not a readable pickle ({what})") from error


class _Truncated(Exception):
    """The file ends before the pickle does."""


class _Reader:
    """A file that never gives less than what is asked for, and allocates no more than it has."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, size

    def read(self, count: int) -> bytes:
        self._left -= count
        if self._left < 0:
            raise _Truncated
        return self._file.read(count)

    def readline(self) -> bytes:
        line = self._file.readline()
        self._left -= len(line)
        if not line.endswith(b"\n"):
            raise _Truncated
        return line


@dataclass(frozen=True)
class _Global:
    """What a pickle gets for `module.name`: a function for REDUCE, or None for what is only ever an argument."""

    name: str
    call: Callable[..., Any] | None


class _Machine:
    """The stack, the marks and the memo of a pickle of `size` bytes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.budget = Budget(size)
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}

    def run(self, source: Any) -> Any:
        for opcode, argument, _ in pickletools.genops(source):
            if opcode.name not in OPCODES:
                raise Refused(f"it uses the opcode {opcode.name}")
            OPCODES[opcode.name](self, argument)
        return self.stack.pop()

    def ignore(self, _: Any) -> None:
        pass

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, _: Any) -> None:
        self.stack.pop() if self.stack else self.since_mark()

    def mark(self, _: Any) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def since_mark(self, _: Any = None) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def put(self, index: int | None) -> None:
        index = len(self.memo) if index is None else index
        if not 0 <= index < self.size:
            raise Refused(f"it memoises at {index} in {self.size} bytes")
        self.memo[index] = value = self.stack[-1]
        if isinstance(value, UnbuiltArray):
            value.memo.append(index)

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def tuple_of(self, _: Any, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError("a tuple of more than the stack holds")
        items = tuple(self.stack[-count:])
        self.stack[-count:] = [items]

    def dict_since_mark(self, _: Any) -> None:
        items = self.since_mark()
        self.stack.append({})
        self._fill(items)

    def append(self, _: Any) -> None:
        self._extend([self.stack.pop()])

    def appends(self, _: Any) -> None:
        self._extend(self.since_mark())

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key, value])

    def set_items(self, _: Any) -> None:
        self._fill(self.since_mark())

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise Refused(f"it appends to a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def _fill(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise Refused(f"it sets items of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):
                raise Refused(f"it has a key of type {type(key).__name__}")
            if key in target:
                raise Refused(f"it has the key {key!r} twice")
            target[key] = value

    def global_(self, argument: str) -> None:
        self._find(*argument.split(" ", 1))

    def stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._find(module, name)

    def _find(self, module: Any, name: Any) -> None:
        known = isinstance(module, str) and isinstance(name, str) and (module, name) in GLOBALS
        if not known:
            raise Refused(f"it wants {module}.{name}")
        self.stack.append(_Global(f"{module}.{name}", GLOBALS[module, name]))

    def reduce(self, _: Any) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, _Global) or called.call is None or type(arguments) is not tuple:
            raise Refused(f"it calls a {getattr(called, 'name', type(called).__name__)}")
        self.stack.append(called.call(self.budget, *arguments))

    def build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, PickledDtype):
            target.build(state)
        elif isinstance(target, UnbuiltArray):
            self.stack[-1] = target.build(self.budget, state)
            self.memo |= dict.fromkeys(target.memo, self.stack[-1])
        else:
            raise Refused(f"it sets the state of a {type(target).__name__}")


# Every opcode that a pickle may use.
OPCODES: dict[str, Callable[[_Machine, Any], Any]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _Machine.ignore),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"), _Machine.push),
    **dict.fromkeys(("FLOAT", "BINFLOAT"), _Machine.push),
    **dict.fromkeys(("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"), _Machine.push),
    **dict.fromkeys(("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"), _Machine.push),
    "BYTEARRAY8": lambda machine, data: machine.push(bytes(data)),
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.since_mark,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": partial(_Machine.tuple_of, count=1),
    "TUPLE2": partial(_Machine.tuple_of, count=2),
    "TUPLE3": partial(_Machine.tuple_of, count=3),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "LIST": lambda machine, _: machine.push(machine.since_mark()),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "DICT": _Machine.dict_since_mark,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.global_,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}


def _checked(contents: Any) -> Any:
    """`contents`, once nothing in it is half-built, a global or nested too deeply."""
    containers, seen = [[contents]], set()
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for container in containers:
            for value in container.values() if isinstance(container, dict) else container:
                if isinstance(value, (_Global, UnbuiltArray, PickledDtype)):
                    raise Refused(f"it holds {getattr(value, 'name', 'a part of an array')}")
                if isinstance(value, (list, tuple, dict)) and id(value) not in seen:
                    seen.add(id(value))
                    inner.append(value)
        if not (containers := inner):
            return contents
    raise Refused(f"it is nested deeper than {MAX_DEPTH}")
