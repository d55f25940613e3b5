"""The training loop: schedule, clipping, weight decay, what it reads, and when it stops."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from charrnn import registry
from charrnn.data.minibatches import Split
from charrnn.data.text import open_text
from charrnn.errors import UserError
from charrnn.evaluation.loss import evaluate, summed_loss
from charrnn.settings.training import TrainingOptions
from charrnn.training import loop
from charrnn.training.loop import Diverged, Training
from charrnn.training.optimizer import make_optimizer
from tests.helpers.command import SONG, write_text

OPTIONS = TrainingOptions(learning_rate=0.01, batch_size=4, seq_length=16, max_epochs=1, eval_val_every=10, dropout=0.3)


@pytest.fixture
def splits(tmp_path: Path) -> dict[str, Split]:
    text = open_text(write_text(tmp_path), report=lambda line: None)
    return text.split(4, 16, 0.8, 0.2)


def build(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(1)
    return registry.find("lstm").create(31, 12, 2, dropout).double()


def with_options(**changes: object) -> TrainingOptions:
    return TrainingOptions(**(vars(OPTIONS) | changes))


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().ravel() for p in model.parameters()])


def test_before_training_the_loss_is_that_of_a_uniform_guess(splits: dict[str, Split]) -> None:
    characters = len(set(SONG))
    torch.manual_seed(1)
    model = registry.find("lstm").create(characters, 12, 2, 0.0)
    record = next(Training(model, splits["train"], None, OPTIONS).run())
    assert record.loss == pytest.approx(math.log(characters), abs=0.05)


def test_the_learning_rates_are_char_rnns(splits: dict[str, Split]) -> None:
    options = with_options(max_epochs=6, learning_rate_decay_after=3, learning_rate_decay=0.5)
    training = Training(build(), splits["train"], None, options)
    per_epoch = len(splits["train"])
    expected, rate = [], options.learning_rate
    for i in range(1, 6 * per_epoch + 1):  # the learning rate falls after the iterations that end epochs 3, 4, 5, ...
        expected.append(rate)
        if i % per_epoch == 0 and i / per_epoch >= 3:
            rate *= 0.5
    assert [record.learning_rate for record in training.run()] == pytest.approx(expected)
    assert len(set(expected)) == 4


def test_the_gradient_is_clipped_by_element_and_then_by_norm(splits: dict[str, Split]) -> None:
    model = build()
    options = with_options(grad_clip=0.01, max_grad_norm=0.05, weight_decay=0.02, optimizer="sgd", learning_rate=1.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    x, y = splits["train"].batch(0)
    logits, _ = model(x, None)
    (summed_loss(logits, y) + 0.5 * 0.02 * sum((p**2).sum() for p in model.parameters())).backward()
    expected = {name: p.grad.clamp(-0.01, 0.01) for name, p in model.named_parameters() if p.grad is not None}
    total = torch.cat([g.ravel() for g in expected.values()]).norm()
    assert total > 0.05, "both bounds must act"
    record = next(Training(model, splits["train"], None, options).run())
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] - expected[name] * 0.05 / total)
    assert record.norm_before == pytest.approx(total.item())
    assert record.grad_norm == pytest.approx(0.05)
    assert record.param_norm == pytest.approx(weights(model).norm().item())
    squares = sum((p**2).sum().item() for p in before.values())
    assert record.penalty == pytest.approx(0.5 * 0.02 * squares)


def test_reading_losses_late_does_not_change_them(splits: dict[str, Split]) -> None:
    def run(in_flight: int) -> list[tuple[int, float, float | None]]:
        training = Training(build(0.3), splits["train"], splits["val"], OPTIONS)
        training.in_flight = in_flight
        torch.manual_seed(5)
        return [(r.iteration, r.loss, r.val_loss) for r in training.run()]

    assert run(1) == run(16)
    assert len(run(16)) == len(splits["train"])


def test_stopping_first_reads_the_losses_in_flight(splits: dict[str, Split]) -> None:
    training = Training(build(), splits["train"], None, OPTIONS)
    training.in_flight = 4
    seen = []
    for record in training.run():
        seen.append(record.iteration)
        if record.iteration >= 6:
            training.stop()
    assert seen == list(range(1, training.iteration + 1)) == list(range(1, len(training.losses) + 1))
    assert 6 <= training.iteration < 12


def test_the_number_of_validations_does_not_change_the_weights(splits: dict[str, Split]) -> None:
    def run(every: int) -> torch.Tensor:
        torch.manual_seed(5)
        model = build(0.3)
        for _ in Training(model, splits["train"], splits["val"], with_options(eval_val_every=every)).run():
            pass
        return weights(model)

    assert torch.equal(run(1), run(10_000))


def test_the_validation_loss_equals_the_loss_of_evaluation(splits: dict[str, Split]) -> None:
    model = build(0.3)
    for record in Training(model, splits["train"], splits["val"], OPTIONS).run():
        if record.val_loss is not None:
            assert record.val_loss == evaluate(model, splits["val"]).loss
            assert model.training


def test_only_split_files_start_each_epoch_from_a_zero_state(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(SONG * 10)
    (tmp_path / "val.txt").write_text(SONG * 4)
    files = open_text(tmp_path, report=lambda line: None).split(4, 16, 0.8, 0.2)
    fractions = open_text(write_text(tmp_path / "other"), report=lambda line: None).split(4, 16, 0.8, 0.2)
    for splits, expected in ((files, True), (fractions, False)):
        split, model = splits["train"], build()
        training = Training(model, split, None, with_options(max_epochs=2, learning_rate=0.0))
        losses = [record.loss for record in training.run()]
        # at learning rate 0 the second epoch differs from the first only in its initial state
        assert (losses[0] == losses[len(split)]) == expected


def test_a_loss_that_is_not_finite_ends_the_run(splits: dict[str, Split]) -> None:
    wild = with_options(optimizer="sgd", learning_rate=1e6, grad_clip=0.0)
    with pytest.raises(Diverged, match=r"exploded.*-learning_rate"):
        list(Training(build(), splits["train"], None, wild).run())
    model = build()
    training = Training(model, splits["train"], None, OPTIONS)
    run = training.run()
    next(run)
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(Diverged, match="not a number at iteration 2"):
        list(run)


@pytest.mark.parametrize(
    ("losses", "exploded"),
    [
        ([2.0, 6.0, 1.0, 6.0], None),  # three times the first, many times the one before
        ([2.0, 6.000001], 6.000001),
        ([2.0, 5.0, 7.0], 7.0),  # less than three times the one before
    ],
)
def test_a_loss_above_three_times_the_first_has_exploded(
    splits: dict[str, Split], monkeypatch: pytest.MonkeyPatch, losses: list[float], exploded: float | None
) -> None:
    training = Training(build(), splits["train"], None, OPTIONS)

    def scripted(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return logits.sum() * 0 + losses[training.iteration] * splits["train"].predicted

    monkeypatch.setattr(loop, "summed_loss", scripted)
    records = training.run()
    if exploded is None:
        assert [next(records).loss for _ in losses] == losses
    else:
        with pytest.raises(Diverged, match=f"exploded from 2.0000 to {exploded:.4f} at iteration {len(losses)}"):
            list(records)


def test_iterations_are_rounded_down_but_not_because_of_floating_point_errors(tmp_path: Path) -> None:
    text = open_text(write_text(tmp_path, "ab" * (49 * 32)), report=lambda line: None)
    train = text.split(4, 16, 1.0, 0.0)["train"]
    assert len(train) == 49 and 1 / 49 * 49 < 1
    for count in range(1, 99):
        for more, found in ((0, count), (0.5, count), (-0.5, max(1, count - 1))):
            options = with_options(max_epochs=(count + more) / 49)
            assert Training(build(), train, None, options).iterations == found


class NoTuple(nn.Module):
    """Returns its state as one tensor, (B, H), whose rows a careless trainer would treat as a tuple of states."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = build()

    def forward(self, x: torch.Tensor, state: object = None) -> tuple[torch.Tensor, torch.Tensor]:
        logits, (h, c) = self.inner(x)
        return logits, h[0]


def test_a_state_that_is_not_a_tuple_is_refused(splits: dict[str, Split]) -> None:
    with pytest.raises(UserError, match=r"returns a tensor .* as its state; it must be a tuple of tensors"):
        next(Training(NoTuple(), splits["train"], None, OPTIONS).run())


def test_a_saved_state_is_converted_to_the_dtype_of_the_models_state(splits: dict[str, Split]) -> None:
    """With -precision bf16, layers on a GPU and kernels on a CPU carry the state in different dtypes."""
    first = Training(build(), splits["train"], None, OPTIONS)
    next(first.run())
    saved = first.state_dict()
    saved["state"] = tuple(part.float() for part in saved["state"])
    second = Training(build(), splits["train"], None, OPTIONS)
    second.load_state_dict(saved)
    assert second.state is not None
    for part, like in zip(second.state, saved["state"], strict=True):
        assert part.dtype == torch.float64 and torch.equal(part, like.double())
    saved["state"] = tuple(part[..., :-1] for part in saved["state"])
    with pytest.raises(ValueError, match="hidden state does not fit"):
        second.load_state_dict(saved)


def test_adam_follows_its_paper() -> None:
    """Kingma and Ba, arXiv 1412.6980, algorithm 1, with betas other than the paper's."""
    gradients = [0.5, -2.0, 0.25, 1.0]
    p = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = make_optimizer([p], with_options(optimizer="adam", learning_rate=0.1, beta1=0.6, beta2=0.7))
    theta, m, v = 1.0, 0.0, 0.0
    for t, gradient in enumerate(gradients, 1):
        p.grad = torch.full_like(p, gradient)
        optimizer.step()
        m, v = 0.6 * m + 0.4 * gradient, 0.7 * v + 0.3 * gradient**2
        theta -= 0.1 * (m / (1 - 0.6**t)) / (math.sqrt(v / (1 - 0.7**t)) + 1e-8)
        assert p.item() == pytest.approx(theta, rel=1e-12)
    defaults = make_optimizer([p], with_options(optimizer="adam")).defaults
    assert defaults["betas"] == (0.9, 0.999)
