"""Small operations that every scan is made of."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# rows of T * B for which a backward pass works out its factors at once: enough to make a call of torch worth its
# while, and few enough that the factors are still in the cache when the time loop reads them
BLOCK = 512


def look_up(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """What gates take from characters: F.linear(one_hot(x), W, b) without the product. x (T, B); W (G, V); b (G,)."""
    return F.embedding(x, W.t().contiguous() + b)


def tanh_(a: Tensor) -> Tensor:
    """tanh in place, as 2 sigmoid(2a) - 1: on a CPU torch's sigmoid is several times as fast as its tanh.

    The error is of the order of the precision's epsilon, absolute.
    """
    if a.is_cuda:
        return a.tanh_()
    return a.mul_(2).sigmoid_().mul_(2).sub_(1)


def blocks(T: int, B: int) -> list[range]:
    """All time steps, the last first, in blocks of about BLOCK rows."""
    steps = max(1, BLOCK // B)
    return [range(max(0, stop - steps), stop) for stop in range(T, 0, -steps)]


def asks_for_gradients(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
