"""The rule that updates the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from charrnn.settings.training import TrainingOptions


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all elements together."""
    return torch.nn.utils.get_total_norm(tensors)


def make_optimizer(parameters: list[nn.Parameter], options: TrainingOptions) -> torch.optim.Optimizer:
    """rmsprop is Torch7's, which torch's equals: the epsilon of 1e-8 outside the root, the mean square from 0."""
    if options.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=options.learning_rate, betas=(options.beta1, options.beta2))
    if options.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=options.learning_rate)
    return torch.optim.RMSprop(parameters, lr=options.learning_rate, alpha=options.decay_rate, eps=1e-8)
