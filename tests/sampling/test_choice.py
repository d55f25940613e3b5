"""Temperature, top-k and top-p, compared with the distribution that they should draw from."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from charrnn.errors import UserError
from charrnn.sampling.choice import Choice
from charrnn.sampling.sampler import Sampler
from tests.helpers.small_models import VOCABULARY, Table, make

# a row of logits with the probabilities 1/2, 1/4, 1/8, 1/8, exact in binary
HALVES = np.log([[1.0, 0.5, 0.25, 0.25]])


def kept_by(choice: Choice) -> list[int]:
    """Return the tokens of HALVES that can be drawn."""
    draws = np.linspace(0, 1, 800, endpoint=False)
    return sorted(set(choice.choose(HALVES.repeat(len(draws), 0), draws).tolist()))


def nucleus(probabilities: Tensor, top_k: int, top_p: float) -> Tensor:
    """Return the distribution to draw from, computed character by character."""
    kept: list[int] = []
    order = probabilities.argsort(descending=True).tolist()[: top_k or None]
    whole = sum(probabilities[i].item() for i in order)
    for i in order:
        if sum(probabilities[j].item() for j in kept) < top_p * whole:
            kept.append(i)
    left = probabilities.new_zeros(len(probabilities))
    left[kept] = probabilities[kept]
    return left / left.sum()


@pytest.mark.parametrize(("top_k", "top_p"), [(3, 1.0), (0, 0.7), (5, 0.8), (0, 0.999)])
def test_top_k_and_top_p_draw_from_the_remaining_distribution(top_k: int, top_p: float) -> None:
    model = Table(len(VOCABULARY))
    written = Sampler(model, VOCABULARY).write("a", 8_000, Choice(1.3, False, top_k, top_p), [1])
    text = "a" + "".join(token.text for token in written)
    pairs, firsts = Counter(pairwise(text)), Counter(text[:-1])
    for a in firsts:
        row = (model.table[VOCABULARY.encode(a)[0]].detach().double() / 1.3).softmax(-1)
        for b, p in zip("abcdefg", nucleus(row, top_k, top_p).tolist(), strict=True):
            deviation = math.sqrt(p * (1 - p) * firsts[a])
            assert abs(pairs[a, b] - p * firsts[a]) <= 5 * deviation + (p > 0), (a, b)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.25, [0]), (0.5, [0]), (0.5 + 1e-9, [0, 1]), (0.75, [0, 1]), (0.75 + 1e-9, [0, 1, 2, 3]), (1.0, [0, 1, 2, 3])],
)
def test_top_p_keeps_the_fewest_tokens_with_that_total_probability(top_p: float, kept: list[int]) -> None:
    assert kept_by(Choice(top_p=top_p)) == kept


@pytest.mark.parametrize(("top_k", "kept"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2, 3]), (4, [0, 1, 2, 3])])
def test_top_k_keeps_all_tokens_that_tie_with_the_last_one(top_k: int, kept: list[int]) -> None:
    assert kept_by(Choice(top_k=top_k)) == kept


def test_top_p_applies_to_the_distribution_after_top_k() -> None:
    # 1/2 and 1/4 remain, which become 2/3 and 1/3
    assert kept_by(Choice(top_k=2, top_p=0.66)) == [0]
    assert kept_by(Choice(top_k=2, top_p=0.67)) == [0, 1]


def test_a_draw_chooses_by_the_cumulative_sum() -> None:
    draws = np.array([0, 0.5 - 1e-12, 0.5, 0.75 - 1e-12, 0.75, 1 - 1e-12])
    assert Choice().choose(HALVES.repeat(6, 0), draws).tolist() == [0, 0, 1, 1, 2, 3]


def test_limits_can_keep_everything_or_one_token() -> None:
    sampler = Sampler(make("lstm"), VOCABULARY)

    def text(*choice: Any) -> str:
        return "".join(token.text for token in sampler.write("abc", 200, Choice(*choice), [3]))

    assert text(1.0, False, 7, 1.0) == text(1.0, False, 99) == text(1.0)
    assert text(1.0, False, 1) == text(1.0, False, 0, 1e-9) == text(1.0, True) != text(1.0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(UserError, match="must be positive"):
        Choice(temperature)
