"""Make a process respect file permissions, even if root runs the tests."""

from __future__ import annotations

import ctypes
import os
import struct

VERSION = 0x20080522  # version of the structures that capset takes


def give_up_rights() -> None:
    """Drop the superuser's right to ignore file permissions from this process.

    The user does not change, so that Python's own files remain readable wherever they are.
    """
    if os.getuid() == 0 and ctypes.CDLL(None).capset(struct.pack("Ii", VERSION, 0), bytes(24)):
        raise OSError("the superuser's rights cannot be dropped")
