"""Sampling: characters per second on one thread, in one stream and in 64 in parallel, from drawing to writing the text;
and time steps per second of the model in torch alone.

For numpy to use one thread, set OPENBLAS_NUM_THREADS=1, as ``charrnn sample`` does.
"""

from __future__ import annotations

import time
from io import BytesIO
from itertools import islice

import torch
from torch import Tensor

from benchmarks.measure import Row, summary
from benchmarks.subjects import Subject, V, subjects
from charrnn.data.vocabulary import Vocabulary
from charrnn.model import stepper
from charrnn.sampling.choice import Choice
from charrnn.sampling.output import Stream, write_plain
from charrnn.sampling.sampler import Sampler

ROUNDS = 5


def run(quick: bool) -> list[Row]:
    torch.set_num_threads(1)
    rows = []
    for subject in [*subjects(128), Subject("grid_lstm", 128, 6)]:
        row: Row = {"model": str(subject)}
        for dtype in (torch.float64, torch.float32):
            precision = str(dtype).removeprefix("torch.")
            for streams in (1, 64):
                steps = 100 if quick or streams > 1 else 2000
                text = summary([seconds_of_text(subject, streams, steps, dtype) for _ in range(ROUNDS)])
                row[f"characters/s, {precision}, {streams} stream{'s' * (streams > 1)}"] = streams / text.median
                row[f"spread, {precision}, {streams}"] = text.spread
        row["steps/s in torch, float32"] = 1 / summary([seconds_of_step(subject) for _ in range(ROUNDS)]).median
        rows.append(row)
    return rows


def seconds_of_text(subject: Subject, streams: int, steps: int, dtype: torch.dtype) -> float:
    """Return the seconds for one character in each stream."""
    vocabulary = Vocabulary(tuple(range(32, 32 + V)))
    sampler = Sampler(subject.model().eval(), vocabulary, dtype)
    characters = sampler.write("A", steps + 20, Choice(), list(range(streams)))
    for _ in islice(characters, 20 * streams):
        pass
    started = time.perf_counter()
    write_plain(Stream(BytesIO()), "", streams, characters)
    return (time.perf_counter() - started) / steps


def seconds_of_step(subject: Subject, steps: int = 500) -> float:
    step, x = stepper(subject.model().eval()), torch.tensor([3])
    state: tuple[Tensor, ...] | None = None
    with torch.inference_mode():
        for n in range(steps + 20):
            if n == 20:
                started = time.perf_counter()
            _, state = step(x, state)
    return (time.perf_counter() - started) / steps
