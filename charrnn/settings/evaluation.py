"""Settings of ``charrnn eval`` and ``charrnn.evaluate``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from charrnn.settings.option import FROM_ONE, FROM_ZERO, Interval
from charrnn.settings.training import setting


@dataclass(frozen=True)
class EvaluationOptions:
    """The settings for scoring a text, and for choosing one if none is given."""

    split: Literal["train", "val", "test"] = setting("val", "split of the data to score", "data")
    data_dir: str | None = setting(None, "folder with the text  [as in training]", "data", names="folder")
    batch_size: int | None = setting(
        None, "rows of text to read at once; 1 = read a split file as one stream  [as in training]", "data", FROM_ONE
    )
    unk: str = setting("", "for a word-level model: word that stands for unknown words  [as in training]", "data")

    mc_samples: int = setting(0, "average this many passes with dropout on (Monte Carlo); 0 = off", "model", FROM_ZERO)
    seed: int = setting(123, "seed of the Monte Carlo samples", "model", Interval(0, 2**63 - 1))
    dynamic: float | None = setting(
        None,
        "dynamic evaluation: learn from the text as it is scored, in steps of the run's -seq_length, at this "
        "learning rate",
        "model",
        FROM_ZERO,
    )

    gpuid: int = setting(0, "number of the GPU; -1 = CPU", "device", Interval(low=-1))


# pairs of settings that cannot be combined
EXCLUSIVE = (("text", "split"), ("text", "data_dir"), ("text", "batch_size"), ("mc_samples", "dynamic"))
