"""Dynamic evaluation: the weights adapt to the text as it is read (Krause et al. 2017, arXiv 1709.07432)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from charrnn.errors import UserError
from charrnn.model import State, copied, device_of


def dynamic_losses(model: nn.Module, x: Tensor, y: Tensor, learning_rate: float, segment: int) -> Tensor:
    """Return the cross-entropy of each target in nats, float64 (N,), learning from each segment after scoring it.

    ``x``, int64 (N,), is a stream of token ids, and ``y``, int64 (N,), the ids that follow them. After every
    ``segment`` time steps, the weights take one step of plain SGD on the segment's summed loss, without dropout. The
    state is carried to the next segment, but the gradient is not. A copy of the model adapts, so the model itself does
    not change. Raises UserError if it cannot be copied, or if the learning rate is so high that the loss becomes
    infinite or NaN.
    """
    device = device_of(model)
    adapting = copied(model)
    if adapting is None:
        raise UserError("-dynamic: this model cannot be copied (copy.deepcopy fails), so its weights cannot adapt")
    model = adapting.eval()
    weights = [p for p in model.parameters() if p.requires_grad]
    state: State | None = None
    losses = []
    # cuDNN has no backward pass in evaluation mode
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        for segment_x, segment_y in zip(x.to(device).split(segment), y.to(device).split(segment), strict=True):
            logits, state = model(segment_x[:, None], state)
            nats = F.cross_entropy(logits[:, 0], segment_y, reduction="none")
            gradients = torch.autograd.grad(nats.sum(), weights, allow_unused=True)
            with torch.no_grad():
                for p, gradient in zip(weights, gradients, strict=True):
                    if gradient is not None:
                        p.sub_(gradient, alpha=learning_rate)
            state = tuple(part.detach() for part in state)
            losses.append(nats.detach().double())
    result = torch.cat(losses)
    if not result.isfinite().all():
        raise UserError(f"-dynamic {learning_rate:g}: the loss became infinite or NaN; lower the learning rate")
    return result
