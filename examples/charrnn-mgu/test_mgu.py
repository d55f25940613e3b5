"""The minimal gated unit keeps the contract of all models and computes the paper's equations."""

from math import exp, tanh

import pytest
import torch
from charrnn_mgu import create

from charrnn.testing import CHECKS, cases


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", cases("mgu"), ids=str)
def test_contract(check, case):
    check(case)


def test_the_layer_computes_the_papers_equations():
    """Compare one layer of two units on one row of text with the equations, number by number."""
    torch.manual_seed(1)
    model = create(3, 2, 1, 0.0).double()
    layer = model.layers[0]
    W, R_f, R_n = (p.tolist() for p in (layer.from_input.weight, layer.gate.weight, layer.candidate.weight))
    b_f, b_n = layer.gate.bias.tolist(), layer.candidate.bias.tolist()
    x, h = [0, 2, 1, 1], [0.0, 0.0]
    for token in x:
        f = [1 / (1 + exp(-(W[token][u] + sum(R_f[u][k] * h[k] for k in (0, 1)) + b_f[u]))) for u in (0, 1)]
        n = [tanh(W[token][2 + u] + sum(R_n[u][k] * f[k] * h[k] for k in (0, 1)) + b_n[u]) for u in (0, 1)]
        h = [(1 - f[u]) * h[u] + f[u] * n[u] for u in (0, 1)]
    _, (state,) = model(torch.tensor(x)[:, None])
    assert state.flatten().tolist() == pytest.approx(h, abs=1e-12)


def test_gate_bias_sets_the_initial_bias_of_the_gates():
    assert create(3, 2, 2, 0.0, gate_bias=-2.5).layers[1].gate.bias.tolist() == [-2.5, -2.5]
