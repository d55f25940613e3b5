"""Learning-rate schedules compared with torch's, and plateau and early stopping compared with a plain count."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from charrnn.errors import UserError
from charrnn.settings.training import TrainingOptions
from charrnn.training.schedules import check_validated, learning_rate, progress, regular

RATE = 0.02
losses = st.lists(st.sampled_from([1.0, 1.1, 1.2, 1.3, math.inf, math.nan]), max_size=30)


def rates(schedule: Any, iterations: int, per_epoch: int = 7, **settings: Any) -> list[float]:
    options = TrainingOptions(learning_rate=RATE, lr_schedule=schedule, **settings)
    return [learning_rate(options, i, iterations, per_epoch) for i in range(iterations)]


def torchs(name: str, steps: int, **settings: Any) -> list[float]:
    """Return the learning rates of one of torch's schedulers."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **settings)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns about the step after the last, which is not used
            if len(found) < steps:
                scheduler.step()
    return found


def test_a_constant_rate_stays_constant() -> None:
    assert set(rates("constant", 100)) == {RATE}


def test_epoch_decay_lowers_the_rate_at_the_end_of_each_epoch() -> None:
    found = rates("epoch_decay", 35, learning_rate_decay=0.5, learning_rate_decay_after=3)
    assert found == [RATE] * 21 + [RATE / 2] * 7 + [RATE / 4] * 7


@pytest.mark.parametrize("iterations", [1, 2, 10, 1000])
def test_cosine_equals_torchs(iterations: int) -> None:
    assert rates("cosine", iterations) == pytest.approx(torchs("CosineAnnealingLR", iterations, T_max=iterations))


@pytest.mark.parametrize("warm_up", [{}, {"warm_up": 0.11}, {"warm_up": 0.5}, {"warm_up": 0.97}], ids=str)
@pytest.mark.parametrize("iterations", [10, 11, 99, 1000])
def test_onecycle_equals_torchs(iterations: int, warm_up: dict[str, float]) -> None:
    share = warm_up.get("warm_up", 0.3)
    expected = torchs(
        "OneCycleLR", iterations, max_lr=RATE, total_steps=iterations, pct_start=share, cycle_momentum=False
    )
    assert rates("onecycle", iterations, **warm_up) == pytest.approx(expected, rel=1e-9)
    assert max(expected) > 20 * expected[0] > 1000 * expected[-1]


def test_onecycle_without_a_rise_falls_from_the_peak() -> None:
    found = rates("onecycle", 1000, warm_up=0.0)
    assert found == sorted(found, reverse=True)
    assert RATE * 0.9999 < found[0] <= RATE
    assert found[-1] == pytest.approx(RATE / 25e4)


@pytest.mark.parametrize("warm_up", [0.0, 0.1, 0.2, 0.3, 0.5, 0.999])
@pytest.mark.parametrize("iterations", [1, 2, 3, 4, 5, 10])
def test_onecycle_works_with_very_few_iterations(iterations: int, warm_up: float) -> None:
    assert all(0 < rate <= RATE for rate in rates("onecycle", iterations, warm_up=warm_up))


@given(losses, st.integers(1, 4))
@example([1.0, 1.1, 1.2, 1.0, 1.3, 0.9], 2)
def test_plateau_equals_torchs(series: list[float], patience: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    # torch waits for one more bad value than its patience
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience - 1, threshold=0.0, eps=0.0
    )
    for loss in series:
        scheduler.step(loss)
    count, _ = progress(series, patience)
    assert optimizer.param_groups[0]["lr"] == 0.5**count
    options = TrainingOptions(learning_rate=RATE, lr_schedule="plateau", plateau_factor=0.5)
    assert learning_rate(options, 3, 9, 2, count) == RATE * optimizer.param_groups[0]["lr"]


@given(losses, st.integers(1, 4))
@example([], 1)
@example([math.nan, math.nan], 2)
def test_validations_are_counted_since_the_first_best_one(series: list[float], patience: int) -> None:
    finite = [loss for loss in series if loss < math.inf]
    expected = len(series) - 1 - series.index(min(finite)) if finite else len(series)
    assert progress(series, patience)[1] == expected


def test_the_last_validation_counts_only_if_a_longer_run_would_have_it_too() -> None:
    assert regular({10: 3.0, 20: 2.0, 25: 1.0}, 10) == [3.0, 2.0]
    assert regular({10: 3.0, 20: 2.0}, 10) == [3.0, 2.0]


@pytest.mark.parametrize("settings", [{"early_stop": 2}, {"lr_schedule": "plateau"}], ids=str)
def test_settings_that_need_validation_are_refused_without_a_validation_split(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"-{next(iter(settings))}.*-val_frac"):
        check_validated(TrainingOptions(**settings), validated=False)
    check_validated(TrainingOptions(**settings), validated=True)
    check_validated(TrainingOptions(), validated=False)
