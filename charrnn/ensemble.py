"""Several models as one: the average of the probabilities that they give."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from charrnn.checkpoint import Checkpoint
from charrnn.errors import UserError


def averaged(losses: Sequence[Tensor]) -> Tensor:
    """The loss in nats of each character under the average of the models' probabilities, from each model's losses.

    Shapes are alike, and kept. Of the probabilities a model gives, only that of the character that came is needed.
    """
    return math.log(len(losses)) - torch.logsumexp(-torch.stack(list(losses)), 0)


def check_same_vocabulary(names: Sequence[str], members: Sequence[Checkpoint]) -> None:
    """Raises UserError where checkpoints, of those names, know different characters."""
    first, leader = names[0], members[0]
    for name, member in zip(names, members, strict=True):
        one, other = leader.vocabulary, member.vocabulary
        ours, theirs = set(one.codes), set(other.codes)
        if (one.codes, one.encoding) == (other.codes, other.encoding):
            continue
        if one.level != other.level:
            difference = f"one is trained on {one.units}, the other on {other.units}"
        elif one.encoding != other.encoding:
            difference = f"one is trained on {one.encoding}, the other on {other.encoding}"
        elif ours == theirs:
            difference = f"their {one.units} are numbered differently"
        else:
            codes = [one.name(code) for code in sorted(ours ^ theirs)]
            difference = f"only one of them knows {', '.join(codes[:20])}{' ...' if len(codes) > 20 else ''}"
        raise UserError(
            f"{first} and {name} cannot be averaged: {difference}; train both on texts with the same {one.units}"
        )
