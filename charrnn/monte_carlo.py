"""Evaluation with dropout left on, averaged over samples of its masks (Gal and Ghahramani, arXiv 1512.05287)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from charrnn.errors import UserError
from charrnn.evaluation import Score, State, device_of, evaluating

HOPELESS = 500.0  # perplexity from which on the RHN program throws a sample away
SMALLEST = 1e-10  # probability; the program keeps the averages this far from 0 and 1


def monte_carlo(
    model: nn.Module, tokens: Tensor, samples: int, generator: torch.Generator, block: int = 512, redraws: int = 100
) -> Score:
    """The score of one stream of characters, each predicted by the average of several samples of the model.

    tokens: int64 (N,), N at least 2; samples: at least 1. For each sample the model draws its masks once and reads the
    whole stream, the state carried, in blocks of that many steps. The samples' probabilities of each character are
    averaged, and the loss is that of the averages. A model without draw_masks has fresh dropout at every block instead.

    This is the RHN program's procedure, including that a sample with a perplexity of 500 or more is drawn again. Two
    things differ: after ``redraws`` of them this raises UserError, where the program goes on for ever, and only the
    N - 1 characters that are predicted count, where the program also counts one that is not, with probability 1e-10.

    The model's mode and torch's global random numbers stay as they were.
    """
    total = torch.zeros(len(tokens) - 1, dtype=torch.float64, device=device_of(model))
    kept = thrown_away = 0
    while kept < samples:
        nats = sample_losses(model, tokens, generator, block)
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
    average = (total / samples).clamp(SMALLEST, 1 - SMALLEST)
    return Score(-average.log().mean().item(), len(total))


def sample_losses(model: nn.Module, tokens: Tensor, generator: torch.Generator, block: int = 512) -> Tensor:
    """The cross-entropy in nats of each of tokens[1:] under one sample of the model's masks, float64 (N - 1,)."""
    tokens = tokens.to(device_of(model))
    draw_masks = getattr(model, "draw_masks", None)
    if draw_masks is not None:
        with evaluating(model):
            # masks for one step of one row hold for every step
            return _losses(model, tokens, block, masks=draw_masks(tokens[:1, None], generator))
    with _dropping(model, generator):
        return _losses(model, tokens, block)


def _losses(model: nn.Module, tokens: Tensor, block: int, **masks: Any) -> Tensor:
    state: State | None = None
    losses = []
    for start in range(0, len(tokens) - 1, block):
        window = tokens[start : start + block + 1]
        logits, state = model(window[:-1, None], state, **masks)
        losses.append(F.cross_entropy(logits[:, 0], window[1:], reduction="none").double())
    return torch.cat(losses)


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
