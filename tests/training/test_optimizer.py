"""The number of values kept per weight matches torch's optimizer, and a saved copy of the state does not change."""

from __future__ import annotations

from typing import get_args, get_type_hints

import pytest
import torch
from torch import nn

from charrnn.settings.training import TrainingOptions
from charrnn.training.optimizer import RULES, make_optimizer, restore, saved, step


def test_every_value_of_the_setting_optimizer_has_a_rule() -> None:
    assert RULES.keys() == set(get_args(get_type_hints(TrainingOptions)["optimizer"]))


@pytest.mark.parametrize("name", RULES)
def test_each_rule_states_how_many_values_it_keeps_per_weight(name: str) -> None:
    weight, optimizer = after_a_step(name)
    kept = [value for value in optimizer.state[weight].values() if value.dim()]
    assert len(kept) == RULES[name].values_per_weight
    assert all(value.shape == weight.shape for value in kept)


@pytest.mark.parametrize("name", ["rmsprop", "adam"])
def test_a_saved_state_is_a_copy_and_can_be_restored(name: str) -> None:
    options = TrainingOptions(optimizer=name)
    weight, optimizer = after_a_step(name)
    copy = saved(optimizer)
    before = {key: value.clone() for key, value in copy["state"][0].items()}
    step(optimizer, 0.5)
    assert all(torch.equal(copy["state"][0][key], value) for key, value in before.items())
    assert any(not torch.equal(optimizer.state[weight][key], value) for key, value in before.items())
    restore(optimizer, options, copy)
    assert all(torch.equal(optimizer.state[weight][key], value) for key, value in before.items())
    with pytest.raises(ValueError, match="does not fit"):
        restore(optimizer, options, copy | {"state": {0: {"unheard_of": torch.zeros(1)}}})


def after_a_step(name: str) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    weight = nn.Parameter(torch.ones(3, 2))
    weight.grad = torch.full_like(weight, 0.25)
    optimizer = make_optimizer([weight], TrainingOptions(optimizer=name))
    step(optimizer, 0.01)
    return weight, optimizer
