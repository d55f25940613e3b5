"""Evaluation with dropout left on, averaged over samples of its masks (Gal and Ghahramani, arXiv 1512.05287)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from charrnn.errors import UserError
from charrnn.evaluation.loss import Score, losses
from charrnn.model import device_of, evaluating

HOPELESS = 500.0  # perplexity from which on the RHN program throws a sample away


SMALLEST = 1e-10  # probability; the program keeps the averages this far from 0 and 1


def monte_carlo(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    samples: int,
    generator: torch.Generator,
    block: int = 512,
    redraws: int = 100,
) -> Score:
    """The score of rows of text by ``monte_carlo_losses``."""
    return Score.of(monte_carlo_losses(model, x, y, samples, generator, block, redraws))


def monte_carlo_losses(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    samples: int,
    generator: torch.Generator,
    block: int = 512,
    redraws: int = 100,
) -> Tensor:
    """The loss in nats of each character of rows of text, float64 (N, B), predicted by the average of several samples.

    x: int64 (N, B), the characters of B rows; y: int64 (N, B), those that follow them; samples: at least 1. For each
    sample the model draws the masks of every row once and reads the rows to their end, the state carried, in blocks of
    that many steps. The samples' probabilities of each character are averaged, and the loss is that of the averages. A
    model without draw_masks has fresh dropout at every block instead.

    This is the RHN program's procedure, for which B is 1, including that a sample with a perplexity of 500 or more is
    drawn again. Two things differ: after ``redraws`` of them this raises UserError, where the program goes on for ever,
    and only the characters that are predicted count, where the program also counts the first, with probability 1e-10.

    The model's mode and torch's global random numbers stay as they were.
    """
    total = torch.zeros(x.shape, dtype=torch.float64, device=device_of(model))
    kept = thrown_away = 0
    while kept < samples:
        nats = sample_losses(model, x, y, generator, block)
        if nats.mean().item() < math.log(HOPELESS):
            total += (-nats).exp()
            kept += 1
        elif thrown_away == redraws:
            raise UserError(
                f"{thrown_away + 1} of {kept + thrown_away + 1} Monte Carlo samples had a perplexity of "
                f"{HOPELESS:g} or more: the model is not trained enough, or its dropout is too high, to be sampled"
            )
        else:
            thrown_away += 1
    return -(total / samples).clamp(SMALLEST, 1 - SMALLEST).log()


def sample_losses(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, block: int = 512) -> Tensor:
    """The cross-entropy in nats of each of y under one sample of the model's masks, float64 (N, B)."""
    device = device_of(model)
    x, y = x.to(device), y.to(device)
    draw_masks = getattr(model, "draw_masks", None)
    if draw_masks is not None:
        with evaluating(model):
            # masks drawn for one step hold for every step
            return losses(model, x, y, block, masks=draw_masks(x[:1], generator))
    with _dropping(model, generator):
        return losses(model, x, y, block)


@contextmanager
def _dropping(model: nn.Module, generator: torch.Generator) -> Iterator[None]:
    """Dropout as in training, with random numbers that follow from the generator's and disturb nobody else's."""
    device, was_training = device_of(model), model.training
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
    gpus = [device] if device.type == "cuda" else []
    model.train()
    try:
        with torch.random.fork_rng(gpus), torch.no_grad():
            torch.default_generator.manual_seed(seed)
            for gpu in gpus:
                with torch.cuda.device(gpu):
                    torch.cuda.manual_seed(seed)
            yield
    finally:
        model.train(was_training)
