"""Tests of the contract in charrnn.model, as plain functions, for the built-in models and for your own.

A check takes a Case and raises AssertionError if the model violates the contract. To run all checks on your own model,
put this into a test file:

    import pytest
    from charrnn.testing import CHECKS, cases

    @pytest.mark.parametrize("check", CHECKS)
    @pytest.mark.parametrize("case", cases("mymodel"), ids=str)
    def test_contract(check, case):
        check(case)

The model is found in the same places as by ``charrnn train -model mymodel``. The checks use small sizes, and almost all
compute in float64. By default, "equal" means within 1e-10, and "different" means different in any bit.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from charrnn import registry
from charrnn.model import DrawsMasks, Model, State, Steps, StepsInNumpy, problem_of_output, problem_of_weights

# tokens, units, time steps, rows
V, H, T, B = 7, 5, 6, 3


@dataclass(frozen=True)
class Case:
    """A model with one combination of options."""

    name: str
    n_layers: int = 2
    own: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.name, f"{self.n_layers}layers", *(f"{name}={value}" for name, value in self.own.items())])

    def fresh(self, seed: int = 1, dropout: float = 0.0, rnn_size: int = H) -> nn.Module:
        """Build the model as ``create`` returns it, in float32 and in training mode."""
        torch.manual_seed(seed)
        return registry.find(self.name).create(V, rnn_size, self.n_layers, dropout, **self.own)

    def build(self, seed: int = 1, dropout: float = 0.0) -> nn.Module:
        """Build the model in float64 and evaluation mode, with weights moved away from their initial values.

        A weight that stayed at 0 could hide errors in the code that uses it.
        """
        model = self.fresh(seed, dropout).double().eval()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.empty_like(p).uniform_(-0.4, 0.4))
        return model


def cases(name: str) -> list[Case]:
    """Return the cases to check for a model.

    They are one, two and three layers with the default options, and two layers with each other value of every bool
    and Literal option.
    """
    found = [Case(name, n_layers) for n_layers in (1, 2, 3)]
    for option in registry.find(name).options.values():
        values = (False, True) if option.type is bool else option.choices
        found += [Case(name, 2, {option.name: value}) for value in values if value != option.default]
    return found


def text(seed: int = 2, steps: int = T, rows: int = B) -> Tensor:
    """Return random token ids, int64 (steps, rows)."""
    return torch.randint(V, (steps, rows), generator=torch.Generator().manual_seed(seed))


def random_state(model: nn.Module, x: Tensor) -> State:
    """Return a random state for the rows of x, with the shapes of the states that the model returns."""
    with torch.no_grad():
        _, state = model(x)
    generator = torch.Generator().manual_seed(3)
    return tuple(torch.rand(s.shape, generator=generator, dtype=s.dtype) - 0.5 for s in state)


def same(actual: Tensor, expected: Tensor, what: str, tolerance: float = 1e-10) -> None:
    """Assert that two tensors are equal; ``what`` names them in the message."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, not {tuple(expected.shape)}"
    assert torch.isfinite(actual).all(), f"{what}: not finite"
    difference = (actual - expected).abs().max().item() if actual.numel() else 0.0
    assert difference <= tolerance, f"{what}: off by {difference:.3g}"


def same_state(actual: State, expected: State, what: str, tolerance: float = 1e-10) -> None:
    """Assert that two states are equal; ``what`` names them in the message."""
    assert len(actual) == len(expected), f"{what}: {len(actual)} tensors, not {len(expected)}"
    for number, (a, e) in enumerate(zip(actual, expected, strict=True)):
        same(a, e, f"{what}, tensor {number}", tolerance)


@torch.no_grad()
def check_shapes(case: Case) -> None:
    """Logits are (T, B, V); the state is a tuple of tensors with the rows on dimension -2; x may be any view."""
    model = case.build()
    assert isinstance(model, Model), "the model has no forward"
    problem = problem_of_weights(model)
    assert not problem, problem
    for steps, rows in ((T, B), (1, B), (T, 1), (1, 1)):
        x = text(steps=steps, rows=rows)
        returned = model(x)
        problem = problem_of_output(returned, x, V)
        assert not problem, problem
        logits, state = returned
        again, following = model(x.t().contiguous().t(), state)
        assert again.shape == logits.shape
        assert [s.shape for s in following] == [s.shape for s in state], "the shape of the state changes"


@torch.no_grad()
def check_dtypes(case: Case) -> None:
    """The model computes in the dtype of its weights, with the same results in float32 and float64."""
    double, single, x = case.build(), case.build().float(), text()
    results = {}
    for model, dtype in ((double, torch.float64), (single, torch.float32)):
        logits, state = model(x)
        assert {s.dtype for s in (logits, *state)} == {dtype}, f"logits or state are not {dtype}, as the weights are"
        logits, state = model(x, state)
        assert {s.dtype for s in (logits, *state)} == {dtype}, f"after a state, logits or state are not {dtype}"
        results[dtype] = logits.double()
    same(results[torch.float32], results[torch.float64], "logits in float32 and float64", 1e-4)


@torch.no_grad()
def check_zero_state(case: Case) -> None:
    """A state of None means zeros."""
    model, x = case.build(), text()
    logits, state = model(x)
    expected, expected_state = model(x, tuple(map(torch.zeros_like, state)))
    same(logits, expected, "logits without a state and with a state of zeros")
    same_state(state, expected_state, "the last state without a state and with a state of zeros")


@torch.no_grad()
def check_carry(case: Case) -> None:
    """Reading a text in pieces while carrying the state gives the same logits and state as reading it whole."""
    model, x = case.build(), text()
    for start in (None, random_state(model, x)):
        whole, last = model(x, start)
        for lengths in ((T // 2, T - T // 2), (1, T - 1), (1,) * T):
            state, parts = start, []
            for part in x.split(lengths):
                logits, state = model(part, state)
                parts.append(logits)
            same(torch.cat(parts), whole, f"logits in pieces of {lengths} time steps")
            assert state is not None
            same_state(state, last, f"the state after pieces of {lengths} time steps")


@torch.no_grad()
def check_memory(case: Case) -> None:
    """The model keeps nothing between calls: the same arguments give the same results."""
    model, x = case.build(), text()
    before, state = model(x)
    model(text(seed=8), random_state(model, x))
    model(text(rows=B + 1))
    after, state_after = model(x)
    same(after, before, "logits after other calls", 0.0)
    same_state(state_after, state, "the state after other calls", 0.0)


@torch.no_grad()
def check_causality(case: Case) -> None:
    """A token changes the logits of its own time step and does not change earlier ones."""
    model, x = case.build(), text()
    logits, _ = model(x)
    for t in range(T):
        changed = x.clone()
        changed[t] = (changed[t] + 1) % V
        new, _ = model(changed)
        same(new[:t], logits[:t], f"logits before time step {t}, whose token changed")
        assert (new[t] != logits[t]).any(), f"the token of time step {t} does not change the logits there"


@torch.no_grad()
def check_rows(case: Case) -> None:
    """The rows of a minibatch do not influence each other."""
    model, x = case.build(), text()
    state = random_state(model, x)
    logits, last = model(x, state)
    for row in range(B):
        alone, last_alone = model(x[:, [row]], tuple(s[..., [row], :] for s in state))
        same(alone, logits[:, [row]], f"logits of row {row} alone")
        same_state(last_alone, tuple(s[..., [row], :] for s in last), f"the state of row {row} alone")


@torch.no_grad()
def check_untouched(case: Case) -> None:
    """The model does not modify its arguments."""
    model, x = case.build(), text()
    state = random_state(model, x)
    x_before, state_before = x.clone(), tuple(s.clone() for s in state)
    model(x, state)
    if isinstance(model, Steps):
        model.step(x[0], state)
    assert torch.equal(x, x_before), "the model writes into x"
    same_state(state, state_before, "the state that was passed in", 0.0)


def check_reach(case: Case) -> None:
    """The gradient of the loss reaches every parameter."""
    model, x, y = case.build().train(), text(), text(seed=4)
    logits, _ = model(x, random_state(model, x))
    F.cross_entropy(logits.flatten(0, 1), y.flatten()).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), f"the gradient of {name} is missing or not finite"
        assert (p.grad != 0).any(), f"the gradient of {name} is 0"


def check_gradient(case: Case) -> None:
    """The gradients with respect to every parameter and the state agree with finite differences.

    They are compared along random directions, which reveals a wrong entry anywhere in a gradient.
    """
    model, x = case.build().train(), text()
    parameters, start = dict(model.named_parameters()), random_state(model, x)
    inputs = [value.detach().clone().requires_grad_() for value in (*parameters.values(), *start)]

    def weighted_sum(*inputs: Tensor) -> Tensor:
        weights, state = dict(zip(parameters, inputs, strict=False)), inputs[len(parameters) :]
        logits, last = torch.func.functional_call(model, weights, (x, state))
        outputs = torch.cat([out.flatten() for out in (logits, *last)])
        return outputs @ torch.linspace(-1, 2, len(outputs), dtype=outputs.dtype)

    found = torch.autograd.grad(weighted_sum(*inputs), inputs, materialize_grads=True)
    names = [*parameters, *(f"state {number}" for number in range(len(start)))]
    generator = torch.Generator().manual_seed(4)
    for at, (name, gradient) in enumerate(zip(names, found, strict=True)):
        for _ in range(2):
            direction = torch.rand(gradient.shape, generator=generator, dtype=gradient.dtype) + 0.5
            expected = slope(weighted_sum, inputs, at, direction)
            same((gradient * direction).sum(), expected, f"gradient with respect to {name}", 1e-6)


@torch.no_grad()
def slope(function: Callable[..., Tensor], inputs: list[Tensor], at: int, direction: Tensor) -> Tensor:
    """Return the derivative of the scalar function(*inputs) along a direction of inputs[at], by finite differences."""
    step = 1e-5
    above, below = ([*inputs[:at], inputs[at] + by * direction, *inputs[at + 1 :]] for by in (step, -step))
    return (function(*above) - function(*below)) / (2 * step)


def check_modes(case: Case) -> None:
    """Results are the same with and without gradients, although a model may use faster code without them."""
    model, x = case.build(), text()
    state = random_state(model, x)
    expected, last = model(x, state)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            logits, end = model(x, state)
            same(logits, expected, f"logits under {mode.__name__}")
            same_state(end, last, f"the state under {mode.__name__}")


@torch.no_grad()
def check_fresh_weights(case: Case) -> None:
    """Changed weights take effect at once, whether changed in place or loaded.

    A model that caches something computed from its weights must update it.
    """
    model, x = case.build(seed=1), text()

    def outputs(model: nn.Module) -> tuple[Tensor, ...]:
        stepped = [model.step(x[0])[0]] if isinstance(model, Steps) else []
        return model(x)[0], *stepped

    def expected() -> tuple[Tensor, ...]:
        other = case.build(seed=2)
        other.load_state_dict(model.state_dict())
        return outputs(other)

    outputs(model)
    for p in model.parameters():
        p.mul_(0.5)
    same_state(outputs(model), expected(), "logits after a change in place")
    model.load_state_dict(case.build(seed=3).state_dict())
    same_state(outputs(model), expected(), "logits after loading weights")


@torch.no_grad()
def check_dropout(case: Case) -> None:
    """Dropout acts only in training mode, and a dropout of 0 does nothing."""
    model, x = case.build(dropout=0.5), text()
    expected, _ = model(x)
    same(model(x)[0], expected, "logits in evaluation mode, called twice", 0.0)
    same(case.build(dropout=0.0)(x)[0], expected, "logits in evaluation mode, with and without dropout")
    same(case.build(dropout=0.0).train()(x)[0], expected, "logits in training mode with dropout 0")
    model.train()
    assert (model(x)[0] != model(x)[0]).any(), "two calls in training mode with dropout 0.5 give the same logits"


@torch.no_grad()
def check_round_trip(case: Case) -> None:
    """Loading one model's state_dict into another makes them compute the same."""
    model, other, x = case.build(seed=1), case.build(seed=2), text()
    expected, _ = model(x)
    assert (other(x)[0] != expected).any(), "two seeds give the same logits"
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    same(other(x)[0], expected, "logits after loading the other model's state_dict", 0.0)


def check_initialisation(case: Case) -> None:
    """torch.manual_seed determines the initial weights."""
    first, again, other = (case.fresh(seed).state_dict() for seed in (1, 1, 2))
    assert first.keys() == again.keys() == other.keys() and first
    for name, value in first.items():
        assert value.isfinite().all(), f"the initial {name} is not finite"
        assert torch.equal(value, again[name]), f"the seed does not determine the initial {name}"
    assert any(not torch.equal(first[name], other[name]) for name in first), "no initial weight is random"


def check_step(case: Case) -> None:
    """Optional: ``step`` agrees with ``forward`` for one time step."""
    model, x = case.build(dropout=0.5), text()
    if not isinstance(model, Steps):
        return
    for rows in (1, B):
        for start in (None, random_state(model, x[:, :rows])):
            with torch.inference_mode():
                expected, last = model(x[:, :rows], start)
                state = start
                for t in range(T):
                    logits, state = model.step(x[t, :rows], state)
                    same(logits, expected[t], f"logits of step {t}")
            assert state is not None
            same_state(state, last, "the state after the steps")


@torch.no_grad()
def check_numpy_step(case: Case) -> None:
    """Optional: ``numpy_step()`` returns a function that agrees with ``forward`` for one time step, on numpy arrays."""
    model, x = case.build(dropout=0.5), text()
    if not isinstance(model, StepsInNumpy):
        return
    step = model.numpy_step()
    for rows in (1, B):
        start = random_state(model, x[:, :rows])
        expected, last = model(x[:, :rows], start)
        state = tuple(part.numpy() for part in start)
        for t in range(T):
            before = tuple(part.copy() for part in state)
            logits, after = step(x[t, :rows].numpy(), state)
            same(torch.from_numpy(logits), expected[t], f"logits of numpy step {t}")
            assert all(map(np.array_equal, state, before)), "the numpy step writes into the state"
            state = after
        same_state(tuple(map(torch.from_numpy, state)), last, "the state after the numpy steps")


@torch.no_grad()
def check_masks(case: Case) -> None:
    """Optional: the masks from ``draw_masks`` determine the dropout, in evaluation mode too.

    With the same seed, ``forward`` without masks draws the same ones in training mode.
    """
    model, x = case.build(dropout=0.5).train(), text()
    if not isinstance(model, DrawsMasks):
        return
    first, again, other = (model.draw_masks(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    expected, last = model(x, None, masks=first)
    for mode, masks in ((True, first), (True, again), (False, first)):
        logits, state = model.train(mode)(x, None, masks=masks)
        same(logits, expected, "logits with the same masks", 0.0)
        same_state(state, last, "the state with the same masks", 0.0)
    assert (model(x, None, masks=other)[0] != expected).any(), "different masks give the same logits"
    model.train()
    torch.manual_seed(6)
    own, _ = model(x)
    torch.manual_seed(6)
    drawn, _ = model(x, None, masks=model.draw_masks(x, None))
    same(own, drawn, "logits with the masks that forward draws", 0.0)


CHECKS: list[Callable[[Case], None]] = [
    check_shapes,
    check_dtypes,
    check_zero_state,
    check_carry,
    check_memory,
    check_causality,
    check_rows,
    check_untouched,
    check_reach,
    check_gradient,
    check_modes,
    check_fresh_weights,
    check_dropout,
    check_round_trip,
    check_initialisation,
    check_step,
    check_numpy_step,
    check_masks,
]
