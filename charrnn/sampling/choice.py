"""How the next token is chosen from the logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from charrnn.errors import UserError

Floats = NDArray[np.float64]


Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Choice:
    """How a character is chosen: drawn from softmax(logits / temperature), or the most probable where greedy.

    top_k: only among that many of the most probable; 0 for all. top_p: only among the fewest most probable that have
    this share of the probability together (Holtzman et al. 2020, arXiv 1904.09751), after top_k. Characters exactly as
    probable as the last one kept are kept too. Raises UserError for a temperature that is not over 0.
    """

    temperature: float = 1.0
    greedy: bool = False
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UserError(
                f"-temperature {self.temperature:g}: must be over 0; "
                "for the most probable character each time, use -sample 0"
            )

    def choose(self, logits: Floats, draws: Floats) -> Numbers:
        """A character's number for each row of logits (N, V), the greatest of each being 0; draws: (N,), in [0, 1)."""
        if self.greedy:
            best: Numbers = logits.argmax(-1)
            return best
        weights = np.exp(logits if self.temperature == 1 else logits / self.temperature)
        if 0 < self.top_k < weights.shape[-1]:
            weights[weights < np.partition(weights, -self.top_k)[:, -self.top_k, None]] = 0
        if self.top_p < 1:
            weights[weights < self._least_kept(weights)] = 0
        cumulative = weights.cumsum(-1)
        # the first place where the cumulative sum passes the draw: a character of probability 0 is never chosen
        chosen: Numbers = (cumulative > draws[:, None] * cumulative[:, -1:]).argmax(-1)
        return chosen

    def _least_kept(self, weights: Floats) -> Floats:
        """The least weight in the smallest set with a share top_p of the probability, (N, 1)."""
        falling = -np.sort(-weights)
        cumulative = falling.cumsum(-1)
        last = (cumulative >= self.top_p * cumulative[:, -1:]).argmax(-1)
        return np.take_along_axis(falling, last[:, None], -1)
