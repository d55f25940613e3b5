"""Time calls in turn, so that disturbances affect all of them alike, and describe the machine."""

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
    """Median and quartiles of the seconds of one call."""

    median: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """The interquartile range relative to the median."""
        return (self.high - self.low) / self.median


def wall(call: Callable[[], Any]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def reported(call: Callable[[], float]) -> float:
    """Return the seconds that a call reports."""
    return call()


def in_turn(
    arms: Mapping[str, Callable[[], Any]],
    repeats: int,
    warm_up: int = 2,
    clock: Callable[[Callable[[], Any]], float] = wall,
) -> dict[str, Timing]:
    """Time each arm ``repeats`` times, one arm after another in every round. The first rounds do not count."""
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
    """Return a call that computes a large float32 product in torch, to measure what the machine can do."""
    a, b, out = (torch.randn(PRODUCT, PRODUCT) for _ in range(3))
    return partial(torch.mm, a, b, out=out)


def processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_counts() -> list[int]:
    """Return the numbers of threads to measure with: 1 and, if it is larger, the number of processors."""
    return sorted({1, processors()})


def machine() -> Row:
    """Return the hardware and the versions of software that the figures depend on."""
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
