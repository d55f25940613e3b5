"""Every built-in model keeps the contract, and the contract's checks detect each way to break it.

Also compares lstm, gru and rnn with plain Python loops written from their papers, and counts their parameters.
"""

from __future__ import annotations

from math import exp, tanh

import pytest
import torch

from charrnn import registry
from charrnn.testing import CHECKS, B, Case, H, T, V, cases, random_state, slope, text

MORE = [Case("rhn", 2, {"depth": 1}), Case("rhn", 1, {"depth": 3, "tie_embeddings": True, "share_masks": False})]
BUILT_IN = [case for name in registry.models() for case in cases(name)] + MORE


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", BUILT_IN, ids=str)
def test_built_in_models_keep_the_contract(case, check):
    check(case)


def test_the_built_in_models_have_the_optional_methods():
    models = {name: Case(name).build() for name in registry.models()}
    assert {"lstm", "gru", "rnn", "grid_lstm", "rhn"} <= models.keys()
    assert all(hasattr(model, "step") and hasattr(model, "numpy_step") for model in models.values())
    assert hasattr(models["rhn"], "draw_masks")


# a plugin that has every optional method of the contract
PLUGIN = '''\
"""A plain network for testing the contract."""
import numpy as np
import torch
from torch import nn


class Plain(nn.Module):
    def __init__(self, input_size, rnn_size, n_layers, dropout):
        super().__init__()
        self.embedding = nn.Embedding(input_size, rnn_size)
        self.recurrent = nn.ModuleList(nn.Linear(rnn_size, rnn_size) for _ in range(n_layers))
        self.decoder = nn.Linear(rnn_size, input_size)
        self.drop = dropout

    def forward(self, x, state=None, masks=None):
        if masks is None and self.training and self.drop:
            masks = self.draw_masks(x)
        below, last = self.embedding(x), []
        for h, recurrent in zip(self.start(x, state), self.recurrent):
            outputs = []
            for input in below:
                h = torch.tanh(input + recurrent(h))
                outputs.append(h)
            below = torch.stack(outputs)
            last.append(h)
        return self.decoder(below if masks is None else masks * below), (torch.stack(last),)

    def step(self, x, state=None):
        below, last = self.embedding(x), []
        for h, recurrent in zip(self.start(x, state), self.recurrent):
            below = torch.tanh(below + recurrent(h))
            last.append(below)
        return self.decoder(below), (torch.stack(last),)

    def numpy_step(self):
        embedding, *layers, (W, b) = [[p.detach().numpy() for p in part.parameters()] for part in self.parts()]

        def step(x, state):
            h, new = embedding[0][x], []
            for before, (R, r) in zip(state[0], layers):
                h = np.tanh(h + before @ R.T + r)
                new.append(h)
            return h @ W.T + b, (np.stack(new),)

        return step

    def parts(self):
        return self.embedding, *self.recurrent, self.decoder

    def start(self, x, state):
        weight = self.decoder.weight
        return weight.new_zeros(len(self.recurrent), x.shape[-1], weight.shape[1]) if state is None else state[0]

    def draw_masks(self, x, generator=None):
        weight = self.decoder.weight
        return torch.rand(x.shape[1], weight.shape[1], generator=generator).gt(self.drop).to(weight) / (1 - self.drop)


def create(input_size, rnn_size, n_layers, dropout):
    return Plain(input_size, rnn_size, n_layers, dropout)
'''

WRONG_GRADIENT = """\
import torch


class Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a.tanh())
        return a.tanh()

    @staticmethod
    def backward(ctx, gradient):
        (h,) = ctx.saved_tensors
        return gradient * (1 - 1.001 * h * h)
"""

FORWARD_TANH = "h = torch.tanh(input + recurrent(h))"
RETURN = "return self.decoder(below if masks is None else masks * below), (torch.stack(last),)"
MASKS_ARE_NONE = "if masks is None and self.training and self.drop:"

# ways to break the contract: the check that must fail, then texts in the plugin and their replacements
BROKEN = {
    "batch first": ("shapes", RETURN, RETURN.replace(", (torch", ".transpose(0, 1), (torch")),
    "the state is a list": ("shapes", RETURN, RETURN.replace("(torch.stack(last),)", "[torch.stack(last)]")),
    "the state with its batch last": ("shapes", RETURN, RETURN.replace("torch.stack(last)", "torch.stack(last).mT")),
    "logits in float32": ("dtypes", RETURN, RETURN.replace(", (torch", ".float(), (torch")),
    "a state in float32": ("dtypes", RETURN, RETURN.replace("(torch.stack(last),)", "(torch.stack(last).float(),)")),
    "an initial state that is not zeros": ("zero_state", "weight.new_zeros(", "weight.new_ones("),
    "a state that is ignored": ("carry", " if state is None else state[0]", ""),
    "a state one step behind": ("carry", "last.append(h)", "last.append(outputs[-2] if len(outputs) > 1 else h)"),
    "a state kept in the module": (
        "memory",
        "return weight.new_zeros(",
        """self.old = state or getattr(self, "old", None)
        if self.old and self.old[0].shape[1] == x.shape[-1]:
            state = self.old
        return weight.new_zeros(""",
    ),
    "reads later characters": ("causality", "torch.stack(outputs)", "torch.stack(outputs); below += below.mean(0)"),
    "reads the next character": (
        "causality",
        "below, last = self.embedding(x), []\n        for h, recurrent in "
        "zip(self.start(x, state), self.recurrent):\n            outputs",
        "below, last = self.embedding(x.roll(-1, 0)), []\n        for h, recurrent in "
        "zip(self.start(x, state), self.recurrent):\n            outputs",
    ),
    "ignores the characters": ("causality", FORWARD_TANH, FORWARD_TANH.replace("input", "0 * input")),
    "rows that read each other": ("rows", "torch.stack(outputs)", "torch.stack(outputs); below += below.mean(1, True)"),
    "a state changed in place": ("untouched", "outputs = []", "outputs = []; h.mul_(0.5)"),
    "a step that changes the state in place": ("untouched", "last.append(below)", "last.append(below); h.zero_()"),
    "an unused parameter": ("reach", "self.drop = dropout", "self.drop = dropout; self.u = nn.Linear(2, 2)"),
    "a parameter without a gradient": (
        "reach",
        FORWARD_TANH,
        FORWARD_TANH.replace("recurrent(h)", "recurrent(h).detach()"),
    ),
    "a gradient off by a thousandth": ("gradient", FORWARD_TANH, FORWARD_TANH.replace("torch.tanh", "Tanh.apply")),
    "no bias when gradients are off": (
        "modes",
        FORWARD_TANH,
        FORWARD_TANH + "\n                if not torch.is_grad_enabled(): h = h - recurrent.bias",
    ),
    "a copy of old weights": (
        "fresh_weights",
        FORWARD_TANH,
        "self.kept = getattr(self, 'kept', None) or (self.decoder.bias.clone(),); " + FORWARD_TANH,
        RETURN,
        RETURN.replace("below if", "self.kept[0].mean() + below if"),
    ),
    "dropout in evaluation": ("dropout", MASKS_ARE_NONE, "if masks is None and self.drop:"),
    "no dropout": ("dropout", MASKS_ARE_NONE, "if False:"),
    "dropout although it is 0": ("dropout", "self.drop = dropout", "self.drop = dropout or 0.5"),
    "weights outside the state_dict": (
        "round_trip",
        "self.drop = dropout",
        "self.drop = dropout; self.w = torch.rand(1).double()",
        FORWARD_TANH,
        FORWARD_TANH.replace("input", "self.w * input"),
    ),
    "initial weights that ignore the seed": (
        "initialisation",
        "self.drop = dropout",
        "self.drop = dropout; free = torch.Generator(); free.seed(); self.decoder.bias.data.uniform_(generator=free)",
    ),
    "a step that computes another function": ("step", "torch.tanh(below + recurrent(h))", "torch.tanh(below + h)"),
    "a step that drops its state": ("step", "last.append(below)", "last.append(h)"),
    "a numpy step that computes another function": ("numpy_step", "before @ R.T + r", "before @ R + r"),
    "a numpy step that drops its state": ("numpy_step", "new.append(h)", "new.append(before)"),
    "a numpy step that changes the state in place": ("numpy_step", "new.append(h)", "new.append(h); before *= 0"),
    "given masks that are replaced": ("masks", MASKS_ARE_NONE, "if self.training and self.drop:"),
    "given masks that are ignored": (
        "masks",
        RETURN,
        "below = nn.functional.dropout(below, self.drop, self.training and masks"
        " is None); " + RETURN.replace("masks * ", ""),
    ),
    "masks that differ from those of draw_masks": (
        "masks",
        "masks = self.draw_masks(x)",
        "masks = self.draw_masks(x).flip(0)",
    ),
}


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A function that writes a plugin to a folder that the registry searches, and returns a case for it."""

    def write(source):
        (tmp_path / "models").mkdir()
        (tmp_path / "models" / "plain.py").write_text(source)
        monkeypatch.chdir(tmp_path)
        return Case("plain")

    return write


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_plugin_keeps_the_contract(check, plugin):
    check(plugin(PLUGIN))


@pytest.mark.parametrize("fault", BROKEN)
def test_the_checks_detect_each_way_to_break_the_contract(fault, plugin):
    name, *replacements = BROKEN[fault]
    source = WRONG_GRADIENT + PLUGIN
    for old, new in zip(replacements[::2], replacements[1::2], strict=True):
        assert old in source
        source = source.replace(old, new)
    case = plugin(source)
    check = next(check for check in CHECKS if check.__name__ == f"check_{name}")
    case.build()(text())  # the broken plugin still runs
    with pytest.raises(AssertionError):
        check(case)


def test_every_check_fails_for_some_plugin():
    assert {f"check_{name}" for name, *_ in BROKEN.values()} == {check.__name__ for check in CHECKS}


def test_a_model_without_optional_methods_keeps_the_contract(plugin):
    head, _, rest = PLUGIN.partition("    def step")
    start = rest[rest.index("    def start") : rest.index("    def draw_masks")]
    source = head.replace(", masks=None", "").replace("masks * below", "nn.functional.dropout(below, self.drop)")
    source = source.replace(MASKS_ARE_NONE, "masks = self.training or None\n        if False:")
    case = plugin(source + start + PLUGIN[PLUGIN.index("def create") :])
    assert not hasattr(case.build(), "step") and not hasattr(case.build(), "draw_masks")
    for check in CHECKS:
        check(case)


def test_slope_equals_the_derivative_of_a_known_function():
    a, b = torch.tensor([[0.3, -0.7]], dtype=torch.float64), torch.tensor(1.5, dtype=torch.float64)
    direction = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    found = slope(lambda b, a: b * (a**3).sum(), [b, a], 1, direction)
    torch.testing.assert_close(found, (3 * b * a**2 * direction).sum(), rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "own", "count"),
    [("lstm", {}, 240_321), ("gru", {}, 182_337), ("gru", {"reset_after": True}, 182_337), ("rnn", {}, 66_369)],
)
def test_models_have_the_expected_numbers_of_parameters(name, own, count):
    model = registry.find(name).create(65, 128, 2, 0.0, **own)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("n_layers", [1, 3])
@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_initial_weights_are_drawn_as_in_char_rnn(name, n_layers):
    weights = Case(name, n_layers).fresh(rnn_size=200).state_dict()
    for key, value in weights.items():
        if name == "lstm" and "bias_ih" in key:
            i, f, g, o = value.chunk(4)
            assert (f == 1).all()
            value = torch.cat((i, g, o))
        assert value.abs().max() <= 0.08
        if value.numel() > 100:
            assert value.min() < -0.07 and value.max() > 0.07 and value.mean().abs() < 0.02, key


CHAR_RNNS = [("lstm", {}), ("gru", {"reset_after": False}), ("gru", {"reset_after": True}), ("rnn", {})]


@pytest.mark.parametrize(("name", "own"), CHAR_RNNS)
def test_dropout_acts_between_layers_and_before_the_decoder(name, own):
    model, x = Case(name, 3, own).build(dropout=0.75), text(steps=40)
    model.decoder = torch.nn.Linear(H, H, bias=False).double()
    torch.nn.init.eye_(model.decoder.weight)
    start = random_state(model, x)
    _, kept = model(x, start)
    h, dropped = model.train()(x, start)
    assert torch.equal(dropped[0][0], kept[0][0]), "dropout acts on the first layer's input or on recurrent connections"
    assert all((dropped[0][layer] != kept[0][layer]).all() for layer in (1, 2)), "dropout does not act between layers"
    assert 0.65 < (h == 0).double().mean() < 0.85
    torch.testing.assert_close(h[-1], torch.where(h[-1] == 0, 0.0, dropped[0][-1] / 0.25), rtol=0, atol=1e-12)


def sigmoid(a):
    return 1 / (1 + exp(-a))


def dot(weights, values):
    return sum(w * v for w, v in zip(weights, values, strict=True))


def lstm_unit(j, x, h, c, W, R, b, b_R):
    def gate(k):
        row = k * H + j
        return dot(W[row], x) + b[row] + dot(R[row], h) + b_R[row]

    i, f, g, o = sigmoid(gate(0)), sigmoid(gate(1)), tanh(gate(2)), sigmoid(gate(3))
    new_c = f * c[j] + i * g
    return o * tanh(new_c), new_c


def gru_unit(j, x, h, W, R, b, b_R):
    """A unit of the original GRU: the reset gates multiply h before the matrix product."""

    def gate(k, unit):
        row = k * H + unit
        return sigmoid(dot(W[row], x) + b[row] + dot(R[row], h) + b_R[row])

    reset = [gate(0, unit) * h[unit] for unit in range(H)]
    z, row = gate(1, j), 2 * H + j
    n = tanh(dot(W[row], x) + b[row] + dot(R[row], reset) + b_R[row])
    return (z * n + (1 - z) * h[j],)


def gru_unit_reset_after(j, x, h, W, R, b, b_R):
    """A unit of cuDNN's GRU: the reset gate multiplies the matrix product, and z is the weight of the old h."""

    def gate(k):
        row = k * H + j
        return sigmoid(dot(W[row], x) + b[row] + dot(R[row], h) + b_R[row])

    r, z, row = gate(0), gate(1), 2 * H + j
    n = tanh(dot(W[row], x) + b[row] + r * (dot(R[row], h) + b_R[row]))
    return ((1 - z) * n + z * h[j],)


def rnn_unit(j, x, h, W, R, b, b_R):
    return (tanh(dot(W[j], x) + b[j] + dot(R[j], h) + b_R[j]),)


def naive(unit, layers, decoder, x, state):
    """Compute the logits of each time step and the final state for one row of text, unit by unit with Python floats.

    ``state`` holds each layer's state vectors, h first.
    """
    W_out, b_out = decoder
    logits = []
    for number in x:
        below = [float(k == number) for k in range(V)]
        for layer, weights in enumerate(layers):
            units = [unit(j, below, *state[layer], *weights) for j in range(H)]
            state[layer] = [list(vector) for vector in zip(*units, strict=True)]
            below = state[layer][0]
        logits.append([dot(W_out[k], below) + b_out[k] for k in range(V)])
    return logits, state


@pytest.mark.parametrize("n_layers", [1, 2, 3])
@pytest.mark.parametrize(
    ("name", "own", "unit"),
    [
        ("lstm", {}, lstm_unit),
        ("gru", {"reset_after": False}, gru_unit),
        ("gru", {"reset_after": True}, gru_unit_reset_after),
        ("rnn", {}, rnn_unit),
    ],
)
def test_models_equal_a_loop_over_single_units(name, own, unit, n_layers):
    model, x = Case(name, n_layers, own).build(), text()
    start = random_state(model, x)
    logits, last = model(x, start)
    weights = {key: value.tolist() for key, value in model.state_dict().items()}
    layers = [
        [weights[f"{name}.{kind}_l{layer}"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        for layer in range(n_layers)
    ]
    assert logits.shape == (T, B, V)
    for row in range(B):
        state = [[s[layer, row].tolist() for s in start] for layer in range(n_layers)]
        decoder = weights["decoder.weight"], weights["decoder.bias"]
        expected, end = naive(unit, layers, decoder, x[:, row].tolist(), state)
        expected, end = torch.tensor(expected, dtype=torch.float64), torch.tensor(end, dtype=torch.float64)
        torch.testing.assert_close(logits[:, row], expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(torch.stack(last, 1)[:, :, row], end, rtol=0, atol=1e-10)
