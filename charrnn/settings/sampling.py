"""Settings of ``charrnn sample`` and ``charrnn.sample``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from charrnn.settings.option import FROM_ONE, FROM_ZERO, Interval
from charrnn.settings.training import setting

CHOICE = "Choice of a token"


@dataclass(frozen=True)
class SamplingOptions:
    """The settings for writing text with a model."""

    unknown: Literal["error", "skip"] = setting(
        "error", "if the prime text has unknown characters or words: stop with an error, or skip them", "Sampling"
    )
    length: int = setting(2000, "characters or words to write", "Sampling", FROM_ZERO)
    stop: str = setting("", "end a text after writing this", "Sampling")
    num_samples: int = setting(1, "texts to write; text K, counting from 0, uses seed + K", "Sampling", FROM_ONE)
    seed: int = setting(123, "seed of the random draws", "Sampling", Interval(0, 2**63 - 1))

    temperature: float = setting(1.0, "below 1: safer text; above 1: wilder text", CHOICE)
    sample: bool = setting(True, "1 = draw each token at random; 0 = take the most probable", CHOICE)
    top_k: int = setting(0, "draw from this many of the most probable tokens; 0 = all", CHOICE, FROM_ZERO)
    top_p: float = setting(
        1.0,
        "draw from the most probable tokens that together have this share of the probability",
        CHOICE,
        Interval(0, 1, open_low=True),
    )
    beam: int = setting(
        0,
        "search for the most probable text with this many candidates, without random draws; 0 = off",
        CHOICE,
        FROM_ZERO,
    )

    precision: Literal["float64", "float32"] = setting(
        "float64", "float32 is faster, but texts may then vary with -num_samples and the machine", "device"
    )
    gpuid: int = setting(0, "number of the GPU; -1 = CPU", "device", Interval(low=-1))


# beam search is not random, and writes one text
EXCLUSIVE = tuple(("beam", other) for other in ("num_samples", "seed", "temperature", "sample", "top_k", "top_p"))
