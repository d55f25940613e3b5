"""Read files written by torch.save without trusting their content.

torch.load(weights_only=True) does not run code either, but trusts the sizes in the file: a few bytes can make it
allocate gigabytes, or read past the end of a storage. Here every size is checked against the bytes in the file before
memory is allocated, reading takes time at most in proportion to the file's size, and checksums detect damage from a
disk or a transfer.
"""

from __future__ import annotations

import os
import pickletools
import sys
import zipfile
from contextlib import nullcontext
from math import prod
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from charrnn.files import open_regular

PICKLE_BYTES = 16_000_000  # enough for a vocabulary of all of Unicode
OPCODES = 4_000_000
DEPTH = 16  # of nested dicts and lists
DIMENSIONS = 64  # the most that torch's own operations support
JUMPS = 1_000  # between integer keys; see _Reader._count_jumps

STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Malformed(ValueError):
    """The file is not one that torch.save writes for tensors and plain values."""


def read(source: Path | IO[bytes], values: bool = True) -> Any:
    """Return the content of a file, named or open: dicts, lists, tuples, strings, numbers, and tensors on the CPU.

    Without ``values``, the tensors are on torch's meta device: only their types and shapes are read.

    Takes memory and time at most in proportion to the file's size. Raises Malformed for other files, and OSError.
    """
    try:
        opened = open_regular(source) if isinstance(source, Path) else nullcontext(source)
        with opened as file, zipfile.ZipFile(file) as archive:
            return _read(archive, file.seek(0, os.SEEK_END), values)
    except OSError:
        raise
    except Exception as error:  # the zip reader and the unpickler raise almost anything for a damaged file
        raise Malformed(str(error)[:200]) from None


def _read(archive: zipfile.ZipFile, size: int, values: bool) -> Any:
    members = {member.filename: member for member in archive.infolist()}
    if len(members) < len(archive.infolist()):
        raise Malformed("two members have the same name")
    if any(m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size for m in members.values()):
        raise Malformed("a compressed member may hold far more than the file's size")
    if sum(m.file_size for m in members.values()) > size:
        raise Malformed("the members overlap")
    folder = next(iter(members), "").partition("/")[0]
    described = members.get(f"{folder}/data.pkl")
    if described is None or described.file_size > PICKLE_BYTES:
        raise Malformed("data.pkl is missing or too large")
    if archive.read(members[f"{folder}/byteorder"]) != sys.byteorder.encode():
        raise Malformed(f"the file was not written on a {sys.byteorder}-endian machine")
    storages = {name.removeprefix(f"{folder}/data/"): member for name, member in members.items()}
    reader = _Reader(archive, storages, values)
    content = reader.read(archive.read(described))
    _check_tree(content, reader.opcodes)
    return content


class _Reader:
    """Executes the few pickle opcodes that torch.save writes for plain values and tensors.

    Each takes time in proportion to its bytes. Names are looked up only by ``_named``. Python's unpickler would not be
    safe even without its dangerous opcodes: hashing a nested tuple that is used as a key can take it forever.
    """

    def __init__(self, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], values: bool) -> None:
        self.archive = archive
        self.members = members
        self.values = values
        self.storages: dict[str, Tensor] = {}
        self.opcodes = 0
        self.stack: list[Any] = []
        # the stacks put aside at each mark, to continue after the items of a list, dict or tuple
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.key = self.step = self.jumps = 0

    def read(self, data: bytes) -> Any:
        """Return the value of a pickle. Raises Malformed, or almost any other error, if it is damaged."""
        argument: Any
        for opcode, argument, _ in pickletools.genops(data):
            self.opcodes += 1
            if self.opcodes > OPCODES:
                raise Malformed("the pickle has too many opcodes")
            match opcode.name:
                case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                    self.stack.append(argument)
                case "BINPUT" | "LONG_BINPUT":
                    if argument > len(self.memo):  # numbers that are chosen to collide would make the dict slow
                        raise Malformed("the pickle does not count its memo from 0")
                    self.memo[argument] = self.stack[-1]
                case "BINGET" | "LONG_BINGET":
                    self.stack.append(self.memo[argument])
                case "NONE" | "NEWTRUE" | "NEWFALSE":
                    self.stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
                case "GLOBAL":
                    self.stack.append(_named(argument))
                case "MARK":
                    self.outer.append(self.stack)
                    self.stack = []
                case "PROTO" | "STOP":
                    pass
                case name:
                    self._build(name)
        return self.stack.pop()

    def _build(self, opcode: str) -> None:
        """Execute an opcode that builds a value from others, or adds to one."""
        match opcode:
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                self.stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[opcode]())
            case "TUPLE":
                items = self._marked()
                self.stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = self._last(int(opcode[-1]))
                self.stack.append(tuple(items))
            case "APPEND" | "APPENDS":
                items = self._last(1) if opcode == "APPEND" else self._marked()
                _of_type(self.stack[-1], list).extend(items)
            case "SETITEM" | "SETITEMS":
                self._set(self._last(2) if opcode == "SETITEM" else self._marked())
            case "BINPERSID":
                self.stack.append(self._storage_of(self.stack.pop()))
            case "REDUCE":
                function, arguments = self._last(2)
                if function is not _tensor and function is not _no_hooks:
                    raise Malformed("the pickle calls something that is not a function")
                self.stack.append(function(*_of_type(arguments, tuple)))
            case _:
                raise Malformed(f"the pickle has {opcode}")

    def _marked(self) -> list[Any]:
        """Remove and return the values since the last mark."""
        items, self.stack = self.stack, self.outer.pop()
        return items

    def _last(self, count: int) -> list[Any]:
        """Remove and return the last values."""
        return [self.stack.pop() for _ in range(count)][::-1]

    def _set(self, items: list[Any]) -> None:
        """Add keys and their values to a dict. Integer keys can be chosen to collide; text cannot."""
        target = _of_type(self.stack[-1], dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is int:
                self._count_jumps(key)
            if type(key) not in (str, int) or key in target:
                raise Malformed("a key is neither text nor an integer, or occurs twice")
            target[key] = value

    def _count_jumps(self, key: int) -> None:
        """Raise Malformed if the integer keys are too unevenly spaced.

        Keys that a program counts up are evenly spaced. Keys chosen to collide, which makes a dict slow, are not.
        """
        self.jumps += key != self.key + self.step
        self.key, self.step = key, key - self.key
        if self.jumps > JUMPS or not 0 <= key < 2**53:
            raise Malformed("its integer keys are too irregular")

    def _storage_of(self, pid: Any) -> Tensor:
        """Return a storage as a one-dimensional tensor. Its bytes are in a separate member."""
        match pid:
            case ("storage", torch.dtype() as dtype, str(key), str(), int(length)):
                pass
            case _:
                raise Malformed("the pickle refers to something that is not a storage")
        if key not in self.storages:
            self.storages[key] = self._storage(self.members[key], dtype, length)
        storage = self.storages[key]
        if storage.dtype != dtype or len(storage) != length:
            raise Malformed(f"the storage {key} has two types")
        return storage

    def _storage(self, member: zipfile.ZipInfo, dtype: torch.dtype, length: int) -> Tensor:
        if length < 0 or length * dtype.itemsize != member.file_size:
            raise Malformed(f"the storage {member.filename} has {member.file_size} bytes, not {length} elements")
        if not self.values:
            return torch.empty(length, dtype=dtype, device="meta")
        storage = torch.empty(length, dtype=dtype)  # torch's own alignment: sums may depend on it
        if length:
            data = torch.frombuffer(bytearray(self.archive.read(member)), dtype=torch.uint8)
            if dtype is torch.bool and data.max() > 1:
                raise Malformed(f"the storage {member.filename} has truth values that are neither 0 nor 1")
            storage.view(torch.uint8).copy_(data)
        return storage


def _of_type(value: Any, kind: type[Any]) -> Any:
    if type(value) is not kind:
        raise Malformed(f"the pickle uses a {type(value).__name__} as a {kind.__name__}")
    return value


def _named(name: str) -> Any:
    """Return the harmless object that a name written by torch.save stands for. Raises Malformed for other names."""
    match name.split(" "):
        case "collections", "OrderedDict":
            return _no_hooks
        case "torch._utils", "_rebuild_tensor_v2":
            return _tensor
        case "torch", kind if kind in STORAGES:
            return STORAGES[kind]
    raise Malformed(f"the file asks for {name.replace(' ', '.')}")


def _no_hooks() -> dict[Any, Any]:
    """Return the dict, always empty, in which torch.save keeps a tensor's hooks."""
    return {}


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> Tensor:
    """Return a view of a storage. Raises Malformed if it is larger than the storage or reaches past its end."""
    if not isinstance(storage, Tensor) or not len(_of_type(size, tuple)) == len(_of_type(stride, tuple)) <= DIMENSIONS:
        raise Malformed(f"a tensor's size and strides are not natural numbers, one for each of {DIMENSIONS} dimensions")
    if any(type(n) is not int or not 0 <= n < 2**63 for n in (offset, *size, *stride)):
        raise Malformed("a tensor's size and strides are not natural numbers of 63 bits")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    elements = prod(size)
    if elements > len(storage) or (elements and last >= len(storage)):
        raise Malformed(f"a tensor of {elements} elements does not fit its storage of {len(storage)}")
    return storage.as_strided(size, stride, offset)


def _check_tree(content: Any, most: int) -> None:
    """Raise Malformed unless this is a tree of plain values.

    Values that contain themselves, or the same part many times, take little space in the file but may take forever to
    walk through.
    """
    level, seen = [content], 0
    for _ in range(DEPTH):
        seen += len(level)
        if seen > most:
            break
        below: list[Any] = []
        for value in level:
            if type(value) in (list, tuple):
                below.extend(value)
            elif type(value) is dict:
                below.extend(value.values())
            elif value is not None and type(value) not in (bool, int, float, str, Tensor):
                raise Malformed(f"it contains a {type(value).__name__}")
            if len(below) > most:
                break
        if not below:
            return
        level = below
    raise Malformed("its values contain each other")
