"""Monte Carlo evaluation compared with loops over single time steps. Recorded values are in test_rhn.py."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from charrnn import registry
from charrnn.errors import UserError
from charrnn.evaluation.loss import Score
from charrnn.evaluation.monte_carlo import monte_carlo_losses, sample_losses
from tests.helpers.recorded import pairs, stream_score

TOKENS = torch.randint(6, (41,), generator=torch.Generator().manual_seed(5))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_rhn(**own: Any) -> nn.Module:
    torch.manual_seed(0)
    return registry.find("rhn").create(6, 8, 2, 0.3, depth=2, init_scale=0.6, **own).double()


def monte_carlo(*args: Any, **more: Any) -> Score:
    return Score.of(monte_carlo_losses(*args, **more))


class Plain(nn.Module):
    """A model without draw_masks, which draws new dropout at every call."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = nn.LSTM(6, 8, dtype=torch.float64)
        self.dropout = nn.Dropout(dropout)
        self.decoder = nn.Linear(8, 6, dtype=torch.float64)

    def forward(self, x: Tensor, state: tuple[Tensor, ...] | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        y, state = self.rnn(nn.functional.one_hot(x, 6).double(), state)
        return self.decoder(self.dropout(y)), state


class Scripted(nn.Module):
    """A model with scripted masks: each is the probability that the model gives token 0."""

    def __init__(self, script: Iterable[float]) -> None:
        super().__init__()
        self.script = iter(script)
        self.weight = nn.Parameter(torch.zeros(()))

    def draw_masks(self, x: Tensor, generator: torch.Generator) -> float:
        assert x.shape == (1, 1)
        return next(self.script)

    def forward(self, x: Tensor, state: Any = None, masks: float | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        assert masks is not None
        probabilities = torch.tensor([masks, 1 - masks], dtype=torch.float64)
        return probabilities.log().expand(*x.shape, 2), (self.weight.reshape(1, 1),)


MODELS = {"draws its own masks": make_rhn, "new dropout at every call": lambda: Plain(0.3)}


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def model(request: pytest.FixtureRequest) -> nn.Module:
    return request.param()


@torch.no_grad()
@pytest.mark.parametrize("own", [{}, {"share_masks": False}])
def test_the_score_equals_a_loop_over_single_time_steps(own: dict[str, Any]) -> None:
    model, generator, samples = make_rhn(**own), seeded(), []
    for _ in range(3):
        masks = model.draw_masks(TOKENS[:1, None], generator)
        state, probabilities = None, []
        for token, following in pairwise(TOKENS):
            logits, state = model(token[None, None], state, masks=masks)
            probabilities.append(logits[0, 0].softmax(0)[following].item())
        samples.append(probabilities)
    averages = [sum(sample[k] for sample in samples) / 3 for k in range(len(TOKENS) - 1)]
    expected = -sum(map(math.log, averages)) / len(averages)
    score = monte_carlo(model, *pairs(TOKENS), 3, seeded())
    assert score.loss == pytest.approx(expected, rel=1e-12)
    assert score.tokens == len(TOKENS) - 1
    assert score.loss != pytest.approx(-sum(math.log(p) for s in samples for p in s) / 3 / len(averages), rel=1e-6)


def test_masks_do_not_depend_on_the_block_size() -> None:
    found = [monte_carlo(make_rhn(), *pairs(TOKENS), 2, seeded(), block=block).loss for block in (512, 40, 7, 1)]
    assert found == pytest.approx([found[0]] * 4, rel=1e-12)


def test_without_dropout_the_score_equals_plain_evaluation() -> None:
    for model in (make_rhn(drop_x=0.0, drop_i=0.0, drop_h=0.0, drop_o=0.0), Plain(0.0)):
        assert monte_carlo(model, *pairs(TOKENS), 3, seeded(), block=16).loss == pytest.approx(
            stream_score(model, TOKENS).loss, rel=1e-12
        )


def test_the_score_depends_only_on_the_generator(model: nn.Module) -> None:
    first, again, other = (monte_carlo(model, *pairs(TOKENS), 2, seeded(seed)).loss for seed in (0, 0, 1))
    assert first == again != other
    generator = seeded()
    samples = [sample_losses(model, *pairs(TOKENS), generator) for _ in range(2)]
    assert not torch.equal(*samples), "each sample must have its own dropout"
    assert samples[0].mean().item() != pytest.approx(stream_score(model, TOKENS).loss, rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_global_random_state_do_not_change(model: nn.Module, training: bool) -> None:
    model.train(training)
    before = torch.get_rng_state()
    monte_carlo(model, *pairs(TOKENS), 2, seeded())
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training == training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises((IndexError, RuntimeError)):
        monte_carlo(model, *pairs(torch.tensor([0, 99, 0])), 1, seeded())
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training == training for module in model.modules())


def test_probabilities_are_averaged_not_losses() -> None:
    score = monte_carlo(Scripted([0.9, 0.1]), *pairs(torch.zeros(9, dtype=torch.int64)), 2, seeded())
    assert score.loss == pytest.approx(math.log(2), rel=1e-12)


def test_averaged_probabilities_are_kept_away_from_zero_and_one() -> None:
    score = monte_carlo(Scripted([1 - 1e-14]), *pairs(torch.zeros(9, dtype=torch.int64)), 1, seeded())
    assert score.loss == pytest.approx(1e-10, rel=1e-5)


def test_a_hopeless_sample_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("charrnn.evaluation.monte_carlo.REDRAWS", 3)
    tokens = torch.zeros(9, dtype=torch.int64)
    score = monte_carlo(Scripted([1 / 501, 0.5, 1 / 501, 1 / 501, 0.25]), *pairs(tokens), 2, seeded())
    assert score.loss == pytest.approx(-math.log(0.375), rel=1e-12)
    assert monte_carlo(Scripted([1 / 499, 0.5]), *pairs(tokens), 1, seeded()).perplexity == pytest.approx(499, rel=1e-9)


def test_too_many_hopeless_samples_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("charrnn.evaluation.monte_carlo.REDRAWS", 3)
    script = iter([0.5] + 9 * [1 / 600])
    with pytest.raises(UserError, match="4 of 5 Monte Carlo samples had a perplexity of 500 or more"):
        monte_carlo(Scripted(script), *pairs(torch.zeros(9, dtype=torch.int64)), 2, seeded())
    assert len(list(script)) == 5, "three may be drawn again; the fourth is an error"


def test_every_row_has_its_own_masks() -> None:
    model = make_rhn()
    x, y = torch.stack([TOKENS, TOKENS.flip(0)], dim=1)[:-1], torch.stack([TOKENS, TOKENS.flip(0)], dim=1)[1:]
    together = sample_losses(model, x, y, seeded())
    masks = model.draw_masks(x[:1], seeded())
    for row in range(2):
        own = type(masks)(
            masks.x[:, [row]], tuple(m[:, [row]] for m in masks.i), tuple(m[:, [row]] for m in masks.h), masks.o[[row]]
        )
        with torch.no_grad():
            logits, _ = model.eval()(x[:, [row]], None, masks=own)
        alone = nn.functional.cross_entropy(logits[:, 0], y[:, row], reduction="none")
        torch.testing.assert_close(together[:, row], alone.double())
    assert monte_carlo(model, x, y, 2, seeded()).tokens == x.numel()
