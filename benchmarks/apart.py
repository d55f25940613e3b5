"""Processes of their own for what is compared: one as `charrnn train` sets it up, and one as torch is by itself."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.measure import wall
from charrnn import compute

Iteration = Callable[[], Any]
PAUSE = 0.01  # seconds in which the threads of the process before stop looking for work
TURN = 0.15  # seconds of iterations in a row


class Process:
    """Iterations that run in a process of their own, some when they are asked for. To be used in a ``with`` statement.

    as_charrnn: with what `charrnn train` does before torch is loaded.
    """

    def __init__(self, as_charrnn: bool) -> None:
        self.here, there = get_context("spawn").Pipe()
        self.process = get_context("spawn").Process(target=serve, args=(there,), daemon=True)
        self.made = 0
        with environment(as_charrnn):
            self.process.start()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.join()

    def arm(self, make: Callable[..., Iteration], *arguments: Any) -> Callable[[], float]:
        """What make(*arguments) gives there, as a call that runs it some times and returns the seconds of one."""
        self._ask((make, arguments))
        number = self.made
        self.made += 1

        def call() -> float:
            time.sleep(PAUSE)
            return float(self._ask(number))

        return call

    def forget(self) -> None:
        """Let go of all iterations made so far."""
        self.made = 0
        self._ask(None)

    def _ask(self, order: Any) -> Any:
        self.here.send(order)
        answer = self.here.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


def serve(connection: Connection) -> None:
    """The other end: make iterations, forget them, or run one and answer with the seconds that it takes."""
    made: list[Iteration] = []
    while True:
        order = connection.recv()
        try:
            if order is None:
                made.clear()
                connection.send(None)
            elif isinstance(order, int):
                connection.send(turn(made[order]))
            else:
                make, arguments = order
                made.append(make(*arguments))
                connection.send(None)
        except Exception as error:
            connection.send(error)


def turn(iteration: Iteration) -> float:
    """The mean seconds of iterations in a row. Where they are short, the first one only wakes up caches and threads."""
    took = wall(iteration)
    if took > TURN:
        return took
    count = 0
    started = time.perf_counter()
    while time.perf_counter() - started < TURN:
        iteration()
        count += 1
    return (time.perf_counter() - started) / count


@contextmanager
def environment(as_charrnn: bool) -> Iterator[None]:
    """While it lasts, what a process that starts finds set."""
    before = dict(os.environ)
    if as_charrnn:
        compute.wait_briefly()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
