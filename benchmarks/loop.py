"""Cost of the training loop: an iteration of `charrnn train`, with everything it does, compared with the bare step."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

from benchmarks.measure import Row, in_turn, thread_counts
from benchmarks.subjects import bare, split, subjects, training
from charrnn.cli.display import PlainDisplay
from charrnn.data.vocabulary import Vocabulary
from charrnn.kernels import backend


def run(quick: bool) -> list[Row]:
    rows = []
    for subject in subjects(128):
        for threads in thread_counts():
            backend.use("torch", threads)
            minibatches = split()
            arms = {
                "loop": displayed(training(subject.model(), minibatches)),
                "bare": bare(subject.model(), minibatches),
            }
            timings = in_turn(arms, repeats=7 if quick else 31)
            rows.append(
                {
                    "model": str(subject),
                    "threads": threads,
                    "loop ms": 1e3 * timings["loop"].median,
                    "spread": timings["loop"].spread,
                    "bare ms": 1e3 * timings["bare"].median,
                    "bare spread": timings["bare"].spread,
                    "loop over bare": timings["loop"].median / timings["bare"].median,
                }
            )
    return rows


def displayed(iteration: Callable[[], Any]) -> Callable[[], None]:
    """Return a call that runs the iteration and prints its line."""
    display = PlainDisplay(1, Vocabulary)

    def call() -> None:
        with redirect_stdout(io.StringIO()):
            display.show(iteration())

    return call
