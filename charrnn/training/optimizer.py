"""The weight update: weight decay, clipping, and the update rule, which is one of torch's optimizers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from charrnn.settings.training import TrainingOptions


@dataclass(frozen=True)
class Rule:
    """A rule that updates the weights."""

    make: Callable[[list[nn.Parameter], TrainingOptions], torch.optim.Optimizer]
    # how many values it keeps for each weight
    values_per_weight: int


def _rmsprop(parameters: list[nn.Parameter], options: TrainingOptions) -> torch.optim.Optimizer:
    """Return torch's RMSprop, equal to Torch7's: epsilon 1e-8 is outside the root, and the mean square starts at 0."""
    return torch.optim.RMSprop(parameters, lr=options.learning_rate, alpha=options.decay_rate, eps=1e-8)


def _adam(parameters: list[nn.Parameter], options: TrainingOptions) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=options.learning_rate, betas=(options.beta1, options.beta2))


def _sgd(parameters: list[nn.Parameter], options: TrainingOptions) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=options.learning_rate)


# by the value of -optimizer
RULES = {"rmsprop": Rule(_rmsprop, 1), "adam": Rule(_adam, 2), "sgd": Rule(_sgd, 0)}


def make_optimizer(parameters: list[nn.Parameter], options: TrainingOptions) -> torch.optim.Optimizer:
    """Build the optimizer that the settings name."""
    return RULES[options.optimizer].make(parameters, options)


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of all elements together."""
    return torch.nn.utils.get_total_norm(tensors)


def add_weight_decay(parameters: Sequence[nn.Parameter], decay: float) -> Tensor:
    """Add the L2 penalty's gradient to the gradients, before they are clipped. Return the penalty."""
    if not decay:
        return parameters[0].new_zeros(())
    for p in parameters:
        if p.grad is not None:
            p.grad.add_(p.detach(), alpha=decay)
    return 0.5 * decay * norm(parameters) ** 2


def clip(parameters: Sequence[nn.Parameter], options: TrainingOptions) -> tuple[Tensor, Tensor]:
    """Clip each element of the gradient, then clip its norm. Return the norm before and after the second step."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if bound := options.grad_clip:
        for gradient in gradients:
            gradient.clamp_(-bound, bound)
    total = norm(gradients)
    if not options.max_grad_norm:
        return total, total
    # no epsilon in the denominator, as in the RHN program
    scale = options.max_grad_norm / total.clamp(min=options.max_grad_norm)
    for gradient in gradients:
        gradient.mul_(scale)
    return total, total * scale


def step(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Update the weights at this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()


def tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the tensors that the rule keeps for the weights."""
    return [value for kept in optimizer.state.values() for value in kept.values() if isinstance(value, Tensor)]


def saved(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return a copy of the optimizer's state on the CPU."""
    found = optimizer.state_dict()
    state = {
        number: {name: value.to("cpu", copy=True) for name, value in kept.items()}
        for number, kept in found["state"].items()
    }
    return found | {"state": state}


def restore(optimizer: torch.optim.Optimizer, options: TrainingOptions, saved: dict[str, Any]) -> None:
    """Restore the optimizer's state for each parameter and the last learning rate. The options determine the rest.

    Raises ValueError if the state does not fit the parameters. A state that ``saved`` cannot have returned may raise
    any error.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    # a step with one weight shows what the rule keeps
    like = nn.Parameter(torch.zeros(1, dtype=parameters[0].dtype))
    like.grad = torch.zeros_like(like)
    example = make_optimizer([like], options)
    example.step()
    # copied, because tensors in a file may share memory
    kept = {
        number: {name: t.clone(memory_format=torch.contiguous_format) for name, t in state.items()}
        for number, state in saved["state"].items()
    }
    for number, state in kept.items():
        shapes = {name: parameters[number].shape if t.dim() else t.shape for name, t in example.state[like].items()}
        if {name: t.shape for name, t in state.items()} != shapes:
            raise ValueError("the optimizer's state does not fit the parameters")
        if "step" in state and not (state["step"].is_floating_point() and state["step"] >= 0):
            raise ValueError("the optimizer's count of steps is not a natural number")
    groups = optimizer.state_dict()["param_groups"]
    for group, old in zip(groups, saved["param_groups"], strict=True):
        group["lr"] = float(old["lr"])
    optimizer.load_state_dict({"state": kept, "param_groups": groups})
