"""The number of CPU threads that trains a model fastest, found by trying."""

from __future__ import annotations

import copy
import statistics
import time

import torch
from torch import nn

from charrnn.evaluation import Minibatches
from charrnn.options import TrainingOptions
from charrnn.training import Diverged, Training

TRIALS = 5  # timed iterations at each number
PATIENCE = 1.0  # seconds: an iteration longer than this is timed once


def find_fastest(model: nn.Module, train: Minibatches, options: TrainingOptions) -> int:
    """How many threads to train with, and have torch use them.

    A few iterations on a copy of the model are timed with 1, 2, 4, ... threads, up to as many as torch uses now (the
    machine's cores, or $OMP_NUM_THREADS). More threads are not always faster: in small products they mostly wait for
    each other. The model and torch's random numbers stay as they were.
    """
    state = torch.get_rng_state()
    most = torch.get_num_threads()
    counts = sorted({most, *(2**n for n in range(most.bit_length()) if 2**n <= most)})
    seconds = {count: _time(model, train, options, count) for count in counts} if most > 1 else {1: 0.0}
    fastest = min(seconds, key=lambda count: seconds[count])
    torch.set_num_threads(fastest)
    torch.set_rng_state(state)
    return fastest


def _time(model: nn.Module, train: Minibatches, options: TrainingOptions, threads: int) -> float:
    """Seconds an iteration takes: the median of a few, after one that warms up."""
    torch.set_num_threads(threads)
    run = Training(copy.deepcopy(model), train, None, options).run()
    took = []
    for _ in range(TRIALS + 1):
        started = time.perf_counter()
        try:
            if next(run, None) is None:
                break
        except Diverged:  # the run itself will say so
            break
        took.append(time.perf_counter() - started)
        if took[-1] > PATIENCE and len(took) > 1:
            break
    return statistics.median(took[1:] or took or [0.0])
