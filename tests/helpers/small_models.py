"""Small models whose weights are large, so that each character depends on the text before it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from charrnn import registry
from charrnn.data.vocabulary import Vocabulary

VOCABULARY = Vocabulary(tuple(range(97, 104)))


class Table(nn.Module):
    """A model that looks up its logits by the last character, in a table (V, V). Character 2 has probability 0."""

    def __init__(self, size: int) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.table = nn.Parameter(2 * torch.randn(size, size))
        with torch.no_grad():
            self.table[:, 2] = -math.inf

    def forward(self, x: Tensor, state: object) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.table.nan_to_num(neginf=-1e9)[x], ()


def make(name: str, size: int = len(VOCABULARY), seed: int = 4, scale: float = 0.6) -> nn.Module:
    """Return a float32 model with large weights."""
    torch.manual_seed(seed)
    model = registry.find(name).create(size, 24, 2, 0.0)
    for p in model.parameters():
        nn.init.uniform_(p, -scale, scale)
    return model
