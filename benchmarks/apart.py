"""Separate processes for the two sides of a comparison: one set up like `charrnn train`, one with torch's defaults."""

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
PAUSE = 0.01  # seconds after which the threads of the previous process no longer spin
TURN = 0.15  # seconds that a measurement must last


class Process:
    """A process that makes and times iterations on request. Use it in a ``with`` statement.

    as_charrnn: prepare the environment as `charrnn train` does before it loads torch.
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
        """Call make(*arguments) there. Return a function that runs the resulting iteration and returns its seconds."""
        self._ask((make, arguments))
        number = self.made
        self.made += 1

        def call() -> float:
            time.sleep(PAUSE)
            return float(self._ask(number))

        return call

    def forget(self) -> None:
        """Drop all iterations made so far."""
        self.made = 0
        self._ask(None)

    def _ask(self, order: Any) -> Any:
        self.here.send(order)
        answer = self.here.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


def serve(connection: Connection) -> None:
    """Carry out the other end's orders: make an iteration, drop them all, or run one and answer with its seconds."""
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
    """Return the mean seconds of an iteration. If the first one is short, it only warms up caches and threads."""
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
    """Set the environment that a new process inherits; restore it afterwards."""
    before = dict(os.environ)
    if as_charrnn:
        compute.wait_briefly()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
