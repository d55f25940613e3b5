"""The summary of a run: its best checkpoint, and advice drawn from its losses by the rules in char-rnn's README."""

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

RISE = 0.01  # share of a loss; smaller changes are noise
GAP = 0.05  # share of the validation loss; a training loss that differs by less is close to it
WATCHED = 3  # validations in a row that must agree


@dataclass(frozen=True)
class Summary:
    """The summary of a run that has ended."""

    # why it ended, in words
    ended: str
    # of this process only, if the run was resumed
    iterations: int
    seconds: float
    # the best checkpoint, or the last one if none was validated; None if nothing was saved
    best: Path | None
    # its validation loss in nats per token; None if it was not validated
    val_loss: float | None
    advice: str
    vocabulary: type[Vocabulary] = Vocabulary

    def lines(self, command: bool = True) -> list[str]:
        """Return the summary as lines, optionally with the command that samples from the best checkpoint."""
        lines = [f"{self.ended}: {self.iterations:,} iterations in {timedelta(seconds=round(self.seconds))}"]
        if self.advice:
            lines.append(self.advice)
        if self.best and self.val_loss is not None:
            figure = self.vocabulary.figure(self.val_loss)
            lines.append(f"best: {self.best}, validation loss {self.val_loss:.4f} ({figure.text})")
        elif self.best:
            lines.append(f"saved to {self.best}; without a validation split there is no best checkpoint")
        if self.best and command:
            lines.append(f"to sample from it: charrnn sample {quote(str(self.best))}")
        return lines


def advice(losses: Sequence[float], val_losses: Mapping[int, float], dropout: float = 0.0) -> str:
    """Return what to try next, or '' if the losses show neither overfitting nor underfitting.

    ``losses`` has the loss of every iteration; the mean between two validations is used. Overfitting: each of
    the last three validation losses is more than 1% above the best one, which came before them, and the training
    loss has fallen since the best one. Underfitting: over the last third of the validations, but at least three,
    both losses vary by less than 1%, and at the end they differ by less than 5%.
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
