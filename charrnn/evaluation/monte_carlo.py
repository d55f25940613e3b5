"""Monte Carlo dropout: the average over passes with dropout on (Gal and Ghahramani 2015, arXiv 1512.05287)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from charrnn import compute
from charrnn.errors import UserError
from charrnn.evaluation.loss import BLOCK, losses
from charrnn.model import DrawsMasks, device_of, evaluating

HOPELESS = 500.0  # the RHN program discards a sample with this perplexity or more
REDRAWS = 100  # largest number of samples to discard
SMALLEST = 1e-10  # the RHN program keeps averaged probabilities this far from 0 and 1


def monte_carlo_losses(
    model: nn.Module, x: Tensor, y: Tensor, samples: int, generator: torch.Generator, block: int = BLOCK
) -> Tensor:
    """Return the loss of each target in nats, float64 (N, B), under the average of several samples' probabilities.

    ``x``, int64 (N, B), holds B rows of token ids, and ``y``, int64 (N, B), the ids that follow them. For each of the
    ``samples`` (at least 1), the model draws the masks of every row once and reads the rows to the end in blocks of
    ``block`` time steps, carrying the state. A model without ``draw_masks`` draws new dropout in every block instead.

    This is the RHN program's procedure, in which B is 1. Like the program, it redraws a sample whose perplexity is 500
    or more. There are two differences. After REDRAWS such samples this raises UserError, while the program never stops.
    Only predicted tokens count here, while the program also counts the first token, with probability 1e-10.

    The model's mode and the global random generators do not change.
    """
    total = torch.zeros(x.shape, dtype=torch.float64, device=device_of(model))
    kept = discarded = 0
    while kept < samples:
        nats = sample_losses(model, x, y, generator, block)
        if nats.mean().item() < math.log(HOPELESS):
            total += (-nats).exp()
            kept += 1
        elif discarded == REDRAWS:
            raise UserError(
                f"{discarded + 1} of {kept + discarded + 1} Monte Carlo samples had a perplexity of {HOPELESS:g} or "
                "more: the model needs more training, or its dropout is too high"
            )
        else:
            discarded += 1
    return -(total / samples).clamp(SMALLEST, 1 - SMALLEST).log()


def sample_losses(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, block: int = BLOCK) -> Tensor:
    """Return the cross-entropy of each target in nats, float64 (N, B), under one sample of the model's masks."""
    device = device_of(model)
    x, y = x.to(device), y.to(device)
    if isinstance(model, DrawsMasks):
        with evaluating(model):
            # masks drawn for one time step apply to all time steps
            return losses(model, x, y, block, masks=model.draw_masks(x[:1], generator))
    with _dropping(model, generator):
        return losses(model, x, y, block)


@contextmanager
def _dropping(model: nn.Module, generator: torch.Generator) -> Iterator[None]:
    """Apply dropout as in training, with a seed from the generator; the global generators are left unchanged."""
    device, was_training = device_of(model), model.training
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
    model.train()
    try:
        with compute.same_random_numbers(device), torch.no_grad():
            compute.seed(seed, device)
            yield
    finally:
        model.train(was_training)
