"""Reading .t7 files, as Torch7 serialises Lua objects to disk in its binary format.

The format is that of torch7's File.lua (its doc/serialization.md describes it): each object is a 32-bit kind and what
that kind needs, all little-endian; tables, torch objects and functions carry an index, by which later mentions refer to
them. Nothing of the file is ever run: Lua functions are read over. A file may lie about anything: every size is checked
against the bytes that are there before memory is taken, and every tensor against its storage, so that reading takes no
more memory than a small multiple of the file.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.errors import UserError

NIL, NUMBER, STRING, TABLE, TORCH, BOOLEAN, FUNCTION, *INDEXED_FUNCTIONS = range(9)


DTYPES = {
    "Byte": "u1",
    "Char": "i1",
    "Short": "<i2",
    "Int": "<i4",
    "Long": "<i8",
    "Float": "<f4",
    "Double": "<f8",
}


NUMERIC = re.compile(r"torch\.(?P<element>\w+)(?P<kind>Tensor|Storage)")


DEPTH = 10_000  # of objects within objects; a network's graph nests up to a hundred deep for each layer


DIMENSIONS = 32


Table = dict[Any, Any]


Steps = Generator[None, Any, Any]  # yields where it needs the next object of the file, is sent that, returns its own


class Unreadable(Exception):
    """The text completes a sentence that begins with the file's name."""


@dataclass(eq=False, slots=True)
class Object:
    """A torch object that is neither tensor nor storage. content: its fields, most often a table."""

    name: str
    content: Any = None


def load(path: Path) -> Any:
    """The object in a .t7 file.

    nil becomes None, numbers float, strings bytes, tables dicts (of which only the keys that are numbers, strings and
    booleans are kept), tensors and storages read-only arrays, and any other torch object an Object. Raises UserError
    where the file cannot be read, is not of this format, or has tensors that were saved on a GPU.
    """
    try:
        if not path.is_file():
            raise UserError(f"there is no file {path}: name a checkpoint of char-rnn, lm_....t7")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    try:
        return Reader(data).read()
    except Unreadable as error:
        raise UserError(f"{path} {error}") from None


class Reader:
    """Reads the objects of a file one after the other."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.place = 0
        self.objects: dict[int, Any] = {}

    def read(self) -> Any:
        """The next object, with all that is in it. Raises Unreadable.

        The stack is our own: a network's graph nests deeper than Python's allows.
        """
        stack, value = [self._object()], None
        while stack:
            try:
                stack[-1].send(value)
            except StopIteration as done:
                stack.pop()
                value = done.value
            else:
                stack.append(self._object())
                value = None
            if len(stack) > DEPTH:
                raise Unreadable(f"is no checkpoint: its objects nest more than {DEPTH:,} deep")
        return value

    def _object(self) -> Steps:
        kind = self._int()
        if kind == NIL:
            return None
        if kind == NUMBER:
            return self._unpack("d")[0]
        if kind == STRING:
            return self._string()
        if kind == BOOLEAN:
            return self._int() == 1
        if kind == FUNCTION:
            return (yield from self._function())
        if kind not in (TABLE, TORCH, *INDEXED_FUNCTIONS):
            raise Unreadable(f"is not a .t7 file, or is damaged: at byte {self.place - 4} there is no object")
        index = self._int()
        if index in self.objects:
            return self.objects[index]
        if kind == TABLE:
            return (yield from self._table(index))
        if kind == TORCH:
            return (yield from self._torch(index))
        self.objects[index] = None
        return (yield from self._function())

    def _function(self) -> Steps:
        """Read over a function's bytecode and the values it refers to."""
        self._string()
        yield

    def _table(self, index: int) -> Steps:
        table: Table = {}
        self.objects[index] = table  # before its entries, which may refer back to it
        for _ in range(self._int()):
            key = yield
            value = yield
            if isinstance(key, (float, bytes, bool)):
                table[key] = value
        return table

    def _torch(self, index: int) -> Steps:
        name = self._string()
        if name.startswith(b"V "):  # the version, which files of the very first Torch7 do without
            name = self._string()
        known = name.decode("ascii", "replace")
        if numeric := NUMERIC.fullmatch(known):
            dtype = dtype_of(known, numeric["element"])
            array = self._storage(dtype) if numeric["kind"] == "Storage" else (yield from self._tensor(dtype))
            self.objects[index] = array
            return array
        made = self.objects[index] = Object(known)  # before its content, which may refer back to it
        made.content = yield
        return made

    def _tensor(self, dtype: np.dtype[Any]) -> Steps:
        dimensions = self._int()
        if not 0 <= dimensions <= DIMENSIONS:
            raise Unreadable(f"is damaged: at byte {self.place - 4} there is a tensor of {dimensions} dimensions")
        sizes, strides = self._unpack(f"{dimensions}q"), self._unpack(f"{dimensions}q")
        start = self._unpack("q")[0] - 1
        storage = yield
        if storage is None or not dimensions or 0 in sizes:
            return np.empty(0, dtype)
        # in Python's integers: numpy's own check of the bounds can overflow
        last = start + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        if (
            not isinstance(storage, np.ndarray)
            or (storage.dtype, storage.ndim) != (dtype, 1)
            or min(*sizes, *strides, start) < 0
            or max(last + 1, math.prod(sizes)) > len(storage)
        ):
            raise Unreadable("is damaged: a tensor does not fit its storage")
        return np.ndarray(sizes, dtype, storage, start * dtype.itemsize, [s * dtype.itemsize for s in strides])

    def _storage(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        size = self._unpack("q")[0]
        return np.frombuffer(self._take(size * dtype.itemsize), dtype)

    def _string(self) -> bytes:
        return self._take(self._int())

    def _int(self) -> int:
        return int(self._unpack("i")[0])

    def _unpack(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{form}", self._take(struct.calcsize(f"<{form}")))

    def _take(self, size: int) -> bytes:
        """The next bytes."""
        if not 0 <= size <= len(self.data) - self.place:
            raise Unreadable(f"is not a whole .t7 file: at byte {self.place} it promises what it does not have")
        self.place += size
        return self.data[self.place - size : self.place]


def dtype_of(name: str, element: str) -> np.dtype[Any]:
    """The numbers in a tensor or storage of that class. Raises Unreadable for those of a GPU, and unknown ones."""
    if element.startswith(("Cuda", "Cl")):
        raise Unreadable(
            f"was saved on a GPU (it has a {name}): convert it with char-rnn's convert_gpu_cpu_checkpoint.lua, then "
            "import that"
        )
    if element not in DTYPES:
        raise Unreadable(f"is damaged, or of another program: it has a {name}, of which nothing is known here")
    return np.dtype(DTYPES[element])
