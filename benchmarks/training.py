"""Training: milliseconds per iteration, compared with the same network in plain torch, and the share of the machine's
rate of large matrix products, which is measured alternately with them. charrnn and the plain network each run in their
own process, the latter with torch's defaults."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.apart import Process
from benchmarks.measure import PRODUCT_FLOPS, Row, Timing, in_turn, reported, thread_counts
from benchmarks.networks import flops, plain
from benchmarks.subjects import BATCH, SEQUENCE, Sizes, Subject, V, kernels_of, large_product, ours, plainly, subjects


def run(quick: bool) -> list[Row]:
    measured = subjects(128) + ([] if quick else [Subject("grid_lstm", 128, 6), *subjects(512)])
    rows: list[Row] = []
    with Process(as_charrnn=True) as charrnn, Process(as_charrnn=False) as torch:
        for subject in measured:
            rows += compare(subject, charrnn, torch, repeats=5 if quick else 9 if subject.size > 128 else 21)
    return rows


def compare(subject: Subject, charrnn: Process, torch: Process, repeats: int) -> list[Row]:
    """Return a row per kind of kernels and number of threads. "Times as fast" compares each side at its best."""
    work = 3 * BATCH * SEQUENCE * flops(subject.name, V, subject.size, subject.layers)
    ways = plain(subject.name, V, subject.size, subject.layers)
    measured: dict[int, dict[str, Timing]] = {}
    theirs: dict[int, tuple[str, Timing]] = {}
    for threads in thread_counts():
        arms: dict[str, Callable[[], float]] = {
            kernels: charrnn.arm(ours, subject, kernels, threads, Sizes()) for kernels in kernels_of(subject)
        }
        arms |= {way: torch.arm(plainly, subject, way, threads, Sizes()) for way in ways}
        arms["product"] = charrnn.arm(large_product, threads)
        measured[threads] = timings = in_turn(arms, repeats, clock=reported)
        theirs[threads] = min(((way, timings[way]) for way in ways), key=lambda item: item[1].median)
        charrnn.forget()
        torch.forget()
    fastest = min(timing.median for _, timing in theirs.values())
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
            "times as fast, best of each": fastest / min(of[kernels].median for of in measured.values()),
        }
        for kernels in kernels_of(subject)
        for threads, timings in measured.items()
    ]


def rate(timing: Timing) -> float:
    """Return the FLOP/s of the large product."""
    return PRODUCT_FLOPS / timing.median
