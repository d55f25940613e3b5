"""Sampling against the distribution it is meant to draw from."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from charrnn import registry
from charrnn.errors import UserError
from charrnn.sampling import sample, uniforms
from charrnn.vocabulary import Vocabulary

VOCABULARY = Vocabulary(tuple(range(97, 104)))


class Table(nn.Module):
    """The next character's logits depend on the last character alone, by a table (V, V)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.table = nn.Parameter(2 * torch.randn(size, size))
        with torch.no_grad():
            self.table[:, 2] = -math.inf

    def forward(self, x: Tensor, state: object) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.table.nan_to_num(neginf=-1e9)[x], ()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_characters_come_as_often_as_softmax_says(temperature: float) -> None:
    model = Table(len(VOCABULARY))
    text = "a" + "".join(sample(model, VOCABULARY, "a", 30_000, temperature))
    probabilities = (model.table.detach().double() / temperature).softmax(-1)
    pairs, firsts = Counter(pairwise(text)), Counter(text[:-1])
    for (a, b), count in pairs.items():
        p = probabilities[VOCABULARY.encode(a)[0], VOCABULARY.encode(b)[0]].item()
        deviation = math.sqrt(p * (1 - p) * firsts[a])
        assert abs(count - p * firsts[a]) < 5 * deviation + 1, (a, b)
    assert "c" not in text, "a character of probability 0 is never drawn"


def test_greedy_is_the_most_probable() -> None:
    model = Table(len(VOCABULARY))
    text = "b" + "".join(sample(model, VOCABULARY, "b", 50, greedy=True))
    for a, b in pairwise(text):
        assert VOCABULARY.encode(b)[0] == model.table[VOCABULARY.encode(a)[0]].argmax()


def test_without_a_prime_text_the_first_character_is_uniform() -> None:
    firsts = Counter(next(iter(sample(Table(7), VOCABULARY, "", 1, seed=seed))) for seed in range(1400))
    assert set(firsts) == set("abcdefg")
    assert all(130 < count < 270 for count in firsts.values())


@pytest.mark.parametrize("name", registry.models())
def test_step_and_forward_write_the_same_text(name: str) -> None:
    torch.manual_seed(4)
    model = registry.create(name, len(VOCABULARY), 12, 2, 0.0).double()
    for p in model.parameters():
        nn.init.uniform_(p, -0.9, 0.9)
    prime = "abcdefg"
    text = "".join(sample(model, VOCABULARY, prime, 200))
    draws, state, x = uniforms(123), None, torch.tensor(VOCABULARY.encode(prime))[:, None]
    model.eval()
    for character in text:
        with torch.no_grad():
            logits, state = model(x, state)
        cumulative = logits[-1, 0].softmax(-1).cumsum(-1)
        number = int((cumulative <= next(draws)).sum())
        assert VOCABULARY.decode([number]) == character
        x = torch.tensor([[number]])


def test_sampling_leaves_the_model_and_the_global_generator_alone() -> None:
    model = registry.create("lstm", len(VOCABULARY), 8, 1, 0.5).train()
    before = torch.get_rng_state()
    characters = sample(model, VOCABULARY, "a", 10)
    next(characters)
    assert torch.is_grad_enabled()
    list(characters)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_unknown_prime_characters_are_named_at_once() -> None:
    with pytest.raises(UserError, match="'!', 'z'"):
        sample(Table(7), VOCABULARY, "az!", 5)


def test_broken_weights_are_an_error_not_a_hang() -> None:
    model = Table(7)
    with torch.no_grad():
        model.table.fill_(math.nan)
    model.forward = lambda x, state: (model.table[x], ())  # type: ignore[method-assign]
    with pytest.raises(UserError, match="not a number"):
        list(sample(model, VOCABULARY, "a", 5))
