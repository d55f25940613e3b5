"""Read .t7 files: Lua objects in the binary format of Torch7.

The format is defined by torch7's File.lua and described in its doc/serialization.md. An object is a 32-bit kind and
its content, all little-endian. Tables, torch objects and functions carry an index for later references. Nothing in a
file is executed; Lua functions are skipped. A file may be hostile: every size is checked against the bytes that
remain before memory is allocated, and every tensor against its storage, so the memory for reading is at most a small
multiple of the file's size.
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

from charrnn.errors import UserError, unreadable

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

DEPTH = 10_000  # limit for objects within objects; a network's graph nests up to a hundred deep per layer

DIMENSIONS = 32

Table = dict[Any, Any]

Steps = Generator[None, Any, Any]  # yields to get the next object of the file, returns its own object


class Unreadable(Exception):
    """An error whose message completes a sentence that begins with the file's name."""


@dataclass(eq=False, slots=True)
class Object:
    """A torch object that is neither a tensor nor a storage."""

    name: str
    # its fields, usually a table
    content: Any = None


def load(path: Path) -> Any:
    """Read the object in a .t7 file.

    nil becomes None, numbers float, strings bytes, and tables dicts, which keep only keys that are numbers, strings or
    booleans. A number as a key becomes text, such as "1.0", because numbers can be chosen to collide. Tensors and
    storages become read-only arrays, any other torch object an Object. Raises UserError if the file cannot be read,
    does not have this format, or has tensors saved on a GPU.
    """
    try:
        if not path.is_file():
            raise UserError(f"file {path} not found; give a checkpoint of char-rnn, lm_....t7")
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None
    try:
        return Reader(data).read()
    except Unreadable as error:
        raise UserError(f"{path} {error}") from None


class Reader:
    """Reads the objects of a file one after another."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.place = 0
        # by the bytes of their index: unlike bytes, integers can be chosen to collide, which makes a dict slow
        self.objects: dict[bytes, Any] = {}

    def read(self) -> Any:
        """Read the next object with everything in it. Raises Unreadable.

        Keeps its own stack, since a network's graph nests deeper than Python's stack allows.
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
                raise Unreadable(f"is not a checkpoint: its objects nest more than {DEPTH:,} deep")
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
            raise Unreadable(f"is not a .t7 file, or is damaged: no object at byte {self.place - 4}")
        index = self._take(4)
        if index in self.objects:
            return self.objects[index]
        if kind == TABLE:
            return (yield from self._table(index))
        if kind == TORCH:
            return (yield from self._torch(index))
        self.objects[index] = None
        return (yield from self._function())

    def _function(self) -> Steps:
        """Skip a function's bytecode and the values that it refers to."""
        self._string()
        yield

    def _table(self, index: bytes) -> Steps:
        table: Table = {}
        self.objects[index] = table  # before reading its entries, which may refer to it
        for _ in range(self._int()):
            key = yield
            value = yield
            if isinstance(key, (float, bytes, bool)):
                table[str(key) if isinstance(key, float) else key] = value
        return table

    def _torch(self, index: bytes) -> Steps:
        name = self._string()
        if name.startswith(b"V "):  # a version, which the earliest files of Torch7 do not have
            name = self._string()
        known = name.decode("ascii", "replace")
        if numeric := NUMERIC.fullmatch(known):
            dtype = dtype_of(known, numeric["element"])
            array = self._storage(dtype) if numeric["kind"] == "Storage" else (yield from self._tensor(dtype))
            self.objects[index] = array
            return array
        made = self.objects[index] = Object(known)  # before reading its content, which may refer to it
        made.content = yield
        return made

    def _tensor(self, dtype: np.dtype[Any]) -> Steps:
        dimensions = self._int()
        if not 0 <= dimensions <= DIMENSIONS:
            raise Unreadable(f"is damaged: tensor of {dimensions} dimensions at byte {self.place - 4}")
        sizes, strides = self._unpack(f"{dimensions}q"), self._unpack(f"{dimensions}q")
        start = self._unpack("q")[0] - 1
        storage = yield
        if storage is None or not dimensions or 0 in sizes:
            return np.empty(0, dtype)
        # in Python integers, since numpy's own check of the bounds can overflow
        last = start + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        if (
            not isinstance(storage, np.ndarray)
            or (storage.dtype, storage.ndim) != (dtype, 1)
            or min(*sizes, *strides, start) < 0
            or max(last + 1, math.prod(sizes)) > len(storage)
        ):
            raise Unreadable("is damaged: a tensor does not fit its storage")
        # the stride of a single element does not matter, and may be too large for numpy
        steps = [stride * dtype.itemsize if size > 1 else 0 for size, stride in zip(sizes, strides, strict=True)]
        return np.ndarray(sizes, dtype, storage, start * dtype.itemsize, steps)

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
        if not 0 <= size <= len(self.data) - self.place:
            raise Unreadable(f"is not a .t7 file, or is truncated at byte {self.place}")
        self.place += size
        return self.data[self.place - size : self.place]


def dtype_of(name: str, element: str) -> np.dtype[Any]:
    """Return the dtype of a tensor or storage class. Raises Unreadable for GPU classes and unknown classes."""
    if element.startswith(("Cuda", "Cl")):
        raise Unreadable(
            f"was saved on a GPU (it has a {name}); convert it with char-rnn's convert_gpu_cpu_checkpoint.lua first"
        )
    if element not in DTYPES:
        raise Unreadable(f"is damaged, or from another program: it has a {name}, an unknown class")
    return np.dtype(DTYPES[element])
