"""Training: milliseconds of an iteration, beside the same network written plainly in torch, and how much of the
machine's matrix-product rate is used."""

from __future__ import annotations

import torch

from benchmarks.measure import Row, Timing, in_turn, product_rate, thread_counts
from benchmarks.networks import flops, plain
from benchmarks.subjects import BATCH, SEQUENCE, Subject, V, by_hand, split, subjects, training


def run(quick: bool) -> list[Row]:
    rates = {threads: product_rate(threads) for threads in thread_counts()}
    measured = subjects(128) + ([] if quick else [Subject("grid_lstm", 128, 6), *subjects(512)])
    rows: list[Row] = []
    for subject in measured:
        rows += compare(subject, rates, repeats=5 if quick or subject.size > 128 else 21)
    return rows


def compare(subject: Subject, rates: dict[int, float], repeats: int) -> list[Row]:
    """One row for each number of threads; the ratio is that of the best of each side over all of them."""
    minibatches = split()
    work = 3 * BATCH * SEQUENCE * flops(subject.name, V, subject.size, subject.layers)
    ours: dict[int, Timing] = {}
    theirs: dict[int, tuple[str, Timing]] = {}
    for threads in rates:
        torch.set_num_threads(threads)
        ways = plain(subject.name, V, subject.size, subject.layers)
        arms = {name: by_hand(network, minibatches) for name, network in ways.items()}
        timings = in_turn({"charrnn": training(subject.model(), minibatches), **arms}, repeats)
        ours[threads] = timings.pop("charrnn")
        theirs[threads] = min(timings.items(), key=lambda item: item[1].median)
    ratio = min(t.median for _, t in theirs.values()) / min(t.median for t in ours.values())
    return [
        {
            "model": str(subject),
            "threads": threads,
            "ms": 1e3 * ours[threads].median,
            "spread": ours[threads].spread,
            "utilisation": work / ours[threads].median / rate,
            "GFLOP/s of products": rate / 1e9,
            "beside": theirs[threads][0],
            "its ms": 1e3 * theirs[threads][1].median,
            "its spread": theirs[threads][1].spread,
            "times as fast, best of each": ratio,
        }
        for threads, rate in rates.items()
    ]
