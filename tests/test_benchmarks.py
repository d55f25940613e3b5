"""The benchmarks are fair: plain networks compute the same as our models, and formulas count their operations."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import charrnn
from benchmarks import apart, growth, loop, measure, networks, picture, soak, startup, subjects
from charrnn import compute
from charrnn.checkpoints import folder as checkpoint_folder
from charrnn.cli.display import PlainDisplay
from charrnn.kernels import backend
from charrnn.training import loop as training_loop
from tests.helpers.command import environment

SIZE, LAYERS = 6, 2
ROOT = Path(charrnn.__file__).parent.parent


def weights(name: str, model: nn.Module) -> dict[str, Tensor]:
    """Return our weights under the names of the plain network."""
    p = dict(model.named_parameters())
    if name == "grid_lstm":
        return {key.replace("depth.0.", "depth."): value for key, value in p.items()}
    if name == "rhn":
        taken = {"embedding.weight": p["embedding"], "decoder.weight": p["softmax_w"], "decoder.bias": p["softmax_b"]}
        for layer in range(LAYERS):
            taken[f"inputs.{layer}.weight"] = torch.cat(tuple(p[f"W.{layer}"]), 1).T
            for d, (R, b) in enumerate(zip(p[f"R.{layer}"], p[f"b.{layer}"], strict=True)):
                taken[f"depths.{layer}.{d}.weight"] = torch.cat(tuple(R), 1).T
                taken[f"depths.{layer}.{d}.bias"] = b.flatten()
        return taken
    if name == "gru":
        taken = {"decoder.weight": p["decoder.weight"], "decoder.bias": p["decoder.bias"]}
        for layer in range(LAYERS):
            W, R, b, b_h = (p[f"gru.{k}_l{layer}"] for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            taken |= {f"inputs.{layer}.weight": W, f"inputs.{layer}.bias": b}
            taken |= {f"gates.{layer}.weight": R[: 2 * SIZE], f"gates.{layer}.bias": b_h[: 2 * SIZE]}
            taken |= {f"candidates.{layer}.weight": R[2 * SIZE :], f"candidates.{layer}.bias": b_h[2 * SIZE :]}
        return taken
    return {key.replace(name.partition(" ")[0] + ".", "layers."): value for key, value in p.items()}


@pytest.mark.parametrize("name", subjects.NAMES)
def test_the_plain_networks_compute_the_same_as_our_models(name: str) -> None:
    model = subjects.Subject(name, SIZE, LAYERS).model().double()
    x = torch.randint(subjects.V, (4, 3))
    logits, state = model(x, None)
    for network in networks.plain(name, subjects.V, SIZE, LAYERS).values():
        network.double().load_state_dict(weights(name, model))
        for start in (None, state):
            expected, end = model(x, start)
            actual, last = network(x, start)
            torch.testing.assert_close((actual, *last), (expected, *end), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", subjects.NAMES)
def test_the_formula_counts_the_floating_point_operations_of_all_products(name: str) -> None:
    T, B = 3, 2
    # prefer a loop with a look-up: the counter sees all its matrix products, and it uses no one-hot vectors
    ways = networks.plain(name, subjects.V, SIZE, LAYERS)
    network = ways.get("loop, look-up", next(iter(ways.values())))
    one_hot = 0
    if isinstance(network, networks.Layers):
        one_hot = 2 * T * B * subjects.V * network.layers.weight_ih_l0.shape[0]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        by_products(network, torch.randint(subjects.V, (T, B)))
    assert counter.get_total_flops() - one_hot == T * B * networks.flops(name, subjects.V, SIZE, LAYERS)


def by_products(network: nn.Module, x: Tensor) -> None:
    """Compute the network's matrix products one by one, since torch's own layers hide theirs from the counter."""
    if isinstance(network, networks.Layers):
        below = F.one_hot(x, subjects.V).to(network.decoder.weight)
        for W, R, *_ in network.layers.all_weights:
            h = below.new_zeros(*x.shape, SIZE)
            F.linear(below, W), F.linear(h, R)
            below = h
        network.decoder(below)
    elif isinstance(network, networks.Grid):
        h = network.embedding(x)
        for time in network.time:
            for cell, suffix in ((time, "_l0"), (network.depth, "")):
                F.linear(h, getattr(cell, f"weight_ih{suffix}")), F.linear(h, getattr(cell, f"weight_hh{suffix}"))
        network.decoder(h)
    else:
        network(x, None)


def test_the_hand_written_loop_trains_like_ours() -> None:
    minibatches = subjects.split(4, 5, 6)
    ours, plain = (subjects.Subject("lstm", SIZE, LAYERS).model() for _ in range(2))
    plain.load_state_dict(ours.state_dict())
    iteration, by_hand = subjects.training(ours, minibatches), subjects.by_hand(plain, minibatches)
    for _ in range(4):
        assert iteration().loss == pytest.approx(by_hand(), abs=1e-5)
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_variants_take_turns() -> None:
    calls: list[str] = []
    arms = {name: lambda name=name: calls.append(name) for name in "ab"}
    timings = measure.in_turn(arms, repeats=3, warm_up=2)
    assert "".join(calls) == "ab" * 5
    assert timings.keys() == {"a", "b"}


def test_summaries_and_exponents_are_correct() -> None:
    timing = measure.summary([1.0, 2.0, 3.0, 4.0, 100.0])
    assert (timing.low, timing.median, timing.high, timing.spread) == (2, 3, 4, 2 / 3)
    assert growth.slope([(0, 1), (1, 3), (2, 5)]) == pytest.approx(2)


def test_the_picture_has_a_line_for_each_model_and_size(tmp_path: Path) -> None:
    rows = [
        {"model": model, "size": size, "value": value, "ms": 2.0 * value**exponent}
        for size in ("rnn_size", "batch_size")
        for model, exponent in (("lstm", 2), ("rnn", 1))
        for value in (10, 20, 40)
    ]
    picture.draw(rows, tmp_path / "growth.svg")
    assert ElementTree.parse(tmp_path / "growth.svg").getroot().tag.endswith("svg")
    panels = picture.picture(rows).axes
    assert [panel.get_title() for panel in panels] == ["ms against rnn_size", "ms against batch_size"]
    for panel in panels:
        assert [line.get_label() for line in panel.lines] == ["lstm", "rnn"]
        ends = [line.get_transform().transform(line.get_xydata())[[0, -1]] for line in panel.lines]
        square, straight = ((y1 - y0) / (x1 - x0) for (x0, y0), (x1, y1) in ends)
        assert square == pytest.approx(2 * straight)


def test_a_failing_command_raises_its_error_message() -> None:
    with pytest.raises(RuntimeError, match="nonsense"):
        startup.first_byte([sys.executable, "-c", "raise SystemExit('nonsense')"])


def test_the_command_prints_and_saves_its_figures(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "benchmarks", "startup", "--quick", "--json", str(tmp_path / "figures.json")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, env=environment(), check=True)
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert [row["command"] for row in figures["startup"]][1] == "charrnn --help"
    assert figures["machine"]["torch"] == torch.__version__
    assert b"charrnn --help" in done.stdout


def test_a_separate_process_runs_iterations_in_its_own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in compute.WAITING:
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    with apart.Process(as_charrnn=True) as ours, apart.Process(as_charrnn=False) as theirs:
        assert os.environ == before
        for process, turns in ((ours, compute.SPIN_COUNT), (theirs, None)):
            process.arm(expect, "GOMP_SPINCOUNT", turns)()
            with pytest.raises(AssertionError):
                process.arm(expect, "GOMP_SPINCOUNT", "another")()
        assert ours.arm(partial, time.sleep, 0.01)() >= 0.01
        assert ours.arm(partial, time.sleep, 0.2)() >= 0.2
        ours.forget()
        ours.arm(expect, "PATH", os.environ["PATH"])()


def expect(name: str, value: str | None) -> partial[None]:
    return partial(check, name, value)


def check(name: str, value: str | None) -> None:
    assert os.environ.get(name) == value


def test_timed_iterations_train_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    subject, sizes = subjects.Subject("gru", SIZE, LAYERS), subjects.Sizes(4, 5)
    before = torch.get_num_threads()
    for kernels in subjects.kernels_of(subject):
        assert subjects.ours(subject, kernels, 1, sizes)().loss == pytest.approx(math.log(subjects.V), abs=0.1)
    assert subjects.plainly(subject, "loop, look-up", 1, sizes)() == pytest.approx(math.log(subjects.V), abs=0.1)
    assert subjects.large_product(1)().shape == (measure.PRODUCT, measure.PRODUCT)
    backend.use("torch", before)


def test_the_loop_prints_a_line_for_each_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(PlainDisplay, "show", lambda display, record: shown.append(record.iteration))
    model = subjects.Subject("rnn", SIZE, 1).model()
    iteration = loop.displayed(subjects.training(model, subjects.split(4, 5, 6)))
    iteration()
    iteration()
    assert shown == [1, 2]


def test_growth_measures_charrnn_and_plain_torch() -> None:
    with apart.Process(as_charrnn=True) as ours, apart.Process(as_charrnn=False) as theirs:
        subject, sizes = subjects.Subject("rnn", SIZE, 1), subjects.Sizes(4, 5)
        kernels, our, its = growth.measure(subject, sizes, ours, theirs)
    assert kernels in subjects.kernels_of(subject)
    assert min(our.median, its.median) > 0
    assert growth.one("lstm", "batch_size", 7) == (subjects.Subject("lstm", 128, 2), subjects.Sizes(7, 50))


SEED = "4"  # its round has dropout and a small -keep, and a signal stops the first process


def forget_random_numbers() -> None:
    """Make a resumed run draw different random numbers from the uninterrupted one."""
    training_loop.restore_random_state = lambda *_: None  # type: ignore[attr-defined]


def lose_the_best() -> None:
    """Let -keep spare the latest checkpoint instead of the best one."""
    checkpoint_folder.best_of = lambda kept: list(kept)[-1]


def test_a_run_disturbed_by_soak_ends_as_if_undisturbed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(soak, "soak", partial(soak.soak, limit=2))
    soak.main(["--minutes", "0", "--seed", SEED])
    printed = capsys.readouterr().out
    assert f"seed {SEED}, gru: equal after" in printed
    figures = dict(line.split("\t") for line in printed.splitlines() if "\t" in line)
    assert figures["rounds"] == "1"
    assert all(int(figures[name]) for name in ("signals", "resumes", "checkpoints equal", "iterations equal"))


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (forget_random_numbers, "differs|is missing|instead of"),
        (lose_the_best, "is missing|best checkpoint was lost"),
    ],
)
def test_soak_detects_a_broken_program_and_names_the_seed(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    spoil: Callable[[], None],
    found: str,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where soak leaves the files of a failed round
    monkeypatch.setattr(soak, "soak", partial(soak.soak, limit=2, spoil=spoil))
    with pytest.raises(SystemExit) as ended:
        soak.main(["--minutes", "0", "--seed", SEED])
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert re.search(found, error), error
    assert f"again: python -m benchmarks soak --minutes 0 --seed {SEED}" in error
