"""Growth: time per iteration against each size, with the fitted exponent, compared with the network in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from math import log

from benchmarks.apart import Process
from benchmarks.measure import Row, Timing, in_turn, processors, reported
from benchmarks.networks import plain
from benchmarks.subjects import BATCH, NAMES, SEQUENCE, Sizes, Subject, V, kernels_of, ours, plainly

REPEATS = 5
AXES = {
    "rnn_size": (64, 128, 256, 512, 1024),
    "seq_length": (25, 50, 100, 200, 400),
    "batch_size": (10, 25, 50, 100, 200, 400),
    "num_layers": (1, 2, 4, 8),
}


def run(quick: bool) -> list[Row]:
    rows = []
    with Process(as_charrnn=True) as charrnn, Process(as_charrnn=False) as torch:
        for name in ("lstm", "rnn") if quick else NAMES:
            for axis, values in AXES.items():
                values = values[:3] if quick else values
                measured = [measure(*one(name, axis, value), charrnn, torch) for value in values]
                exponent = slope(
                    [(log(value), log(our.median)) for value, (_, our, _) in zip(values, measured, strict=True)]
                )
                for value, (kernels, our, its) in zip(values, measured, strict=True):
                    rows.append(
                        {
                            "model": name,
                            "size": axis,
                            "value": value,
                            "kernels": kernels,
                            "ms": 1e3 * our.median,
                            "spread": our.spread,
                            "plain torch, ms": 1e3 * its.median,
                            "its spread": its.spread,
                            "times as fast": its.median / our.median,
                            "exponent": exponent,
                        }
                    )
    return rows


def one(name: str, axis: str, value: int) -> tuple[Subject, Sizes]:
    """Return a model and a minibatch of the default sizes, with one size changed."""
    size = {"rnn_size": 128, "num_layers": 2, "batch_size": BATCH, "seq_length": SEQUENCE} | {axis: value}
    return Subject(name, size["rnn_size"], size["num_layers"]), Sizes(size["batch_size"], size["seq_length"])


def measure(subject: Subject, sizes: Sizes, charrnn: Process, torch: Process) -> tuple[str, Timing, Timing]:
    """Return the faster kernels, as -kernels auto chooses, and the times of an iteration of charrnn and plain torch."""
    threads, ways = processors(), plain(subject.name, V, subject.size, subject.layers)
    arms: dict[str, Callable[[], float]] = {
        kernels: charrnn.arm(ours, subject, kernels, threads, sizes) for kernels in kernels_of(subject)
    }
    arms |= {way: torch.arm(plainly, subject, way, threads, sizes) for way in ways}
    timings = in_turn(arms, REPEATS, warm_up=1, clock=reported)
    charrnn.forget()
    torch.forget()
    best = min(kernels_of(subject), key=lambda kernels: timings[kernels].median)
    return best, timings[best], min((timings[way] for way in ways), key=lambda timing: timing.median)


def slope(points: list[tuple[float, float]]) -> float:
    """Return the slope of the least-squares line through the points."""
    x_mean, y_mean = (sum(values) / len(points) for values in zip(*points, strict=True))
    return float(sum((x - x_mean) * (y - y_mean) for x, y in points) / sum((x - x_mean) ** 2 for x, _ in points))
