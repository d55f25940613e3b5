"""Learning-rate schedules and early stopping.

Every learning rate follows from the settings, the position in the run, and its validation losses. All of these are in a
checkpoint, so a resumed run has exactly the learning rates of an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from charrnn.errors import UserError
from charrnn.settings.training import TrainingOptions

# first and last learning rate of onecycle as shares of the peak, as in torch.optim.lr_scheduler.OneCycleLR (Smith and
# Topin 2018)
FIRST = 1 / 25
LAST = FIRST / 1e4


def learning_rate(
    options: TrainingOptions, iteration: int, iterations: int, per_epoch: int, reductions: int = 0
) -> float:
    """Return the learning rate after ``iteration`` completed iterations.

    The run has ``iterations`` in all, ``per_epoch`` per epoch; plateau has lowered the rate ``reductions`` times.

    epoch_decay is char-rnn's: constant for ``learning_rate_decay_after`` epochs, then lower with each epoch. (The RHN
    program divides by its decay, which has the same effect.) cosine falls from the full rate to 0 along half a cosine
    wave. onecycle rises to the full rate along half a wave, then falls along another to far below where it began; it is
    torch's OneCycleLR without the changes of momentum.
    """
    peak = options.learning_rate
    match options.lr_schedule:
        case "epoch_decay":
            decays = max(0, iteration // per_epoch - max(options.learning_rate_decay_after, 1) + 1)
            return peak * options.learning_rate_decay**decays
        case "plateau":
            return peak * options.plateau_factor**reductions
        case "cosine":
            return half_wave(peak, 0.0, iteration / iterations)
        case "onecycle":
            top = options.warm_up * iterations - 1  # below 0 the rate only falls
            if iteration < top:
                return half_wave(FIRST * peak, peak, iteration / top)
            return half_wave(peak, LAST * peak, (iteration - top) / (iterations - 1 - top))
    return peak


def half_wave(start: float, end: float, share: float) -> float:
    """Return the height of half a cosine wave from ``start`` to ``end``, after this share of its length."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def regular(val_losses: Mapping[int, float], every: int) -> list[float]:
    """Return the validation losses at multiples of ``every``: those that a longer run would also have."""
    return [loss for iteration, loss in val_losses.items() if iteration % every == 0]


def progress(losses: Iterable[float], patience: int) -> tuple[int, int]:
    """Return how often plateau has lowered the rate, and the number of validations since the best one.

    plateau lowers the rate after every ``patience`` validations in a row without a new best.
    """
    best, since, reductions = math.inf, 0, 0
    for loss in losses:
        since = 0 if loss < best else since + 1
        best = min(best, loss)
        if since and since % patience == 0:
            reductions += 1
    return reductions, since


def check_validated(options: TrainingOptions, validated: bool) -> None:
    """Raise UserError for settings that need a validation split in a run without one."""
    if validated:
        return
    for used, flag in ((options.early_stop, "-early_stop"), (options.lr_schedule == "plateau", "-lr_schedule plateau")):
        if used:
            raise UserError(f"{flag} needs a validation split: raise -val_frac, or leave {flag.split()[0]} out")
