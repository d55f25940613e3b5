"""Sampling against the distribution it is meant to draw from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from io import BufferedWriter, BytesIO
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from charrnn import registry
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError, printable
from charrnn.sampling.beam import beam_search
from charrnn.sampling.choice import Choice
from charrnn.sampling.generate import without_unknown
from charrnn.sampling.output import Stream
from charrnn.sampling.sampler import BLOCK, Sampler, sample, uniforms

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
    model = registry.find(name).create(len(VOCABULARY), 12, 2, 0.0).double()
    for p in model.parameters():
        nn.init.uniform_(p, -0.9, 0.9)
    prime = "abcdefg"
    text = "".join(sample(model, VOCABULARY, prime, 200))
    draws, state, x = uniforms([123]), None, torch.tensor(VOCABULARY.encode(prime))[:, None]
    model.eval()
    for character in text:
        with torch.no_grad():
            logits, state = model(x, state)
        cumulative = logits[-1, 0].softmax(-1).cumsum(-1)
        number = int((cumulative <= next(draws).item()).sum())
        assert VOCABULARY.decode([number]) == character
        x = torch.tensor([[number]])


def test_sampling_leaves_the_model_and_the_global_generator_alone() -> None:
    model = registry.find("lstm").create(len(VOCABULARY), 8, 1, 0.5).train()
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


def make(name: str, size: int = len(VOCABULARY), seed: int = 4, scale: float = 0.6) -> nn.Module:
    """A float32 model with weights large enough that its choices depend on what went before."""
    torch.manual_seed(seed)
    model = registry.find(name).create(size, 24, 2, 0.0)
    for p in model.parameters():
        nn.init.uniform_(p, -scale, scale)
    return model


def texts(sampler: Sampler, seeds: Sequence[int], length: int = 120, **more: Any) -> list[str]:
    found = [""] * len(seeds)
    for k, text, _ in sampler.write("abc", length, Choice(), seeds, **more):
        found[k] += text
    return found


@pytest.mark.parametrize("name", registry.models())
def test_a_seed_is_one_text_however_many_are_beside_it_and_on_any_number_of_threads(name: str) -> None:
    sampler = Sampler(make(name), VOCABULARY)
    alone = [texts(sampler, [seed])[0] for seed in range(5, 12)]
    assert len(set(alone)) == 7
    assert texts(sampler, [5, 6]) == alone[:2]
    assert texts(sampler, range(5, 12)) == alone
    assert "".join(sample(make(name), VOCABULARY, "abc", 120, seed=5)) == alone[0]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert texts(sampler, range(5, 12)) == alone
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", registry.models())
def test_rounding_is_too_small_to_move_a_draw(name: str) -> None:
    sampler = Sampler(make(name), VOCABULARY)

    def costs(streams: int) -> list[float]:
        written = sampler.write("abc", 100, Choice(greedy=True), range(streams), scored=True)
        return [character.log_probability for character in written if character.stream == 0]

    alone = costs(1)
    for streams in (2, 7):
        assert costs(streams) == pytest.approx(alone, abs=1e-12)


def test_without_a_prime_text_each_stream_has_its_own_first_character() -> None:
    sampler = Sampler(make("gru"), VOCABULARY)
    together = [""] * 9
    for k, text, log_probability in sampler.write("", 3, Choice(), range(9), scored=True):
        if not together[k]:
            assert log_probability == pytest.approx(-math.log(7))
        together[k] += text
    assert together == ["".join(sample(make("gru"), VOCABULARY, "", 3, seed=seed)) for seed in range(9)]
    assert len({text[0] for text in together}) > 3


def nucleus(probabilities: Tensor, top_k: int, top_p: float) -> Tensor:
    """The distribution that is drawn from, built up character by character."""
    kept: list[int] = []
    order = probabilities.argsort(descending=True).tolist()[: top_k or None]
    whole = sum(probabilities[i].item() for i in order)
    for i in order:
        if sum(probabilities[j].item() for j in kept) < top_p * whole:
            kept.append(i)
    left = torch.zeros_like(probabilities)
    left[kept] = probabilities[kept]
    return left / left.sum()


@pytest.mark.parametrize(("top_k", "top_p"), [(3, 1.0), (0, 0.7), (5, 0.8), (0, 0.999)])
def test_top_k_and_top_p_draw_from_what_they_leave(top_k: int, top_p: float) -> None:
    model = Table(len(VOCABULARY))
    written = Sampler(model, VOCABULARY).write("a", 8_000, Choice(1.3, False, top_k, top_p), [1])
    text = "a" + "".join(character.text for character in written)
    pairs, firsts = Counter(pairwise(text)), Counter(text[:-1])
    for a in firsts:
        row = (model.table[VOCABULARY.encode(a)[0]].detach().double() / 1.3).softmax(-1)
        for b, p in zip("abcdefg", nucleus(row, top_k, top_p).tolist(), strict=True):
            deviation = math.sqrt(p * (1 - p) * firsts[a])
            assert abs(pairs[a, b] - p * firsts[a]) <= 5 * deviation + (p > 0), (a, b)


def test_limits_that_leave_all_or_one() -> None:
    sampler = Sampler(make("lstm"), VOCABULARY)

    def text(*choice: Any) -> str:
        return "".join(character.text for character in sampler.write("abc", 200, Choice(*choice), [3]))

    assert text(1.0, False, 7, 1.0) == text(1.0, False, 99) == text(1.0)
    assert text(1.0, False, 1) == text(1.0, False, 0, 1e-9) == text(1.0, True) != text(1.0)


def test_log_probabilities_are_the_models_own() -> None:
    model = make("lstm")
    written = list(Sampler(model, VOCABULARY).write("abc", 50, Choice(0.7, False, 4, 0.9), [3, 4], scored=True))
    for k in range(2):
        characters = [character for character in written if character.stream == k]
        tokens = torch.tensor(VOCABULARY.encode("abc" + "".join(c.text for c in characters)))
        with torch.no_grad():
            expected = model.double()(tokens[:-1, None], None)[0][:, 0].log_softmax(-1)
        for t, character in enumerate(characters, 2):
            assert character.log_probability == pytest.approx(expected[t, tokens[t + 1]].item(), abs=1e-9)


def test_a_stream_ends_with_the_stop_text_and_the_others_go_on() -> None:
    sampler = Sampler(make("lstm", scale=1), VOCABULARY)
    whole = texts(sampler, range(8), 200)
    stop = whole[3][40:42]
    expected = [text[: text.index(stop) + 2] if stop in text else text for text in whole]
    assert len({len(text) for text in expected}) > 3
    assert texts(sampler, range(8), 200, stop=stop) == expected
    assert texts(sampler, [3], 200, stop=stop) == expected[3:4]
    with pytest.raises(UserError, match="'!'"):
        texts(sampler, [1], stop="a!")


def test_a_long_prime_text_is_read_in_blocks() -> None:
    prime = "abcdefg" * 73 + "ab"  # the last block is a single character, and the rest decides
    assert len(prime) == BLOCK + 1
    model = make("lstm")
    with torch.no_grad():
        logits, _ = model.double()(torch.tensor(VOCABULARY.encode(prime))[:, None], None)
    first = next(iter(Sampler(model, VOCABULARY).write(prime, 1, Choice(greedy=True), [1], scored=True)))
    assert first.log_probability == pytest.approx(logits[-1, 0].log_softmax(-1).max().item(), abs=1e-10)


def test_unknown_characters_can_be_left_out() -> None:
    said: list[str] = []
    assert without_unknown("a!b\nc", VOCABULARY, said.append) == "abc"
    assert "'\\n', '!'" in said[0]
    assert without_unknown("abc", VOCABULARY, said.append) == "abc"
    assert len(said) == 1
    assert without_unknown("a\udce2b", Vocabulary(tuple(range(128)), "bytes"), said.append) == "ab"


class Stubborn(nn.Module):
    """Computes in float32, whatever its weights are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = nn.Parameter(torch.randn(7, 7))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, state: object) -> tuple[Tensor, tuple[Tensor, ...]]:
        one_hot = nn.functional.one_hot(x, 7).to(torch.float32)
        return self.dropout(one_hot @ self.table), ()


class Uncopied(Stubborn):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("cannot be copied")


@pytest.mark.parametrize("kind", [Stubborn, Uncopied])
def test_a_model_that_cannot_be_copied_or_made_float64_is_sampled_as_it_is(kind: type[Stubborn]) -> None:
    model = kind().train()
    characters = sample(model, VOCABULARY, "a", 60, greedy=True)
    text = "a" + next(characters)
    assert model.training and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    text += "".join(characters)
    assert model.training and model.table.dtype == torch.float32
    for a, b in pairwise(text):
        assert VOCABULARY.encode(b)[0] == model.table[VOCABULARY.encode(a)[0]].argmax(), "no dropout"


SMALL = Vocabulary(tuple(range(97, 101)))


def best_of_all(model: nn.Module, prime: str, length: int, stop: str) -> tuple[str, float]:
    """The most probable text of that length, or that ends with ``stop``, by looking at every one."""
    found: dict[str, float] = {}
    for letters in product("abcd", repeat=length):
        text = "".join(letters)
        if stop and stop in text:
            text = text[: text.index(stop) + len(stop)]
        if text not in found:
            tokens = torch.tensor(SMALL.encode(prime + text))
            logits, _ = model(tokens[:-1, None], None)
            each = logits[:, 0].log_softmax(-1).gather(-1, tokens[1:, None])
            found[text] = each[len(prime) - 1 :].sum().item()
    return max(found.items(), key=lambda item: item[1])


@torch.no_grad()
@pytest.mark.parametrize("stop", ["", "d", "ca"])
@pytest.mark.parametrize("seed", range(6))
def test_a_beam_wide_enough_finds_the_most_probable_text(seed: int, stop: str) -> None:
    model = make("rnn", 4, seed)
    written = list(beam_search(Sampler(model, SMALL), "ab", 5, 4**5, stop))
    text, log_probability = best_of_all(model.double(), "ab", 5, stop)
    assert "".join(character.text for character in written) == text
    assert sum(character.log_probability for character in written) == pytest.approx(log_probability, abs=1e-9)


def test_a_beam_of_one_is_greedy_and_a_wider_one_no_worse() -> None:
    sampler = Sampler(make("rnn"), VOCABULARY)
    totals = []
    for size in (1, 4, 30):
        written = list(beam_search(sampler, "abc", 40, size))
        assert len(written) == 40
        totals.append(sum(character.log_probability for character in written))
        if size == 1:
            greedy = sample(make("rnn"), VOCABULARY, "abc", 40, greedy=True)
            assert "".join(character.text for character in written) == "".join(greedy)
    assert totals[0] < totals[1] <= totals[2]
    assert list(beam_search(sampler, "abc", 0, 4)) == []


@torch.no_grad()
@pytest.mark.parametrize("seed", range(4))
def test_a_beam_without_a_prime_text_considers_every_first_character(seed: int) -> None:
    model = make("gru", 4, seed)
    written = list(beam_search(Sampler(model, SMALL), "", 3, 4**3))
    options = [(first, *best_of_all(model.double(), first, 2, "")) for first in "abcd"]
    first, rest, log_probability = max(options, key=lambda option: option[2])
    assert "".join(character.text for character in written) == first + rest
    total = sum(character.log_probability for character in written)
    assert total == pytest.approx(log_probability - math.log(4), abs=1e-9)


def test_a_stream_passes_bytes_on_and_shows_a_terminal_whole_characters() -> None:
    pieces = [*(bytes([byte]).decode("utf-8", "surrogateescape") for byte in "né \x1b[1m🌸\n".encode()), "\udcf0"]
    raw, shown = BytesIO(), BytesIO()
    for file, escape in ((raw, None), (shown, printable)):
        stream = Stream(file, escape)
        for piece in pieces:
            stream.write(piece)
        stream.flush()
    assert raw.getvalue() == "né \x1b[1m🌸\n".encode() + b"\xf0"
    assert shown.getvalue().decode() == "né \\x1b[1m🌸\n\\udcf0"


def test_text_goes_out_at_once_but_not_with_a_write_for_each_character(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("charrnn.sampling.output.time.monotonic", lambda: now)
    arrived = BytesIO()
    stream = Stream(BufferedWriter(arrived))
    seen = []
    for character, seconds in (("a", 1.0), ("b", 1.001), ("c", 1.002), ("d", 1.05), ("e", 1.051)):
        now = seconds
        stream.write(character)
        seen.append(arrived.getvalue().decode())
    assert seen == ["a", "a", "a", "abcd", "abcd"]
    stream.flush()
    assert arrived.getvalue() == b"abcde"
