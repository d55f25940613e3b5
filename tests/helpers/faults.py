"""Run commands in a process whose file operations fail at will, as on a full or broken disk (tests/helpers/faults.c).

The faults are in calls to the C library, so they reach compiled code as well as Python.
"""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from tests.helpers.command import Done, run

SOURCE = Path(__file__).with_suffix(".c")
TIMEOUT = 120.0  # in seconds, far longer than any command here takes


@dataclass(frozen=True)
class Fault:
    """The call that fails, by number from 1, and its error. If ``lasting``, all later calls fail too. 0: no fault."""

    number: int = 0
    error: int = errno.EIO
    lasting: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    done: Done
    # the calls on files below the folder that a fault can hit, each as "NAME PATH"
    calls: list[str]


def outcome(folder: Path, args: tuple[object, ...], fault: Fault) -> Outcome:
    """Run a command with a fault below ``folder``. Runs in the process that ``faulty_process`` starts."""
    library = ctypes.CDLL(None)
    library.faults_calls.restype = ctypes.c_char_p
    library.faults_arm(os.fsencode(folder) + b"/", ctypes.c_long(fault.number), fault.error, fault.lasting)
    try:
        with patch.dict(os.environ, XDG_CACHE_HOME=str(folder / "cache")):
            done = run(folder, *args, code=None)
        return Outcome(done, os.fsdecode(library.faults_calls()).splitlines())
    finally:
        library.faults_arm(b"", ctypes.c_long(0), 0, 0)


class FaultyProcess:
    """A process that keeps torch loaded and runs one command after another."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self.pool = pool

    def run(self, folder: Path, *args: object, fault: Fault = Fault()) -> Outcome:
        """Run ``charrnn ARGS`` in ``folder``, with the fault. Re-raises any exception from the process."""
        return self.pool.submit(outcome, folder.resolve(), args, fault).result(TIMEOUT)


def compiler() -> str | None:
    return shutil.which("cc")


@contextmanager
def faulty_process(folder: Path) -> Iterator[FaultyProcess]:
    """Compile faults.c into ``folder``, and start a process that loads it."""
    library = folder / "faults.so"
    words = [compiler() or "cc", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"]
    subprocess.run(words, check=True, capture_output=True)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        with patch.dict(os.environ, LD_PRELOAD=str(library)):
            pool.submit(os.getpid).result(TIMEOUT)
        yield FaultyProcess(pool)
