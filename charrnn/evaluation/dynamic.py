"""Dynamic evaluation: the weights adapt to the text as it is read (Krause et al. 2017, arXiv 1709.07432)."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from charrnn.errors import UserError
from charrnn.model import State, device_of


def dynamic_losses(model: nn.Module, x: Tensor, y: Tensor, learning_rate: float, segment: int) -> Tensor:
    """The cross-entropy in nats of each of y, float64 (N,), where every segment is learned from once it was scored.

    x: int64 (N,), a stream of characters; y: int64 (N,), those that follow them. After each ``segment`` of characters
    the weights take one step of plain SGD on its summed loss, dropout off; the state is carried from one segment to the
    next, the gradient is not. A copy of the model adapts: the model stays as it was. Raises UserError where the rate is
    so high that the loss is no number any more.
    """
    device = device_of(model)
    model = deepcopy(model).eval()
    weights = [p for p in model.parameters() if p.requires_grad]
    state: State | None = None
    losses = []
    # cuDNN has no backward pass in evaluation mode
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        for some_x, some_y in zip(x.to(device).split(segment), y.to(device).split(segment), strict=True):
            logits, state = model(some_x[:, None], state)
            nats = F.cross_entropy(logits[:, 0], some_y, reduction="none")
            gradients = torch.autograd.grad(nats.sum(), weights, allow_unused=True)
            with torch.no_grad():
                for p, gradient in zip(weights, gradients, strict=True):
                    if gradient is not None:
                        p.sub_(gradient, alpha=learning_rate)
            state = tuple(part.detach() for part in state)
            losses.append(nats.detach().double())
    result = torch.cat(losses)
    if not result.isfinite().all():
        raise UserError(f"-dynamic {learning_rate:g}: the loss is no longer a number: lower the rate")
    return result
