"""bf16 rounds only the factors of products in training; tf32 needs a GPU that supports it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from charrnn import compute, load, registry
from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.testing import Case
from charrnn.training.run import Run
from charrnn.training.setup import configure
from tests.helpers.command import SMALL, charrnn, one_line, write_text
from tests.helpers.runs import new_run

CPU = torch.device("cpu")
FLAGS = {
    "rnn_size": 16,
    "batch_size": 4,
    "seq_length": 16,
    "max_epochs": 0.25,
    "gpuid": -1,
    "threads": 1,
    "sample_length": 0,
}


def test_bf16_rounds_factors_to_eight_bits() -> None:
    torch.manual_seed(0)
    x, W = torch.randn(20, 300), torch.randn(40, 300)
    with compute.autocast("bf16", CPU):
        short = F.linear(x, W).double()
    rounded = x.bfloat16().double() @ W.bfloat16().double().T
    assert torch.allclose(short, rounded, rtol=2**-8, atol=1e-3)
    assert not torch.allclose(short, x.double() @ W.double().T, rtol=2**-8, atol=1e-3)
    with compute.autocast("float32", CPU):
        assert torch.equal(F.linear(x, W), x @ W.T)


def trained(folder: Path, **flags: object) -> tuple[Run, list[float]]:
    """A run of a few iterations and its losses."""
    write_text(folder / "data")
    threads = torch.get_num_threads()
    folders = {"data_dir": str(folder / "data"), "checkpoint_dir": str(folder / "cv")}
    run = new_run(configure(FLAGS | folders | flags))
    try:
        return run, [record.loss for record in run.records()]
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", registry.models())
def test_training_in_bf16_keeps_float32_weights_and_reaches_a_similar_loss(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    full, plain = trained(tmp_path / "float32", model=name)
    run, short = trained(tmp_path / "bf16", model=name, precision="bf16")
    assert len(plain) > 10
    assert short == pytest.approx(plain, rel=5e-3)
    averages = [value for state in run.training.optimizer.state.values() for value in state.values()]
    assert {tensor.dtype for tensor in [*run.model.state_dict().values(), *averages]} == {torch.float32}
    pairs = zip(run.model.parameters(), full.model.parameters(), strict=True)
    assert not all(torch.equal(one, other) for one, other in pairs)
    assert not list((tmp_path / "elsewhere").iterdir())  # runs write only to their own folders


def test_a_model_trained_in_bf16_is_validated_evaluated_and_sampled_in_full_precision(tmp_path: Path) -> None:
    write_text(tmp_path / "data")
    charrnn("train", "-data_dir", "data", *SMALL, "-max_epochs", 0.1, "-precision", "bf16", cwd=tmp_path)
    checkpoint = Checkpoint.load(tmp_path / "cv")
    assert checkpoint.options.precision == "bf16"
    scored = json.loads(charrnn("eval", "cv", "-gpuid", -1, "-json", cwd=tmp_path).stdout)
    assert checkpoint.val_loss == pytest.approx(scored["loss"], rel=1e-6)
    assert load(tmp_path / "cv")[0](torch.zeros(2, 3, dtype=torch.long), None)[0].dtype == torch.float32
    assert len(charrnn("sample", "cv", "-gpuid", -1, "-length", 20, cwd=tmp_path).stdout.decode()) >= 20


@pytest.mark.parametrize("name", ["gru", "rnn", "rhn"])
def test_kernels_ignore_autocast_but_plain_loops_round(name: str) -> None:
    model = Case(name, 3).build().float()
    x = torch.arange(21).view(7, 3) % 5

    def states(precision: str) -> tuple[Tensor, ...]:
        """Return the last hidden state, and the gradients of everything it depends on."""
        with compute.autocast(precision, CPU):
            state = model(x, None)[1][0]
        gradients = torch.autograd.grad(state.square().sum(), list(model.parameters()), allow_unused=True)
        return state, *(g for g in gradients if g is not None)

    expected = states("float32")
    for model.use_kernel in (True, False):
        actual = states("bf16")
        assert len(actual) == len(expected) > 3
        same = [torch.equal(a, b) for a, b in zip(actual, expected, strict=True)]
        assert all(same) if model.use_kernel else not all(same)
        for a, b in zip(actual, expected, strict=True):
            assert (a - b).abs().max() <= 0.05 * b.abs().max()


def test_tf32_is_refused_without_a_gpu(tmp_path: Path) -> None:
    write_text(tmp_path / "data")
    done = charrnn("train", "-data_dir", "data", *SMALL, "-precision", "tf32", code=1, cwd=tmp_path)
    assert "-precision tf32: needs a CUDA GPU" in one_line(done)
    assert not (tmp_path / "cv").exists()


def test_a_cpu_without_bf16_instructions_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    for capabilities, lines in (({"avx512_bf16": False, "avx2": True}, 1), ({"amx_bf16": True}, 0), ({}, 0)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda there=capabilities: there, raising=False)
        notes: list[str] = []
        compute.prepare("bf16", CPU, notes.append)
        compute.prepare("float32", CPU, notes.append)
        assert len(notes) == lines == int(not compute.has_bf16())
