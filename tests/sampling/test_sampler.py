"""The sampler, compared with the distribution it draws from, the model's forward pass, and pinned texts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from charrnn import registry
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError
from charrnn.sampling.choice import Choice
from charrnn.sampling.generate import seeds, without_unknown
from charrnn.sampling.sampler import BLOCK, DRAWS, Sampler, sample, uniforms
from charrnn.settings.sampling import SamplingOptions
from tests.helpers.small_models import VOCABULARY, Table, make


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_characters_are_as_frequent_as_the_softmax_says(temperature: float) -> None:
    model = Table(len(VOCABULARY))
    text = "a" + "".join(sample(model, VOCABULARY, "a", 30_000, temperature))
    probabilities = (model.table.detach().double() / temperature).softmax(-1)
    pairs, firsts = Counter(pairwise(text)), Counter(text[:-1])
    for (a, b), count in pairs.items():
        p = probabilities[VOCABULARY.encode(a)[0], VOCABULARY.encode(b)[0]].item()
        deviation = math.sqrt(p * (1 - p) * firsts[a])
        assert abs(count - p * firsts[a]) < 5 * deviation + 1, (a, b)
    assert "c" not in text, "a character of probability 0 is never drawn"


def test_greedy_sampling_takes_the_most_probable_character() -> None:
    model = Table(len(VOCABULARY))
    text = "b" + "".join(sample(model, VOCABULARY, "b", 50, greedy=True))
    for a, b in pairwise(text):
        assert VOCABULARY.encode(b)[0] == model.table[VOCABULARY.encode(a)[0]].argmax()


def test_without_a_prime_text_the_first_character_is_uniform() -> None:
    firsts = Counter(next(iter(sample(Table(7), VOCABULARY, "", 1, seed=seed))) for seed in range(1400))
    assert set(firsts) == set("abcdefg")
    assert all(130 < count < 270 for count in firsts.values())


# by temperature and prime text: the texts of seeds 123 and 124
PINNED = {
    (1.0, "abc"): [
        "caeaddddgafabbbcecdabeedddgddcdbdaadaeefgffdbgbdgbacacgfabgcegffacaafc",
        "bfadgaggecgfffeabgffafedcbcafagfbecggeaaaecbfdacdbbdddddacbcceafaceaaf",
    ],
    (1.0, ""): [
        "caeaddddgafabbbcecdabeedddgddcdbdaadaeefgffdbgbdgbacacgfabgcegffacaafc",
        "bfadgaggecgfffeabgffafedcbcafagfbecggeaaaecbfdacdbbdddddacbcceafaceaaf",
    ],
    (2.0, "abc"): [
        "cadaddddgafabcadecdaceedddgddcdcdaadafeegegdcgbdgbacacggbcgbegfeababfc",
        "ceadgafgecgegeeabgfeafedcccaeagfbecggeaabfccedaddccdddddacacceaeadeaaf",
    ],
    (2.0, ""): [
        "cadaddddgafabcadecdaceedddgddcdcdaadafeegegdcgbdgbacacggbcgbegfeababfc",
        "beadgafgecgegeeabgfeafedcccaeagfbecggeaabfccedaddccdddddacacceaeadeaaf",
    ],
}


class Waves(nn.Module):
    """A recurrent network whose weights come from a formula, so that only the draws are random."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter((1.7 * torch.arange(size * size, dtype=torch.float64)).sin().view(size, size))

    def forward(self, x: Tensor, state: tuple[Tensor] | None) -> tuple[Tensor, tuple[Tensor]]:
        h = x.new_zeros(x.shape[1], len(self.weight), dtype=torch.float64) if state is None else state[0]
        logits = []
        for row in x:
            h = (h / 2 + self.weight[row]).sin()
            logits.append(h @ self.weight)
        return torch.stack(logits), (h,)


def test_a_seed_writes_the_pinned_text() -> None:
    draws = [row.tolist() for row, _ in zip(uniforms([123, 0]), range(DRAWS + 1), strict=False)]
    assert draws[0] == [0.368895870664273, 0.9700530018065531]
    assert draws[1] == [0.013365949855291825, 0.707819864399788]
    assert draws[DRAWS] == [0.11731251495965112, 0.600666975770498]
    sampler = Sampler(Waves(7), VOCABULARY)
    found = {}
    for choice in (Choice(), Choice(2.0, False, 5, 0.9)):
        for prime in ("abc", ""):
            pieces = ["", ""]
            for stream, text, _ in sampler.write(prime, 70, choice, [123, 124]):
                pieces[stream] += text
            found[choice.temperature, prime] = pieces
    assert found == PINNED


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


def test_every_64_bit_seed_is_its_own_and_the_one_after_the_largest_is_0() -> None:
    assert seeds(SamplingOptions(seed=10**6, num_samples=3)) == [10**6, 10**6 + 1, 10**6 + 2]
    assert seeds(SamplingOptions(seed=2**63 - 1, num_samples=2)) == [2**63 - 1, 0]


def test_sampling_leaves_the_model_and_the_global_generator_alone() -> None:
    model = registry.find("lstm").create(len(VOCABULARY), 8, 1, 0.5).train()
    before = torch.get_rng_state()
    characters = sample(model, VOCABULARY, "a", 10)
    next(characters)
    assert torch.is_grad_enabled()
    list(characters)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_unknown_characters_in_the_prime_text_are_reported_before_sampling_starts() -> None:
    with pytest.raises(UserError, match="'!', 'z'"):
        sample(Table(7), VOCABULARY, "az!", 5)


def test_weights_that_are_not_finite_are_an_error() -> None:
    model = Table(7)
    with torch.no_grad():
        model.table.fill_(math.nan)
    model.forward = lambda x, state: (model.table[x], ())
    with pytest.raises(UserError, match="its weights are damaged"):
        list(sample(model, VOCABULARY, "a", 5))


def texts(sampler: Sampler, seeds: Sequence[int], length: int = 120, **more: Any) -> list[str]:
    found = [""] * len(seeds)
    for k, text, _ in sampler.write("abc", length, Choice(), seeds, **more):
        found[k] += text
    return found


@pytest.mark.parametrize("name", registry.models())
def test_the_text_of_a_seed_depends_neither_on_other_streams_nor_on_the_thread_count(name: str) -> None:
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
def test_rounding_is_too_small_to_change_draws(name: str) -> None:
    sampler = Sampler(make(name), VOCABULARY)

    def costs(streams: int) -> list[float]:
        written = sampler.write("abc", 100, Choice(greedy=True), range(streams), scored=True)
        return [token.log_probability for token in written if token.stream == 0]

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


def test_log_probabilities_equal_those_of_the_model() -> None:
    model = make("lstm")
    written = list(Sampler(model, VOCABULARY).write("abc", 50, Choice(0.7, False, 4, 0.9), [3, 4], scored=True))
    for k in range(2):
        stream = [token for token in written if token.stream == k]
        tokens = torch.tensor(VOCABULARY.encode("abc" + "".join(token.text for token in stream)))
        with torch.no_grad():
            expected = model.double()(tokens[:-1, None], None)[0][:, 0].log_softmax(-1)
        for t, token in enumerate(stream, 2):
            assert token.log_probability == pytest.approx(expected[t, tokens[t + 1]].item(), abs=1e-9)


def test_a_stream_ends_with_the_stop_text_and_the_others_continue() -> None:
    sampler = Sampler(make("lstm", scale=1), VOCABULARY)
    whole = texts(sampler, range(8), 200)
    stop = whole[3][40:42]
    expected = [text[: text.index(stop) + 2] if stop in text else text for text in whole]
    assert len({len(text) for text in expected}) > 3
    assert texts(sampler, range(8), 200, stop=stop) == expected
    assert texts(sampler, [3], 200, stop=stop) == expected[3:4]
    with pytest.raises(UserError, match="'!'"):
        texts(sampler, [1], stop="a!")


def test_a_long_prime_text_read_in_blocks_gives_the_same_text() -> None:
    prime = "abcdefg" * 73 + "ab"  # the last block is a single character, so the text depends on the earlier blocks
    assert len(prime) == BLOCK + 1
    model = make("lstm")
    with torch.no_grad():
        logits, _ = model.double()(torch.tensor(VOCABULARY.encode(prime))[:, None], None)
    first = next(iter(Sampler(model, VOCABULARY).write(prime, 1, Choice(greedy=True), [1], scored=True)))
    assert first.log_probability == pytest.approx(logits[-1, 0].log_softmax(-1).max().item(), abs=1e-10)


def test_unknown_characters_can_be_skipped() -> None:
    said: list[str] = []
    assert without_unknown("a!b\nc", VOCABULARY, said.append) == "abc"
    assert "'\\n', '!'" in said[0]
    assert without_unknown("abc", VOCABULARY, said.append) == "abc"
    assert len(said) == 1
    assert without_unknown("a\udce2b", Vocabulary(tuple(range(128)), "bytes"), said.append) == "ab"


class Stubborn(nn.Module):
    """A model that computes in float32, whatever its weights are."""

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
def test_a_model_that_cannot_be_copied_or_converted_to_float64_is_sampled_directly(kind: type[Stubborn]) -> None:
    model = kind().train()
    characters = sample(model, VOCABULARY, "a", 60, greedy=True)
    text = "a" + next(characters)
    assert model.training and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    text += "".join(characters)
    assert model.training and model.table.dtype == torch.float32
    for a, b in pairwise(text):
        assert VOCABULARY.encode(b)[0] == model.table[VOCABULARY.encode(a)[0]].argmax(), "no dropout"
