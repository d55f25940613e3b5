"""charrnn's own training and evaluation code reproduces the recorded values of char-rnn and grid-lstm to 1e-10.

Every check takes the sizes from the arrays, so the same tests run on recordings of other sizes:
pytest tests/originals/test_reference.py --reference DIR
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from charrnn import registry
from charrnn.checkpoints.originals import layout
from charrnn.evaluation.loss import evaluate, summed_loss
from charrnn.settings.training import TrainingOptions
from charrnn.training.loop import Training
from tests.helpers.recorded import RecordedMinibatches, Recording

CLIPS = {"fixed": 5.0, "clip": 0.05, "carry": 5.0}

# arrays that are not compared, with the reason
LEFT_OUT = {
    "opt_verbatim_": "the original carries its state without copying it, so from the second minibatch on its "
    "backward pass reads overwritten values; opt_carry_ is the same run without that mistake",
}


class Case:
    """A recorded model, built by charrnn with the recorded weights."""

    def __init__(self, path: Path) -> None:
        self.recording = recording = Recording(path)
        self.model_name = str(recording.given("model"))
        self.names = [str(name) for name in recording.given("param_names")]
        self.tied = not any(name.startswith("layer1.depth") for name in self.names)
        self.n_layers, _, self.rnn_size = recording.arrays["init_h"].shape
        self.layout = layout(self.model_name, self.n_layers, self.tied)

    def model(self) -> nn.Module:
        own = {"tie_weights": self.tied} if self.model_name == "grid_lstm" else {}
        vocabulary_size = self.recording.arrays["logprobs"].shape[-1]
        model = (
            registry.find(self.model_name).create(vocabulary_size, self.rnn_size, self.n_layers, 0.0, **own).double()
        )
        model.load_state_dict(self.ours({name: self.recording.given(f"param/{name}") for name in self.names}))
        return model

    def ours(self, recorded: dict[str, np.ndarray]) -> dict[str, Tensor]:
        """Convert recorded tensors (values, gradients, mean squares) to the layout of our model."""
        return {name: torch.from_numpy(source.tensor(recorded)) for name, source in self.layout.items()}

    def unflatten(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        offsets = self.recording.given("param_offsets")
        shapes = [self.recording.arrays[f"param/{name}"].shape for name in self.names]
        return {
            name: flat[start : start + int(np.prod(shape))].reshape(shape)
            for name, start, shape in zip(self.names, offsets, shapes, strict=True)
        }

    def compare(self, key: str, ours: dict[str, Tensor], recorded: dict[str, np.ndarray]) -> None:
        """Compare our named tensors with recorded ones, which come from the array or arrays called ``key``."""
        expected = self.ours(recorded)
        assert ours.keys() == expected.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor.detach(), expected[name], rtol=0, atol=1e-10, msg=f"{key}: {name}")

    def state(self) -> tuple[Tensor, ...]:
        """Return the recorded initial state, tensors (L, B, H): h, and c if the model has one."""
        kinds = [kind for kind in ("h", "c") if f"init_{kind}" in self.recording.arrays]
        return tuple(self.recording.tensor(f"init_{kind}") for kind in kinds)

    def compare_state(self, key: str, state: tuple[Tensor, ...]) -> None:
        for kind, tensor in zip("hc", state, strict=False):
            self.recording.compare(f"{key}_{kind}", tensor)


def check_parameters(case: Case) -> None:
    recording = case.recording
    values = [recording.given(f"param/{name}") for name in case.names]
    sizes = [value.size for value in values]
    recording.compare("param_offsets", np.cumsum([0, *sizes[:-1]]))
    recording.compare("params_flat", np.concatenate([value.ravel() for value in values]))
    used = {part for source in case.layout.values() for part in source.names}
    assert used == set(case.names), "the layout must use every recorded tensor"
    assert sum(p.numel() for p in case.model().parameters()) == sum(sizes)


def check_forward_and_gradients(case: Case) -> None:
    recording, model = case.recording, case.model()
    x, y = recording.tensor("x").T, recording.tensor("y").T
    logits, state = model(x, case.state())
    recording.compare("logprobs", logits.log_softmax(-1))
    case.compare_state("final", state)
    objective = summed_loss(logits, y)
    recording.compare("loss", objective / len(x))
    objective.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    case.compare("grad/", gradients, {name: recording.given(f"grad/{name}") for name in case.names})
    case.compare("grads_flat", gradients, case.unflatten(recording.given("grads_flat")))


def check_states(case: Case) -> None:
    """Compare the state after each step, running one step at a time."""
    model, state, states = case.model(), case.state(), []
    for x in case.recording.tensor("x").T:
        _, state = model(x[None], state)
        states.append(state)
    case.compare_state("states", tuple(torch.stack(kind, dim=1) for kind in zip(*states, strict=True)))


def check_evaluation(case: Case) -> None:
    split = RecordedMinibatches(case.recording.given("eval_x"), case.recording.given("eval_y"))
    case.recording.compare("eval_loss", evaluate(case.model(), split).loss)


def check_optimizer(case: Case, run: str) -> None:
    recording, model = case.recording, case.model()
    split = RecordedMinibatches(recording.given("opt_x"), recording.given("opt_y"))
    options = TrainingOptions(learning_rate=2e-3, decay_rate=0.95, grad_clip=CLIPS[run], max_epochs=1)
    training = Training(model, split, None, options)
    training.state = case.state()
    recorded = {what: recording.given(f"opt_{run}_{what}") for what in ("params", "grads", "m")}
    losses = []
    for step, record in enumerate(training.run()):
        losses.append(record.loss)
        parameters = dict(model.named_parameters())
        mean_squares = {name: training.optimizer.state[p]["square_avg"] for name, p in parameters.items()}
        gradients = {name: p.grad for name, p in parameters.items()}
        for what, ours in (("grads", gradients), ("m", mean_squares), ("params", parameters)):
            case.compare(f"opt_{run}_{what}[{step}]", ours, case.unflatten(recorded[what][step]))
        if run != "carry":
            training.state = case.state()
    recording.compare(f"opt_{run}_losses", losses)
    if run == "carry":
        assert training.state is not None
        case.compare_state("opt_carry_final", training.state)


CHECKS: dict[str, Callable[[Case], Any]] = {
    "parameters": check_parameters,
    "forward and gradients": check_forward_and_gradients,
    "states": check_states,
    "evaluation": check_evaluation,
    **{f"optimizer, {run}": lambda case, run=run: check_optimizer(case, run) for run in CLIPS},
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "path" in metafunc.fixturenames:
        folder = Path(metafunc.config.getoption("--reference"))
        files = sorted([*folder.glob("char_rnn_*.npz"), *folder.glob("grid_lstm_*.npz")])
        metafunc.parametrize("path", files, ids=lambda path: path.stem)
    if "kernel_path" in metafunc.fixturenames:
        folder = Path(metafunc.config.getoption("--reference"))
        files = sorted([*folder.glob("char_rnn_gru*.npz"), *folder.glob("char_rnn_rnn*.npz")])
        metafunc.parametrize("kernel_path", files, ids=lambda path: path.stem)


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS.keys())
def test_equals_the_original(path: Path, check: Callable[[Case], None]) -> None:
    check(Case(path))


@pytest.mark.parametrize("kernels", ["compiled"], indirect=True)
@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS.keys())
def test_the_compiled_kernels_equal_the_original(
    kernel_path: Path, check: Callable[[Case], None], kernels: str
) -> None:
    check(Case(kernel_path))


def test_every_array_is_compared_or_left_out_with_a_reason(path: Path) -> None:
    case = Case(path)
    for check in CHECKS.values():
        check(case)
    ignored = {key for key in case.recording.arrays if key.startswith(tuple(LEFT_OUT))}
    assert case.recording.arrays.keys() - ignored - case.recording.seen == set()


def test_there_is_at_least_one_recording(reference: Path) -> None:
    assert list(reference.glob("*.npz")), f"no recordings in {reference}"


def test_the_comparison_detects_a_wrong_value(path: Path) -> None:
    watched = {
        "forward and gradients": ("logprobs", "loss", "grad/decoder.weight"),
        "optimizer, carry": ("opt_carry_params",),
        "optimizer, clip": ("opt_clip_m",),
        "evaluation": ("eval_loss",),
    }
    for check, key in ((CHECKS[name], key) for name, keys in watched.items() for key in keys):
        case = Case(path)
        array = case.recording.arrays[key] = case.recording.arrays[key].copy()
        array[...] += np.where(np.arange(array.size).reshape(array.shape) == array.size // 2, 1e-8, 0)
        with pytest.raises(AssertionError):
            check(case)
