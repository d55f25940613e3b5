"""A pytest plugin for tests.helpers.mutants: records which tests call which functions of the program.

Appends one JSON object per test to the file named by the environment variable CHARRNN_CALLS.
"""

from __future__ import annotations

import atexit
import inspect
import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = (f"{ROOT}/charrnn/", f"{ROOT}/models/")

# a sitecustomize module, which Python imports when a process starts
SITE = (
    "import os\nif 'PYTEST_CURRENT_TEST' in os.environ:\n    from tests.helpers import calls\n    calls.in_a_child()\n"
)

called: set[CodeType] = set()
failed: set[str] = set()


def trace(frame: FrameType, *_: Any) -> None:
    called.add(frame.f_code)


def start() -> None:
    threading.settrace(trace)
    sys.settrace(trace)


def record(**where: Any) -> None:
    """Write the functions called since the last record. A nested function counts as the function that contains it."""
    names = {
        f"{code.co_filename.removeprefix(f'{ROOT}/')}:{code.co_qualname.split('.<locals>')[0]}"
        for code in list(called)
        # leave out the bodies of modules and classes, which run on import
        if code.co_filename.startswith(PROGRAM) and code.co_flags & inspect.CO_OPTIMIZED
    }
    called.clear()
    with open(os.environ["CHARRNN_CALLS"], "a") as file:
        file.write(json.dumps(where | {"calls": sorted(names)}) + "\n")


def in_a_child() -> None:
    """Record the calls of this process for the test that started it. A process that is killed records nothing."""

    def end() -> None:
        sys.settrace(None)
        test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
        # multiprocessing forks from a server process, which an earlier test of the file may have started
        record(**({"file": test.partition("::")[0]} if multiprocessing.parent_process() else {"test": test}))

    def leave(code: int) -> None:
        end()
        leave_at_once(code)

    leave_at_once, os._exit = os._exit, leave
    atexit.register(end)
    start()


def pytest_configure() -> None:
    start()


def pytest_unconfigure() -> None:
    sys.settrace(None)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: Any) -> Generator[None, Any, Any]:
    """Count the calls of a shared fixture for every test of the file, not just for the first one that uses it."""
    if fixturedef.scope == "function":
        return (yield)
    before = set(called)
    called.clear()
    try:
        return (yield)
    finally:
        record(file=os.environ["PYTEST_CURRENT_TEST"].partition("::")[0])
        called.update(before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: Any) -> Generator[None, Any, Any]:
    called.clear()
    started = sum(os.times()[:4])  # of this process and those that it waited for, which no other program makes longer
    result = yield
    used = round(sum(os.times()[:4]) - started, 3)
    record(test=item.nodeid, **({"failed": True} if item.nodeid in failed else {"seconds": used}))
    return result


def pytest_runtest_logreport(report: Any) -> None:
    if report.outcome != "passed":
        failed.add(report.nodeid)
