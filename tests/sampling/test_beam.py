"""Beam search, compared with all possible texts and with a search that reads every candidate from its beginning."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from charrnn.data.vocabulary import Vocabulary
from charrnn.sampling.beam import beam_search, smallest
from charrnn.sampling.sampler import Sampler, sample
from tests.helpers.small_models import VOCABULARY, make

SMALL = Vocabulary(tuple(range(97, 101)))


def log_probabilities(model: nn.Module, prime: str, text: str) -> list[float]:
    """Return the log probability of each character after the prime text, from a single forward pass."""
    tokens = torch.tensor(SMALL.encode(prime + text))
    logits, _ = model(tokens[:-1, None], None)
    each = logits[:, 0].log_softmax(-1).gather(-1, tokens[1:, None])[:, 0]
    found: list[float] = each[len(prime) - 1 :].tolist()
    return found


def best_of_all(model: nn.Module, prime: str, length: int, stop: str) -> tuple[str, float]:
    """Return the most probable of all texts that have this length or end with ``stop``, by trying them all."""
    found: dict[str, float] = {}
    for letters in product("abcd", repeat=length):
        text = "".join(letters)
        if stop and stop in text:
            text = text[: text.index(stop) + len(stop)]
        if text not in found:
            found[text] = sum(log_probabilities(model, prime, text))
    return max(found.items(), key=lambda item: item[1])


def naive_beam(model: nn.Module, prime: str, length: int, size: int, stop: str) -> str:
    """Beam search in plain Python; every candidate is read from its beginning at every step."""
    live, ended = [(0.0, "")], (math.inf, "")
    for _ in range(length):
        grown = []
        for cost, text in live:
            logits, _ = model(torch.tensor(SMALL.encode(prime + text))[:, None], None)
            nats = -logits[-1, 0].log_softmax(-1)
            grown += [(cost + nats[k].item(), text + letter) for k, letter in enumerate("abcd")]
        kept = sorted(grown, key=lambda item: item[0])[:size]
        if stop:
            ended = min([ended, *(item for item in kept if item[1].endswith(stop))], key=lambda item: item[0])
        live = [item for item in kept if not (stop and item[1].endswith(stop)) and item[0] < ended[0]]
        if not live:
            return ended[1]
    return live[0][1]


@torch.no_grad()
@pytest.mark.parametrize("stop", ["", "d", "ca"])
@pytest.mark.parametrize("seed", range(6))
def test_a_beam_wide_enough_finds_the_most_probable_text(seed: int, stop: str) -> None:
    model = make("rnn", 4, seed)
    written = list(beam_search(Sampler(model, SMALL), "ab", 5, 4**5, stop))
    text, log_probability = best_of_all(model.double(), "ab", 5, stop)
    assert "".join(token.text for token in written) == text
    assert sum(token.log_probability for token in written) == pytest.approx(log_probability, abs=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("stop", ["", "d", "ca"])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_a_narrow_beam_writes_the_text_and_log_probabilities_of_a_naive_search(seed: int, size: int, stop: str) -> None:
    model = make("gru", 4, seed, scale=1)
    written = list(beam_search(Sampler(model, SMALL), "ab", 12, size, stop))
    text = "".join(token.text for token in written)
    assert text == naive_beam(model.double(), "ab", 12, size, stop)
    expected = log_probabilities(model, "ab", text)
    assert [token.log_probability for token in written] == pytest.approx(expected, abs=1e-9)


def test_a_beam_of_one_is_greedy_and_a_wider_one_no_worse() -> None:
    sampler = Sampler(make("rnn"), VOCABULARY)
    totals = []
    for size in (1, 4, 30):
        written = list(beam_search(sampler, "abc", 40, size))
        assert len(written) == 40
        totals.append(sum(token.log_probability for token in written))
        if size == 1:
            greedy = sample(make("rnn"), VOCABULARY, "abc", 40, greedy=True)
            assert "".join(token.text for token in written) == "".join(greedy)
    assert totals[0] < totals[1] <= totals[2]
    assert list(beam_search(sampler, "abc", 0, 4)) == []


@torch.no_grad()
@pytest.mark.parametrize("seed", range(4))
def test_a_beam_without_a_prime_text_considers_every_first_character(seed: int) -> None:
    model = make("gru", 4, seed)
    written = list(beam_search(Sampler(model, SMALL), "", 3, 4**3))
    options = [(first, *best_of_all(model.double(), first, 2, "")) for first in "abcd"]
    first, rest, log_probability = max(options, key=lambda option: option[2])
    assert "".join(token.text for token in written) == first + rest
    total = sum(token.log_probability for token in written)
    assert total == pytest.approx(log_probability - math.log(4), abs=1e-9)


class Undecided(nn.Module):
    """Gives every token the same probability after any text."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 4))

    def forward(self, x: Tensor, state: object) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.weight[x], ()


def test_among_equally_probable_texts_the_first_in_token_order_is_chosen() -> None:
    assert smallest(np.array([2.0, 1.0, 1.0, 0.0, 1.0]), 3).tolist() == [3, 1, 2]
    assert smallest(np.array([1.0] * 100), 4).tolist() == [0, 1, 2, 3]
    many = np.random.default_rng(1).integers(0, 3, 1000).astype(float)
    assert smallest(many, 900).tolist() == sorted(range(1000), key=lambda index: many[index])[:900]
    for size in (1, 3, 50):
        assert "".join(token.text for token in beam_search(Sampler(Undecided(), SMALL), "d", 6, size)) == "aaaaaa"
