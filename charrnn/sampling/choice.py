"""The choice of the next token from the logits: greedy, or drawn with temperature, top-k and top-p."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from charrnn.errors import UserError
from charrnn.settings.sampling import SamplingOptions

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Choice:
    """Draw a token from softmax(logits / temperature), or take the most probable one if ``greedy``.

    Raises UserError unless the temperature is positive.
    """

    temperature: float = 1.0
    greedy: bool = False
    # draw only from this many of the most probable tokens; 0 = from all
    top_k: int = 0
    # then only from the smallest set of most probable tokens that together have this probability: nucleus sampling,
    # Holtzman et al. 2020, arXiv 1904.09751
    top_p: float = 1.0

    @classmethod
    def of(cls, options: SamplingOptions) -> Choice:
        """Return a Choice with these settings."""
        return cls(options.temperature, not options.sample, options.top_k, options.top_p)

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UserError(
                f"-temperature {self.temperature:g}: must be positive; to take the most probable token every time, "
                "use -sample 0"
            )

    def choose(self, logits: Floats, draws: Floats) -> Ids:
        """Return a token id for each row, int64 (N,).

        ``logits`` are (N, V), with the largest of each row 0. ``draws`` are N uniform numbers in [0, 1). top_k and
        top_p also keep all tokens that are exactly as probable as the last one they keep.
        """
        if self.greedy:
            best: Ids = logits.argmax(-1)
            return best
        weights = np.exp(logits if self.temperature == 1 else logits / self.temperature)
        if 0 < self.top_k < weights.shape[-1]:
            weights[weights < np.partition(weights, -self.top_k)[:, -self.top_k, None]] = 0
        if self.top_p < 1:
            weights[weights < self._smallest_kept(weights)] = 0
        cumulative = weights.cumsum(-1)
        # the first token at which the cumulative sum exceeds the draw, so a token of probability 0 is never chosen
        chosen: Ids = (cumulative > draws[:, None] * cumulative[:, -1:]).argmax(-1)
        return chosen

    def _smallest_kept(self, weights: Floats) -> Floats:
        """Return the smallest weight (N, 1) in the smallest set of tokens with a total probability of top_p or more."""
        descending = -np.sort(-weights)
        cumulative = descending.cumsum(-1)
        last = (cumulative >= self.top_p * cumulative[:, -1:]).argmax(-1)
        return np.take_along_axis(descending, last[:, None], -1)
