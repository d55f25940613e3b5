"""The rights of root: tests drop the right to ignore file permissions, and use the right to make devices."""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from pathlib import Path

import pytest

VERSION = 0x20080522  # version of the structures that capset takes


def give_up_rights() -> None:
    """Drop the superuser's right to ignore file permissions from this process.

    The user does not change, so that Python's own files remain readable wherever they are.
    """
    if os.getuid() == 0 and ctypes.CDLL(None).capset(struct.pack("Ii", VERSION, 0), bytes(24)):
        raise OSError("the superuser's rights cannot be dropped")


def null_device(path: Path) -> None:
    """Make a device like /dev/null in the test's own folder, since root could replace the system's by mistake.

    Skips the test if the system does not allow it.
    """
    if os.getuid():
        path.symlink_to(os.devnull)
        return
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.stat(os.devnull).st_rdev)
        path.write_bytes(b"")
    except PermissionError:
        pytest.skip("this system does not allow devices in the temporary folder")
