"""The Grid LSTM, compared with the paper's equations, the original's recordings, and itself."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from charrnn import registry
from charrnn.checkpoints.originals import ifog_to_ifgo, layout
from charrnn.evaluation.loss import summed_loss
from tests.helpers.recorded import Recording

V, H = 7, 3
FORGET = slice(H, 2 * H)

Arrays = dict[str, np.ndarray]


def create(n_layers: int, tied: bool = True, dropout: float = 0.0, seed: int = 0) -> nn.Module:
    """Create a small model in float64, with weights large enough to leave the linear range."""
    torch.manual_seed(seed)
    model = registry.find("grid_lstm").create(V, H, n_layers, dropout, tie_weights=tied).double()
    for p in model.parameters():
        nn.init.uniform_(p, -1, 1)
    return model


def random_input(T: int, B: int, n_layers: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    x = torch.randint(V, (T, B))
    return x, (torch.randn(n_layers, B, H).double(), torch.randn(n_layers, B, H).double())


def assert_equal(actual: Tensor | Sequence[Tensor], expected: Tensor | Sequence[Tensor]) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


def from_recorded(arrays: Arrays, n_layers: int, tied: bool) -> Arrays:
    """Convert the original's named tensors (values or gradients, no prefix) to those of the model's state_dict."""
    return {name: source.tensor(arrays) for name, source in layout("grid_lstm", n_layers, tied).items()}


def to_recorded(tensors: Arrays, n_layers: int, tied: bool) -> Arrays:
    """Invert from_recorded: each tensor of the model is one of the original's, with its gates reordered."""
    return {
        source.names[0]: ifog_to_ifgo(tensors[name]) if name.startswith(("time", "depth")) else tensors[name]
        for name, source in layout("grid_lstm", n_layers, tied).items()
    }


# The block


def sigmoid(a: float) -> float:
    return 1 / (1 + math.exp(-a))


def paper_lstm(W: np.ndarray, b: np.ndarray, incoming: list[float], m: list[float], paper: bool) -> tuple[list, list]:
    """LSTM(H, m, W) of the paper, unit by unit, with a single matrix W (4H, NH) on the concatenated vector H."""
    size = len(m)
    new_h, new_m = [], []
    for unit in range(size):
        gates = []
        for gate in range(4):
            row = gate * size + unit
            gates.append(b[row] + sum(W[row, k] * incoming[k] for k in range(len(incoming))))
        i, f, g, o = sigmoid(gates[0]), sigmoid(gates[1]), math.tanh(gates[2]), sigmoid(gates[3])
        memory = f * m[unit] + i * g
        new_m.append(memory)
        new_h.append(math.tanh(o * memory) if paper else o * math.tanh(memory))
    return new_h, new_m


def paper_block(
    W: np.ndarray, b: np.ndarray, h: list[list[float]], m: list[list[float]], priority: tuple[int, ...], paper: bool
) -> tuple[list, list]:
    """The block of the paper: H for the ordinary dimensions, then H' for those with priority."""
    N = len(h)
    new = {}
    incoming = [value for n in range(N) for value in h[n]]
    for n in range(N):
        if n not in priority:
            new[n] = paper_lstm(W[n], b[n], incoming, m[n], paper)
    incoming = [value for n in range(N) for value in (h[n] if n in priority else new[n][0])]
    for n in priority:
        new[n] = paper_lstm(W[n], b[n], incoming, m[n], paper)
    return [new[n][0] for n in range(N)], [new[n][1] for n in range(N)]


BLOCKS = [
    (N, priority) for N in (1, 2, 3) for size in range(N + 1) for priority in itertools.combinations(range(N), size)
]


@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize(("N", "priority"), BLOCKS)
def test_the_block_equals_the_papers(N: int, priority: tuple[int, ...], paper: bool) -> None:
    rng = np.random.default_rng(N)
    W, b = rng.uniform(-1, 1, (N, 4 * H, N * H)), rng.uniform(-1, 1, (N, N, 4 * H))
    h, m = rng.uniform(-1, 1, (2, N, 5, H))
    maps = [[(torch.tensor(W[n, :, k * H : (k + 1) * H]), torch.tensor(b[n, k])) for k in range(N)] for n in range(N)]
    new_h, new_m = registry.find("grid_lstm").module.block(
        list(torch.tensor(h)), list(torch.tensor(m)), maps, priority=priority, paper=paper
    )
    assert len(new_h) == len(new_m) == N
    for row in range(5):
        expected = paper_block(W, b.sum(1), h[:, row].tolist(), m[:, row].tolist(), priority, paper)
        assert_equal([t[row] for t in new_h], list(torch.tensor(expected[0], dtype=torch.float64)))
        assert_equal([t[row] for t in new_m], list(torch.tensor(expected[1], dtype=torch.float64)))


@pytest.mark.parametrize("tied", [True, False])
def test_the_model_equals_the_block_with_two_dimensions_and_depth_prioritised(tied: bool) -> None:
    model = create(3, tied)
    block = registry.find("grid_lstm").module.block
    x, (h, c) = random_input(4, 2, 3)

    def column(x_t: Tensor, h: Tensor, c: Tensor, **how: object) -> tuple[Tensor, Tensor, Tensor]:
        """One time step: a stack of blocks, one for each layer."""
        depth_h = model.embedding(x_t)
        depth_c = torch.zeros_like(depth_h)
        new_h, new_c = [], []
        for k in range(3):
            time, depth = model.time[k], model.depth[0 if tied else k]
            maps = [
                [(time.weight_hh_l0, time.bias_hh_l0), (time.weight_ih_l0, time.bias_ih_l0)],
                [(depth.weight_hh, depth.bias_hh), (depth.weight_ih, depth.bias_ih)],
            ]
            (time_h, depth_h), (time_c, depth_c) = block([h[k], depth_h], [c[k], depth_c], maps, **how)
            new_h.append(time_h)
            new_c.append(time_c)
        return model.decoder(depth_h), torch.stack(new_h), torch.stack(new_c)

    logits, state = model(x, (h, c))
    first = model(x[:1], (h, c))[0][0]
    for how in ({}, {"priority": (0,)}, {"priority": (1,), "paper": True}):
        assert (column(x[0], h, c, **how)[0] - first).abs().max() > 1e-3
    for x_t, expected in zip(x, logits, strict=True):
        actual, h, c = column(x_t, h, c, priority=(1,))
        assert_equal(actual, expected)
    assert_equal((h, c), state)


# The model


def naive(
    model: nn.Module, x: Tensor, state: tuple[Tensor, Tensor], masks: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the program's logits (T, B, V), h and c step by step, row by row, layer by layer and gate by gate.

    masks (L, T, B, H) multiply the depth hidden vectors that enter the next layer or the decoder.
    """
    p = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    h, c = (tensor.numpy().copy() for tensor in state)
    n_layers, B, size = h.shape
    logits = np.zeros((*x.shape, len(p["decoder.bias"])))
    tied = "depth.1.weight_ih" not in p

    def lstm(cell: str, suffix: str, below: np.ndarray, hidden: np.ndarray, memory: np.ndarray) -> tuple:
        weights = [p[f"{cell}.{name}{suffix}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        a, b, d, e = (
            weights[0][rows] @ below + weights[1][rows] @ hidden + weights[2][rows] + weights[3][rows]
            for rows in (slice(k * size, (k + 1) * size) for k in range(4))
        )
        memory = memory / (1 + np.exp(-b)) + np.tanh(d) / (1 + np.exp(-a))
        return np.tanh(memory) / (1 + np.exp(-e)), memory

    for t, row in itertools.product(range(len(x)), range(B)):
        depth_h, depth_c = p["embedding.weight"][x[t, row]], np.zeros(size)
        for k in range(n_layers):
            h[k, row], c[k, row] = lstm(f"time.{k}", "_l0", depth_h, h[k, row], c[k, row])
            depth_h, depth_c = lstm(f"depth.{0 if tied else k}", "", depth_h, h[k, row], depth_c)
            depth_h = depth_h if masks is None else depth_h * masks[k, t, row]
        logits[t, row] = p["decoder.weight"] @ depth_h + p["decoder.bias"]
    return logits, h, c


SIZES = [(1, 1, 1), (1, 3, 2), (5, 1, 3), (6, 4, 1), (4, 3, 4)]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("T", "B", "n_layers"), SIZES)
def test_forward_and_step_equal_the_naive_loop(T: int, B: int, n_layers: int, tied: bool) -> None:
    model = create(n_layers, tied, seed=T)
    x, state = random_input(T, B, n_layers)
    expected, h, c = map(torch.from_numpy, naive(model, x, state))
    logits, last = model(x, state)
    assert_equal(logits, expected)
    assert_equal(last, (h, c))
    for x_t, expected_t in zip(x, expected, strict=True):
        logits, state = model.step(x_t, state)
        assert_equal(logits, expected_t)
    assert_equal(state, (h, c))


def test_without_a_state_the_model_starts_from_zeros() -> None:
    model = create(2)
    x, _ = random_input(3, 2, 2)
    zeros = torch.zeros(2, 2, H).double()
    assert_equal(model(x, None), model(x, (zeros, zeros)))
    assert_equal(model.step(x[0], None), model.step(x[0], (zeros, zeros)))


def test_three_chunks_with_carried_state_equal_one_pass() -> None:
    model = create(3)
    x, start = random_input(9, 2, 3)
    whole, last = model(x, start)
    gradients = torch.autograd.grad(whole.square().sum(), list(model.parameters()))
    state, parts = start, []
    for chunk in x.split((2, 4, 3)):
        logits, state = model(chunk, state)
        parts.append(logits)
    assert_equal(torch.cat(parts), whole)
    assert_equal(state, last)
    assert_equal(torch.autograd.grad(torch.cat(parts).square().sum(), list(model.parameters())), gradients)


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_equal_finite_differences(tied: bool) -> None:
    model = create(2, tied)
    x, state = random_input(3, 2, 2)
    names, values = zip(*((name, p.detach().requires_grad_()) for name, p in model.named_parameters()), strict=True)

    def outputs(h: Tensor, c: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        logits, last = functional_call(model, dict(zip(names, parameters, strict=True)), (x, (h, c)))
        return logits, *last

    assert torch.autograd.gradcheck(outputs, (*(s.requires_grad_() for s in state), *values))


class Replay(nn.Module):
    """Replaces dropout: multiplies by the given masks, one per call."""

    def __init__(self, masks: Tensor) -> None:
        super().__init__()
        self.masks = iter(masks)

    def forward(self, h: Tensor) -> Tensor:
        return h * next(self.masks).view_as(h)


def test_dropout_acts_on_the_depth_hidden_vectors_above_each_layer() -> None:
    model = create(3, dropout=0.4)
    assert isinstance(model.dropout, nn.Dropout) and model.dropout.p == 0.4
    x, state = random_input(5, 2, 3)
    masks = torch.randint(2, (3, 5, 2, H)).double() / 0.6
    model.dropout = Replay(masks)
    logits, last = model(x, state)
    expected = naive(model, x, state, masks.numpy())
    assert_equal((logits, *last), tuple(map(torch.from_numpy, expected)))
    assert np.abs(expected[0] - naive(model, x, state)[0]).max() > 1e-3
    assert list(model.dropout.masks) == []


def test_dropout_acts_only_in_training() -> None:
    model = create(2, dropout=0.4)
    x, state = random_input(5, 2, 2)
    assert not torch.equal(model(x, state)[0], model(x, state)[0])
    model.eval()
    assert_equal(model(x, state)[0], torch.from_numpy(naive(model, x, state)[0]))


# Parameters and initial weights


@pytest.mark.parametrize(("n_layers", "tied", "count"), [(2, True, 412_993), (6, True, 941_377), (2, False, 545_089)])
def test_parameter_counts_equal_the_originals(n_layers: int, tied: bool, count: int) -> None:
    """Counts of grid-lstm for 2 and 6 tied layers of 128 units. If not tied, each layer adds a depth LSTM of 8 * 128 *
    129 parameters."""
    model = registry.find("grid_lstm").create(65, 128, n_layers, 0.0, tie_weights=tied)
    assert sum(p.numel() for p in model.parameters()) == count


def test_weights_are_tied_by_default() -> None:
    names = registry.find("grid_lstm").create(V, H, 3, 0.0).state_dict().keys()
    assert {name.split(".")[1] for name in names if name.startswith("depth")} == {"0"}
    assert {name.split(".")[1] for name in names if name.startswith("time")} == {"0", "1", "2"}


@pytest.mark.parametrize("tied", [True, False])
def test_initial_weights_have_the_right_distribution(tied: bool) -> None:
    """They are uniform in +-0.08, except for a forget bias of 1 in time.t2h and depth.t2h."""
    model = registry.find("grid_lstm").create(65, H, 3, 0.0, tie_weights=tied)
    forget = 0
    for name, p in model.state_dict().items():
        rest = p.flatten()
        if "bias_hh" in name:
            assert torch.equal(p[FORGET], torch.ones(H)), name
            rest = torch.cat([p[: FORGET.start], p[FORGET.stop :]])
            forget += 1
        assert rest.abs().max() <= 0.08, name
        assert len(rest.unique()) == len(rest), name
    assert forget == (4 if tied else 6)
    everything = model.embedding.weight
    assert everything.min() < -0.07 and everything.max() > 0.07 and everything.mean().abs() < 0.03


# The original


@pytest.fixture(params=["tied", "untied"])
def recording(request: pytest.FixtureRequest, reference: Path) -> Recording:
    return Recording(reference / f"grid_lstm_{request.param}.npz")


def recorded_model(recording: Recording) -> tuple[nn.Module, int, bool]:
    """Return the model with the recorded weights, its number of layers, and whether its depth weights are tied."""
    n_layers, _, rnn_size = recording.arrays["init_h"].shape
    tied = "param/depth.t2h.weight" in recording.arrays
    arrays = prefixed(recording, "param/")
    vocabulary_size = len(arrays["decoder.bias"])
    model = registry.find("grid_lstm").create(vocabulary_size, rnn_size, n_layers, 0.0, tie_weights=tied).double()
    model.load_state_dict({k: torch.from_numpy(v) for k, v in from_recorded(arrays, n_layers, tied).items()})
    return model, n_layers, tied


def prefixed(recording: Recording, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in recording.arrays.items() if name.startswith(prefix)}


def test_outputs_and_gradients_equal_the_originals(recording: Recording) -> None:
    model, n_layers, tied = recorded_model(recording)
    x, y = recording.tensor("x").T, recording.tensor("y").T
    logits, (h, c) = model(x, (recording.tensor("init_h"), recording.tensor("init_c")))
    objective = summed_loss(logits, y)
    recording.compare("logprobs", logits.log_softmax(-1))
    recording.compare("final_h", h)
    recording.compare("final_c", c)
    recording.compare("loss", objective / len(x))
    objective.backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}
    for name, gradient in to_recorded(gradients, n_layers, tied).items():
        recording.compare(f"grad/{name}", gradient)
    assert recording.seen >= {name for name in recording.arrays if name.startswith("grad/")}


def test_steps_equal_the_originals(recording: Recording) -> None:
    model, _, _ = recorded_model(recording)
    state = (recording.tensor("init_h"), recording.tensor("init_c"))
    logprobs, h, c = [], [], []
    for x in recording.tensor("x").T:
        logits, state = model.step(x, state)
        logprobs.append(logits.log_softmax(-1))
        h.append(state[0])
        c.append(state[1])
    recording.compare("logprobs", torch.stack(logprobs))
    recording.compare("states_h", torch.stack(h, dim=1))
    recording.compare("states_c", torch.stack(c, dim=1))


def test_converting_to_the_recorded_layout_and_back_changes_no_value(recording: Recording) -> None:
    _, n_layers, tied = recorded_model(recording)
    arrays = prefixed(recording, "param/")
    back = to_recorded(from_recorded(arrays, n_layers, tied), n_layers, tied)
    assert back.keys() == arrays.keys() == set(recording.given("param_names").tolist())
    assert all(np.array_equal(back[name], array) for name, array in arrays.items())
