"""What a run came to: its best checkpoint, and what its losses say about the settings, as char-rnn's README teaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from math import isfinite
from pathlib import Path
from shlex import quote

import numpy as np

from charrnn.data.vocabulary import Vocabulary

RISE = 0.01  # of a loss: less is noise


GAP = 0.05


WATCHED = 3  # validations in a row that must agree


@dataclass(frozen=True)
class Summary:
    """The end of a run.

    ended: why, in words. best: the best checkpoint, None where there is none. val_loss: its validation loss in
    nats per character, or per word, None where nothing was validated. iterations and seconds: of this process.
    """

    ended: str
    iterations: int
    seconds: float
    best: Path | None
    val_loss: float | None
    advice: str
    vocabulary: type[Vocabulary] = Vocabulary

    def lines(self) -> list[str]:
        """In words, with the command that samples from the best checkpoint last."""
        lines = [f"{self.ended}: {self.iterations:,} iterations in {timedelta(seconds=round(self.seconds))}"]
        if self.advice:
            lines.append(self.advice)
        if self.best and self.val_loss is not None:
            figure = self.vocabulary.figure(self.val_loss)
            lines.append(f"best: {self.best}, validation loss {self.val_loss:.4f} ({figure.text})")
        elif self.best:
            lines.append(f"saved to {self.best}; without a validation part there is no best")
        if self.best:
            lines.append(f"to sample from it: charrnn sample {quote(str(self.best))}")
        return lines


def advice(losses: Sequence[float], val_losses: Mapping[int, float], dropout: float = 0.0) -> str:
    """What to try next, or '' where the losses show neither of the two classic faults.

    losses: training loss of each iteration; val_losses: by iteration. Between two validations the training
    loss is the mean of all iterations. Overfitting: over three validations or more since the best one, the
    validation loss is up by 1 % at each and the training loss is down. Underfitting: over the last third of
    the validations, three at least, both have improved by less than 1 %, and the two differ by less than 5 %.
    """
    val = {i: loss for i, loss in sorted(val_losses.items()) if 0 < i <= len(losses) and isfinite(loss)}
    if len(val) <= WATCHED:
        return ""
    at = list(val)
    val_curve = np.array(list(val.values()))
    train_curve = np.array([np.mean(losses[start:end]) for start, end in pairwise([0, *at])])
    best = int(val_curve.argmin())
    since = len(val_curve) - 1 - best
    if (
        since >= WATCHED
        and (val_curve[-WATCHED:] > (1 + RISE) * val_curve[best]).all()
        and train_curve[-1] < train_curve[best]
    ):
        move = "try a higher -dropout" if dropout else "try -dropout"
        return f"overfitting since iteration {at[best]}: {move}"
    third = max(WATCHED, len(val_curve) // 3)
    ends = [curve[-third - 1 :] for curve in (train_curve, val_curve)]
    stalled = all(end.max() < (1 + RISE) * end.min() for end in ends)
    if stalled and abs(train_curve[-1] - val_curve[-1]) < GAP * val_curve[-1]:
        return "underfitting: a larger -rnn_size may help"
    return ""
