"""Read files written by torch.save without trusting their content.

torch.load(weights_only=True) does not run code either, but trusts the sizes in the file: a few bytes can make it
allocate gigabytes, or read past the end of a storage. Here every size is checked against the bytes in the file before
memory is allocated, and checksums detect damage from a disk or a transfer.
"""

from __future__ import annotations

import os
import pickle
import pickletools
import sys
import zipfile
from collections import OrderedDict
from contextlib import nullcontext
from io import BytesIO
from math import prod
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

PICKLE_BYTES = 16_000_000  # enough for a vocabulary of all of Unicode
OPCODES = 4_000_000
DEPTH = 16  # of nested dicts and lists

# everything that torch.save writes for plain values and tensors; none of these looks up or sets attributes
ALLOWED = {
    "PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "BINUNICODE", "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE",
    "TUPLE1", "TUPLE2", "TUPLE3", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "GLOBAL", "BINPERSID", "REDUCE",
}  # fmt: skip

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
    """Return the content of a file or an open file: dicts, lists, tuples, strings, numbers, and tensors on the CPU.

    Without ``values`` the tensors are on torch's meta device: only their types and shapes are read.

    Takes memory at most in proportion to the file's size. Raises Malformed for any other file, and OSError.
    """
    try:
        opened = source.open("rb") if isinstance(source, Path) else nullcontext(source)
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
    data = archive.read(described)
    opcodes = _check_opcodes(data)
    storages = {name.removeprefix(f"{folder}/data/"): member for name, member in members.items()}
    content = _Reader(data, archive, storages, values).load()
    _check_tree(content, opcodes)
    return content


def _check_opcodes(data: bytes) -> int:
    """Return the number of opcodes in the pickle. Raises Malformed for any that plain values do not need."""
    count = 0
    for opcode, argument, _ in pickletools.genops(data):
        count += 1
        if opcode.name not in ALLOWED or count > OPCODES:
            raise Malformed(f"the pickle has {opcode.name}, or too many opcodes")
        # the unpickler allocates room for all numbers up to this one
        if opcode.name == "LONG_BINPUT" and argument is not None and argument > count:
            raise Malformed("the pickle numbers its values out of order")
    return count


class _Reader(pickle.Unpickler):
    """Knows the few names that torch.save uses, and maps each to something harmless."""

    def __init__(
        self, data: bytes, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], values: bool
    ) -> None:
        super().__init__(BytesIO(data))
        self.archive = archive
        self.members = members
        self.values = values
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "collections", "OrderedDict":
                return OrderedDict
            case "torch._utils", "_rebuild_tensor_v2":
                return _tensor
            case "torch", _ if name in STORAGES:
                return STORAGES[name]
        raise Malformed(f"the file asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        """Return a storage as a one-dimensional tensor. Its bytes are in a member of their own."""
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


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """Return a view of a storage. Raises Malformed if it has more elements or reaches past the end."""
    numbers = (offset, *size, *stride)
    if not isinstance(storage, Tensor) or len(size) != len(stride) or any(type(n) is not int or n < 0 for n in numbers):
        raise Malformed("a tensor's size and strides are not natural numbers")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    elements = prod(size)
    if elements > len(storage) or (elements and last >= len(storage)):
        raise Malformed(f"a tensor of {elements} elements does not fit its storage of {len(storage)}")
    return storage.as_strided(size, stride, offset)


def _check_tree(content: Any, most: int) -> None:
    """Raise Malformed unless this is a tree of plain values.

    Values that contain themselves, or one part many times over, take little space in the file
    but may take forever to walk through.
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
            elif type(value) is dict and all(type(key) in (str, int) for key in value):
                below.extend(value.values())
            elif value is not None and type(value) not in (bool, int, float, str, Tensor):
                raise Malformed(f"it contains a {type(value).__name__}")
            if len(below) > most:
                break
        if not below:
            return
        level = below
    raise Malformed("its values contain each other")
