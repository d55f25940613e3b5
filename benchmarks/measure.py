"""Timing things in turn, so that whatever disturbs the machine disturbs them alike; and what the machine can do."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

import charrnn

Row = dict[str, Any]


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median of several, and the quartiles around it."""

    median: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """The distance between the quartiles, as a share of the median."""
        return (self.high - self.low) / self.median


def wall(call: Callable[[], Any]) -> float:
    """The seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def told(call: Callable[[], float]) -> float:
    """The seconds that a call says it took."""
    return call()


def in_turn(
    arms: Mapping[str, Callable[[], Any]],
    repeats: int,
    warm_up: int = 2,
    clock: Callable[[Callable[[], Any]], float] = wall,
) -> dict[str, Timing]:
    """Time each arm ``repeats`` times, one after the other in every round, the first rounds not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for round_ in range(warm_up + repeats):
        for name, call in arms.items():
            took = clock(call)
            if round_ >= warm_up:
                seconds[name].append(took)
    return {name: summary(took) for name, took in seconds.items()}


def summary(seconds: list[float]) -> Timing:
    if len(seconds) == 1:
        return Timing(seconds[0], seconds[0], seconds[0])
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(median, low, high)


PRODUCT = 1024  # rows and columns
PRODUCT_FLOPS = 2 * PRODUCT**3


def product() -> Callable[[], Any]:
    """A large float32 product in torch, to be timed beside what the machine's rate is to be compared with."""
    a, b, out = (torch.randn(PRODUCT, PRODUCT) for _ in range(3))
    return partial(torch.mm, a, b, out=out)


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_counts() -> list[int]:
    """1, and all processors where there are more."""
    return sorted({1, processors()})


def machine() -> Row:
    """What the figures depend on."""
    return {
        "processor": processor_name(),
        "processors": processors(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "charrnn": charrnn.__version__,
    }


def processor_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor()
