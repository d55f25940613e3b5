"""What ``charrnn eval`` scores: a split of a data folder, or any text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from charrnn.checkpoint import Checkpoint
from charrnn.data import open_text, require
from charrnn.errors import UserError
from charrnn.evaluation import Score, evaluate, evaluate_tokens
from charrnn.monte_carlo import monte_carlo
from charrnn.vocabulary import Vocabulary

Report = Callable[[str], None]


@dataclass(frozen=True)
class Scorer:
    """Scores texts with a checkpoint's model.

    mc_samples: 0 for one pass without dropout, else that many Monte Carlo samples, drawn from ``seed``.
    """

    saved: Checkpoint
    model: nn.Module
    mc_samples: int = 0
    seed: int = 123

    def split(self, name: str, data_dir: str, batch_size: int, report: Report) -> Score:
        """Score one split of a folder, in training's row layout with the state carried.

        With batch_size 1, or Monte Carlo samples, a split is read as one stream, and every character but
        its first is scored. Raises UserError for a split that is not there, or characters that the model
        does not know.
        """
        options = self.saved.options
        text = open_text(Path(data_dir), options.encoding, report, vocabulary=self.saved.vocabulary)
        if batch_size == 1 and name in text.files:
            return self.stream(torch.from_numpy(text.files[name].astype(np.int64)))
        splits = text.split(batch_size, options.seq_length, options.train_frac, options.val_frac)
        split = require(splits, name)
        if self.mc_samples:
            return self.stream(torch.cat([split.batch(k)[0][:, 0] for k in range(len(split))]))
        return evaluate(self.model, split)

    def stream(self, tokens: Tensor) -> Score:
        """Score one stream of characters, int64 (N,): each but the first, from all before it."""
        if len(tokens) < 2:
            raise UserError("there is nothing to score: a text needs at least two characters")
        if not self.mc_samples:
            return evaluate_tokens(self.model, tokens)
        generator = torch.Generator(tokens.device).manual_seed(self.seed)
        return monte_carlo(self.model, tokens, self.mc_samples, generator)

    def text(self, text: str) -> Score:
        """Score any text. Raises UserError naming characters that the model does not know, and their line."""
        vocabulary = self.saved.vocabulary
        if unknown := vocabulary.unknown(text):
            raise UserError(
                f"the text has {', '.join(unknown[:20])}{' ...' if len(unknown) > 20 else ''}, first in line "
                f"{first_line_with_unknown(text, vocabulary)}, which the model's training text never had: "
                "take it out, or use a model trained on such text"
            )
        return self.stream(torch.tensor(vocabulary.encode(text)))


def first_line_with_unknown(text: str, vocabulary: Vocabulary) -> int:
    return next(n for n, line in enumerate(text.split("\n"), 1) if vocabulary.unknown(line))
