"""Growth: an iteration's time against each size, with the fitted exponent, beside the same network plainly in torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import log

from benchmarks.measure import Row, in_turn, processors
from benchmarks.networks import plain
from benchmarks.subjects import (
    BATCH,
    NAMES,
    SEQUENCE,
    Subject,
    V,
    by_hand,
    kernels_of,
    split,
    training,
    with_kernels,
)

AXES = {
    "rnn_size": (64, 128, 256, 512, 1024),
    "seq_length": (25, 50, 100, 200, 400),
    "batch_size": (10, 25, 50, 100, 200, 400),
    "num_layers": (1, 2, 4, 8),
}


@dataclass(frozen=True)
class Sizes:
    rnn_size: int = 128
    num_layers: int = 2
    batch_size: int = BATCH
    seq_length: int = SEQUENCE


def run(quick: bool) -> list[Row]:
    rows = []
    for name in ("lstm", "rnn") if quick else NAMES:
        for axis, values in AXES.items():
            measured = [measure(name, sizes, repeats=3) for sizes in along(axis, values[:3] if quick else values)]
            exponent = slope([(log(value), log(ms)) for value, (_, ms, _) in zip(values, measured, strict=False)])
            for value, (kernels, ms, its_ms) in zip(values, measured, strict=False):
                rows.append(
                    {
                        "model": name,
                        "size": axis,
                        "value": value,
                        "kernels": kernels,
                        "ms": ms,
                        "plain torch, ms": its_ms,
                        "times as fast": its_ms / ms,
                        "exponent": exponent,
                    }
                )
    return rows


def along(axis: str, values: tuple[int, ...]) -> Iterator[Sizes]:
    """The default sizes, one of them changed."""
    for value in values:
        yield Sizes(**{axis: value})


def measure(name: str, sizes: Sizes, repeats: int) -> tuple[str, float, float]:
    """The faster kernels, as -kernels auto finds them; milliseconds of an iteration, ours and the plain network's."""
    subject = Subject(name, sizes.rnn_size, sizes.num_layers)
    minibatches = split(sizes.batch_size, sizes.seq_length, minibatches=20)
    networks = plain(name, V, sizes.rnn_size, sizes.num_layers)
    threads = processors()
    arms = {way: with_kernels("torch", threads, by_hand(network, minibatches)) for way, network in networks.items()}
    for kernels in kernels_of(subject):
        arms[kernels] = with_kernels(kernels, threads, training(subject.model(), minibatches))
    ms = {name: 1e3 * timing.median for name, timing in in_turn(arms, repeats, warm_up=1).items()}
    best = min(kernels_of(subject), key=lambda kernels: ms[kernels])
    return best, ms[best], min(ms[way] for way in networks)


def slope(points: list[tuple[float, float]]) -> float:
    """Of the line through these points with the least squares."""
    x_mean, y_mean = (sum(values) / len(points) for values in zip(*points, strict=True))
    return float(sum((x - x_mean) * (y - y_mean) for x, y in points) / sum((x - x_mean) ** 2 for x, _ in points))
