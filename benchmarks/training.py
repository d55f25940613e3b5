"""Training: milliseconds of an iteration, beside the same network written plainly in torch, and how much of the
machine's rate of large matrix products, measured in turn with it, is used."""

from __future__ import annotations

from benchmarks.measure import PRODUCT_FLOPS, Row, Timing, in_turn, product, thread_counts
from benchmarks.networks import flops, plain
from benchmarks.subjects import (
    BATCH,
    SEQUENCE,
    Subject,
    V,
    by_hand,
    kernels_of,
    split,
    subjects,
    training,
    with_kernels,
)


def run(quick: bool) -> list[Row]:
    measured = subjects(128) + ([] if quick else [Subject("grid_lstm", 128, 6), *subjects(512)])
    rows: list[Row] = []
    for subject in measured:
        rows += compare(subject, repeats=5 if quick else 9 if subject.size > 128 else 21)
    return rows


def compare(subject: Subject, repeats: int) -> list[Row]:
    """One row for each number of threads and kind of kernels; the ratios are those of the best over the threads."""
    minibatches = split()
    work = 3 * BATCH * SEQUENCE * flops(subject.name, V, subject.size, subject.layers)
    measured: dict[int, dict[str, Timing]] = {}
    theirs: dict[int, tuple[str, Timing]] = {}
    for threads in thread_counts():
        ways = plain(subject.name, V, subject.size, subject.layers)
        arms = {kernels: training(subject.model(), minibatches) for kernels in kernels_of(subject)}
        arms = {kernels: with_kernels(kernels, threads, arm) for kernels, arm in arms.items()}
        others = {name: by_hand(network, minibatches) for name, network in ways.items()} | {"product": product()}
        others = {name: with_kernels("torch", threads, arm) for name, arm in others.items()}
        measured[threads] = timings = in_turn(arms | others, repeats)
        theirs[threads] = min(((name, timings[name]) for name in ways), key=lambda item: item[1].median)
    plainly = min(timing.median for _, timing in theirs.values())
    return [
        {
            "model": str(subject),
            "kernels": kernels,
            "threads": threads,
            "ms": 1e3 * timings[kernels].median,
            "spread": timings[kernels].spread,
            "utilisation": work / timings[kernels].median / rate(timings["product"]),
            "GFLOP/s of products": rate(timings["product"]) / 1e9,
            "beside": theirs[threads][0],
            "its ms": 1e3 * theirs[threads][1].median,
            "its spread": theirs[threads][1].spread,
            "times as fast, best of each": plainly / min(of[kernels].median for of in measured.values()),
        }
        for kernels in kernels_of(subject)
        for threads, timings in measured.items()
    ]


def rate(timing: Timing) -> float:
    """FLOPs a second of the large product."""
    return PRODUCT_FLOPS / timing.median
