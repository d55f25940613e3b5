"""Learning-rate schedules, and when to stop early.

Every rate is a function of the settings, of how far the run is, and of its validation losses. All of these are
in a checkpoint, so a resumed run has the very rates of the uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from charrnn.errors import UserError
from charrnn.settings.training import TrainingOptions

# of the peak, as in torch.optim.lr_scheduler.OneCycleLR (Smith and Topin 2018)
FIRST = 1 / 25


LAST = FIRST / 1e4


def learning_rate(
    options: TrainingOptions, iteration: int, iterations: int, per_epoch: int, reductions: int = 0
) -> float:
    """The rate of the iteration after ``iteration`` others, of ``iterations`` in all and ``per_epoch`` in an epoch.

    epoch_decay is char-rnn's: constant for ``learning_rate_decay_after`` epochs, then lower at each epoch. The
    RHN program, which divides by its decay, has the same. cosine falls from the full rate towards 0 along half a
    wave. onecycle rises to the full rate and falls far below where it began, both along half a wave, as torch's
    OneCycleLR, but leaves the optimizer's momentum alone. reductions: how often plateau has lowered the rate.
    """
    peak = options.learning_rate
    match options.lr_schedule:
        case "epoch_decay":
            decays = max(0, iteration // per_epoch - max(options.learning_rate_decay_after, 1) + 1)
            return peak * min(options.learning_rate_decay, 1.0) ** decays
        case "plateau":
            return peak * options.plateau_factor**reductions
        case "cosine":
            return half_wave(peak, 0.0, iteration / iterations)
        case "onecycle":
            top = options.warm_up * iterations - 1  # may be under 0: then the rate only falls
            if iteration < top:
                return half_wave(FIRST * peak, peak, iteration / top)
            return half_wave(peak, LAST * peak, (iteration - top) / (iterations - 1 - top))
    return peak


def half_wave(start: float, end: float, part: float) -> float:
    """From start to end along half a cosine wave; part runs from 0 to 1."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * part))


def regular(val_losses: Mapping[int, float], every: int) -> list[float]:
    """The validation losses at multiples of ``every``, which are those that a longer run would have as well."""
    return [loss for iteration, loss in val_losses.items() if iteration % every == 0]


def reductions(losses: Iterable[float], patience: int) -> int:
    """How often plateau lowers the rate over these validation losses: after ``patience`` without a new best, anew."""
    best, stalled, count = math.inf, 0, 0
    for loss in losses:
        stalled = 0 if loss < best else stalled + 1
        best = min(best, loss)
        if stalled == patience:
            stalled, count = 0, count + 1
    return count


def stalled(losses: Iterable[float]) -> int:
    """How many validations there were since the best one."""
    best, since = math.inf, 0
    for loss in losses:
        since = 0 if loss < best else since + 1
        best = min(best, loss)
    return since


def check_validated(options: TrainingOptions, validated: bool) -> None:
    """Raises UserError for settings that live on validations, in a run that has none."""
    if validated:
        return
    for used, flag in ((options.early_stop, "-early_stop"), (options.lr_schedule == "plateau", "-lr_schedule plateau")):
        if used:
            raise UserError(f"{flag} needs a validation part, and there is none: raise -val_frac, or leave it out")
