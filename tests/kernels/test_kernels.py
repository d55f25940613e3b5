"""The kernels, compared with plain loops over the equations and with autograd's gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from charrnn import registry
from charrnn.kernels import backend, blocks, gru, rnn
from charrnn.testing import Case
from charrnn.training.setup import configure
from tests.helpers.command import SONG, write_text
from tests.helpers.runs import new_run

I, H = 5, 4


def plain_rnn(x: Tensor, h: Tensor, W: Tensor, R: Tensor, b: Tensor) -> Tensor:
    states = []
    for x_t in x:
        h = torch.tanh(x_t @ W.T + b + h @ R.T)
        states.append(h)
    return torch.stack(states)


def plain_gru(x: Tensor, h: Tensor, W: Tensor, R: Tensor, b: Tensor) -> Tensor:
    (W_r, W_z, W_n), (R_r, R_z, R_n), (b_r, b_z, b_n) = W.chunk(3), R.chunk(3), b.chunk(3)
    states = []
    for x_t in x:
        r = torch.sigmoid(x_t @ W_r.T + b_r + h @ R_r.T)
        z = torch.sigmoid(x_t @ W_z.T + b_z + h @ R_z.T)
        n = torch.tanh(x_t @ W_n.T + b_n + (r * h) @ R_n.T)
        h = z * n + (1 - z) * h
        states.append(h)
    return torch.stack(states)


# kernel, plain loop, number of gates
KERNELS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], int]] = {
    "rnn": (rnn.scan, plain_rnn, 1),
    "gru": (gru.scan, plain_gru, 3),
}
# one step; one block; blocks with a shorter last one; blocks of one step; one row; rows in parts of different sizes
SIZES = [(1, 2), (6, 3), (7, 200), (3, 600), (1100, 1), (40, 77)]


def arguments(gates: int, T: int, B: int, ids: bool, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Return x, h, W, R and b with random values; x is token ids (T, B) or vectors (T, B, I)."""
    generator = torch.Generator().manual_seed(T)
    shapes = [(B, H), (gates * H, I), (gates * H, H), (gates * H,)]
    values = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    x = torch.randn(T, B, I, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    if ids:
        x = torch.randint(I, (T, B), generator=generator)
    return [x, *(value.to(dtype).requires_grad_() for value in values)]


def vectors(x: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    return x if x.is_floating_point() else F.one_hot(x, I).to(dtype)


def assert_equal(actual: Any, expected: Any, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=atol, atol=atol)


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize(("T", "B"), SIZES)
@pytest.mark.parametrize("name", KERNELS)
def test_kernel_equals_the_plain_loop(name: str, T: int, B: int, ids: bool, kernels: str) -> None:
    scan, plain, gates = KERNELS[name]
    x, *rest = inputs = arguments(gates, T, B, ids)
    before = [tensor.detach().clone() for tensor in inputs]
    expected = plain(vectors(x), *rest)
    actual = scan(*inputs)
    assert_equal(actual, expected)
    with torch.no_grad():
        assert_equal(scan(*inputs), expected)
    leaves = rest if ids else inputs
    weights = torch.randn(expected.shape, dtype=torch.float64)
    got, wanted = (torch.autograd.grad((y * weights).sum(), leaves) for y in (actual, expected))
    assert_equal(got, wanted, atol=1e-11)
    assert all(torch.equal(now, then) for now, then in zip(inputs, before, strict=True))


@pytest.mark.parametrize("name", KERNELS)
def test_results_do_not_depend_on_the_layout_of_the_input(name: str, kernels: str) -> None:
    """Passes a transposed input. Its gradient may have any layout."""
    scan, plain, gates = KERNELS[name]
    x, *rest = arguments(gates, 5, 3, ids=False)
    x = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    assert not x.is_contiguous()
    got, wanted = (torch.autograd.grad(f(x, *rest).square().sum(), [x, *rest]) for f in (scan, plain))
    assert_equal(got, wanted, atol=1e-11)


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("name", KERNELS)
def test_kernel_passes_gradcheck(name: str, ids: bool, kernels: str) -> None:
    scan, _, gates = KERNELS[name]
    assert torch.autograd.gradcheck(scan, arguments(gates, 4, 2, ids))


@pytest.mark.parametrize("name", KERNELS)
def test_results_do_not_depend_on_the_block_size(name: str, monkeypatch: pytest.MonkeyPatch, kernels: str) -> None:
    scan, _, gates = KERNELS[name]
    inputs = arguments(gates, 9, 2, False)
    results = []
    for size in (1, 4, 6, 1000):
        monkeypatch.setattr(blocks, "BLOCK", size)
        y = scan(*inputs)
        results.append((y, *torch.autograd.grad(y.square().sum(), inputs)))
    for other in results[1:]:
        assert_equal(other, results[0])


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_equals_the_plain_loop_in_single_precision(name: str, kernels: str) -> None:
    scan, plain, gates = KERNELS[name]
    x, *rest = inputs = arguments(gates, 30, 3, True, torch.float32)
    expected = plain(vectors(x), *(tensor.double() for tensor in rest))
    y = scan(*inputs)
    assert y.dtype == torch.float32
    assert_equal(y.double(), expected, atol=1e-5)
    for got, wanted in zip(torch.autograd.grad(y.sum(), rest), torch.autograd.grad(expected.sum(), rest), strict=True):
        assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("name", KERNELS)
def test_differentiating_a_kernel_twice_is_an_error(name: str, kernels: str) -> None:
    scan, _, gates = KERNELS[name]
    x, *rest = arguments(gates, 3, 2, True)
    first = torch.autograd.grad(scan(x, *rest).square().sum(), rest, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiat"):
        torch.autograd.grad(sum(g.sum() for g in first), rest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tanh_from_the_sigmoid_is_exact_to_two_epsilons(dtype: torch.dtype) -> None:
    a = torch.cat([torch.linspace(-30, 30, 10_001), torch.tensor([0.0, 1e-9, -1e-9, 1e4, -1e4])]).to(dtype)
    got = blocks.tanh_(a.clone(), a.new_ones(()))
    assert (got.double() - a.double().tanh()).abs().max() <= 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", KERNELS)
def test_a_model_computes_the_same_without_its_kernel(name: str, kernels: str) -> None:
    model = Case(name, 3).build()
    x = torch.arange(21).view(7, 3) % 5
    results = []
    for model.use_kernel in (True, False):
        logits, state = model(x, None)
        results.append((logits, *state, *torch.autograd.grad(logits.square().sum(), list(model.parameters()))))
    assert_equal(*results)


class Replay(nn.Module):
    """Stands in for dropout: multiplies by the next of the given masks at each call."""

    def __init__(self, masks: Tensor) -> None:
        super().__init__()
        self.masks = iter(masks)

    def forward(self, h: Tensor) -> Tensor:
        return h * next(self.masks)


@pytest.mark.parametrize("name", KERNELS)
def test_dropout_acts_between_layers_and_before_the_decoder(name: str, kernels: str) -> None:
    _, plain, _ = KERNELS[name]
    model = Case(name, 3).build()
    x, masks = torch.arange(12).view(4, 3) % 7, torch.randint(2, (3, 4, 3, 5)).double() * 2
    model.dropout = Replay(masks)
    logits, _ = model(x, None)
    below = F.one_hot(x, 7).double()
    p = dict(model.named_parameters())
    for layer, mask in enumerate(masks):
        W, R, b, b_h = (p[f"{name}.{kind}_l{layer}"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        below = mask * plain(below, torch.zeros(3, 5, dtype=torch.float64), W, R, b + b_h)
    assert_equal(logits, F.linear(below, p["decoder.weight"], p["decoder.bias"]))


# Training


FLAGS: dict[str, Any] = {
    "rnn_size": 12,
    "batch_size": 5,
    "seq_length": 8,
    "max_epochs": 1,
    "eval_val_every": 1000,
    "gpuid": -1,
    "precision": "float64",
    "sample_length": 0,
}


def train(folder: Path, threads: int, **flags: Any) -> dict[str, Tensor]:
    """Train for one epoch with this many threads, and return the weights."""
    write_text(folder / "data", SONG * 4)
    before = torch.get_num_threads()
    try:
        own = {"data_dir": str(folder / "data"), "checkpoint_dir": str(folder / "cv"), "threads": threads}
        run = new_run(configure(FLAGS | own | flags))
        for _ in run.records():
            pass
    finally:
        backend.use("torch", before)
    return run.model.state_dict()


@pytest.mark.parametrize("chosen", ["torch", "compiled"])
@pytest.mark.parametrize("name", registry.models())
def test_training_on_two_threads_equals_training_on_one(name: str, chosen: str, tmp_path: Path) -> None:
    if chosen == "compiled" and not backend.available():
        pytest.skip("the [fast] extra is not installed")
    alone = train(tmp_path / "one", 1, model=name, kernels="torch")
    together = train(tmp_path / "two", 2, model=name, kernels=chosen)
    again = train(tmp_path / "again", 2, model=name, kernels=chosen)
    for key, weights in alone.items():
        assert_equal(together[key], weights, atol=1e-9)
        assert torch.equal(together[key], again[key])
