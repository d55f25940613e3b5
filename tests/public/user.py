"""A user's program, written for type checkers and never run. Each ``type: ignore`` marks a mistake to report."""

from collections.abc import Callable
from pathlib import Path
from typing import assert_type

import torch
from torch import Tensor, nn

import charrnn
from charrnn.model import DrawsMasks, Model, State, Step, Steps, StepsInNumpy, device_of, evaluating, stepper
from charrnn.testing import CHECKS, Case, cases, random_state, same, text


class Mine(nn.Module):
    """The user's own model."""

    def __init__(self, input_size: int) -> None:
        super().__init__()
        self.table = nn.Embedding(input_size, input_size)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        return self.table(x), state or (torch.zeros(1, x.shape[1], 1),)


class Wrong(nn.Module):
    """A model whose forward takes no state."""

    def forward(self, x: Tensor) -> Tensor:
        return x


model: Model = Mine(7)
wrong: Model = Wrong()  # type: ignore[assignment]


def everything() -> None:
    trained = charrnn.train("verse.txt", "gru", rnn_size=256, on_record=lambda record: print(record.loss))
    assert_type(trained.best, Path)
    assert_type(trained.val_loss, float | None)
    charrnn.train(on_record="print")  # type: ignore[arg-type]
    charrnn.train(model=3)  # type: ignore[arg-type]

    for piece in charrnn.sample("cv", "ROMEO:", length=200, unknown="skip"):
        assert_type(piece, str)
    charrnn.sample("cv", length="long")  # type: ignore[arg-type]
    charrnn.sample("cv", warmth=2)  # type: ignore[call-arg]
    charrnn.sample("cv", unknown="ignore")  # type: ignore[arg-type]

    assert_type(charrnn.evaluate("cv", split="test").loss, float)
    charrnn.evaluate("cv", split="all")  # type: ignore[arg-type]
    print(charrnn.evaluate("cv").lost)  # type: ignore[attr-defined]

    network, vocabulary = charrnn.load("cv")
    assert_type(network, nn.Module)
    assert_type(vocabulary.encode("a"), list[int])
    charrnn.load()  # type: ignore[call-arg]
    charrnn.train_model()  # type: ignore[attr-defined]
    try:
        print(charrnn.__version__)
    except charrnn.UserError as error:
        print(error)


def contract(network: nn.Module) -> None:
    step = stepper(network)
    assert_type(step, Step)
    step("a", None)  # type: ignore[arg-type]
    with evaluating(network):
        print(device_of(network).type)
    device_of("cpu")  # type: ignore[arg-type]
    print(isinstance(network, Steps | StepsInNumpy | DrawsMasks))


def checks() -> None:
    assert_type(CHECKS, list[Callable[[Case], None]])
    for case in cases("mine"):
        assert_type(case.build(), nn.Module)
        state = random_state(case.build(), text())
        same(state[0], state[0], "a state")
        case.build(seed="one")  # type: ignore[arg-type]
    cases(1)  # type: ignore[arg-type]
