"""The Recurrent Highway Network. charrnn's own training and evaluation code reproduces the values of the TensorFlow
program to 1e-10, and the model's parts equal plain loops over the paper's equations.

Every check of recorded values takes the sizes from the arrays, so the same tests run on recordings of other sizes:
pytest tests/originals/test_rhn.py --reference DIR
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from charrnn import registry
from charrnn.data.minibatches import Split
from charrnn.data.text import Text
from charrnn.data.vocabulary import Vocabulary, bits
from charrnn.evaluation.loss import Score, evaluate, summed_loss
from charrnn.evaluation.monte_carlo import SMALLEST, monte_carlo_losses, sample_losses
from charrnn.kernels import blocks, highway
from charrnn.settings.training import TrainingOptions
from charrnn.training.loop import Training
from tests.helpers.recorded import RecordedMinibatches, Recording, pairs, stream_score

rhn = registry.find("rhn").module

# arrays that are not compared, with the reason
LEFT_OUT = {
    "fwd/*/global_norm_original": "the program clips by a norm taken before the gradients of repeated tokens in the "
    "embedding are summed, a quirk of its TensorFlow version; we clip by the plain norm, global_norm_dense",
    "train/*_clip10/global_norm": "that norm; clipping at 10 has no effect, and the rest of these runs is compared",
    "train/*_clip0.5/*": "clipped by that same norm; clip0.5_dense is the same run with the plain norm",
    "fwd/*/embedding_slices_*": "the unsummed parts of grad/model/embedding, which is compared",
    "*noise_seed": "a seed for numpy's legacy generator; the masks drawn with it are recorded and used instead",
    "iter?/*": "minibatches, compared in test_text.py",
    "reader_enwik8/*": "splits of a file, compared in test_text.py",
    "reader_text8/*": "splits of a file, compared in test_text.py",
    "reader_ptb/*": "splits of a file, compared in test_words.py",
}


def variables(tensors: dict[str, Tensor], n_layers: int, depth: int) -> dict[str, list[Tensor]]:
    """Return the program's variables in order of creation, each as the parts of our tensors that it concatenates.

    tensors: our values or gradients, by parameter name. All parts are views.
    """
    parts = {"model/embedding": [tensors["embedding"]]}
    for l in range(n_layers):
        W, R, b = (tensors[f"{kind}.{l}"] for kind in "WRb")
        for d in range(depth):
            for k, gate in enumerate("ht"):
                parts[f"model/RHN{l}/{gate}_{d}/Linear/Matrix"] = [*([W[k]] if d == 0 else []), R[d, k]]
                parts[f"model/RHN{l}/{gate}_{d}/Linear/Bias"] = [b[d, k, 0]]
    if "softmax_w" in tensors:
        parts["model/softmax_w"] = [tensors["softmax_w"].T]
    return parts | {"model/softmax_b": [tensors["softmax_b"]]}


class Case:
    """A recorded model, built by charrnn with the recorded weights."""

    def __init__(self, path: Path) -> None:
        self.recording = recording = Recording(path)
        names = [key for key in recording.arrays if key.startswith("cfg/")]
        self.cfg = {name.removeprefix("cfg/"): recording.given(name).item() for name in names}
        self.n_layers, self.depth, self.T = self.cfg["num_layers"], self.cfg["depth"], self.cfg["num_steps"]

    def model(self, noise: bool) -> nn.Module:
        drops = {f"drop_{name}": self.cfg[f"drop_{name}"] if noise else 0.0 for name in "xiho"}
        sizes = (self.cfg["vocab_size"], self.cfg["hidden_size"], self.n_layers)
        own = {"depth": self.depth, "tie_embeddings": self.cfg["tied"], "init_bias": self.cfg["init_bias"], **drops}
        model = registry.find("rhn").create(*sizes, 0.0, **own).double()
        for name, parts in self.variables(dict(model.named_parameters())).items():
            rows = torch.split(self.recording.tensor(f"var/{name}"), [len(part) for part in parts])
            with torch.no_grad():
                for part, values in zip(parts, rows, strict=True):
                    part.copy_(values)
        return model

    def variables(self, tensors: dict[str, Tensor]) -> dict[str, list[Tensor]]:
        return variables(tensors, self.n_layers, self.depth)

    def compare(self, prefix: str, tensors: dict[str, Tensor]) -> None:
        for name, parts in self.variables(tensors).items():
            self.recording.compare(f"{prefix}/{name}", torch.cat(parts))

    def masks(self, prefix: str) -> Iterator[Any]:
        """Yield the recorded masks in the form that draw_masks returns."""
        arrays = [self.recording.tensor(f"{prefix}{name}").double() for name in "xiho"]
        for x, i, h, o in zip(*arrays, strict=True):
            yield rhn.Masks(
                x=x.transpose(0, 1),
                i=tuple(i.permute(2, 0, 1).split(1)),
                h=tuple(h.permute(2, 0, 1).split(1)),
                o=o[:, 0],
            )

    def train(self, model: nn.Module, split: Any, max_grad_norm: float) -> Training:
        options = TrainingOptions(
            optimizer="sgd",
            learning_rate=self.cfg["learning_rate"],
            weight_decay=self.cfg["weight_decay"],
            grad_clip=0.0,
            max_grad_norm=max_grad_norm,
            max_epochs=1,
        )
        return Training(model, split, None, options)

    def minibatches(self, count: int) -> RecordedMinibatches:
        return RecordedMinibatches(self.recording.given("x")[:count], self.recording.given("y")[:count])

    def split(self, stream: np.ndarray) -> Split:
        return split_of(stream, self.cfg["batch_size"], self.T)


def split_of(stream: np.ndarray, batch_size: int, seq_length: int) -> Split:
    """Lay out a stream as charrnn lays out a train.txt."""
    vocabulary = Vocabulary(tuple(range(int(stream.max()) + 1)), "bytes")
    text = Text(vocabulary, {}, {"train": stream}, called={}, fingerprint={}, report=lambda line: None)
    return text.split(batch_size, seq_length, 1.0, 0.0)["train"]


def feed(model: nn.Module, masks: Iterator[Any]) -> None:
    """Make the model use recorded masks instead of drawing them."""
    model.draw_masks = lambda x, generator=None: next(masks)


def check_variables(case: Case) -> None:
    model, cfg = case.model(noise=False), case.cfg
    names = case.variables(dict(model.named_parameters()))
    case.recording.compare("var_names", [f"{name}:0" for name in names])
    assert sum(p.numel() for p in model.parameters()) == cfg["nvars"]
    assert model.embedding.shape == (cfg["vocab_size"], cfg["in_size"])
    case.compare("var", dict(model.named_parameters()))


def check_minibatches(case: Case) -> None:
    split = case.split(case.recording.given("stream"))
    for which in (0, 1):
        case.recording.compare("xy"[which], torch.stack([split.batch(k)[which].T for k in range(len(split))]))


def check_forward(case: Case, kind: str) -> None:
    recording, model = case.recording, case.model(kind == "noise")
    if kind == "noise":
        feed(model, case.masks("noise_"))
    x, y = case.minibatches(1).batch(0)
    state = recording.tensor("init_state")
    with torch.no_grad():
        logits, (final,) = model(x, (state,))
    recording.compare(f"fwd/{kind}/logits", logits.transpose(0, 1).flatten(0, 1))
    recording.compare(f"fwd/{kind}/cost_no_wd", summed_loss(logits, y))
    recording.compare(f"fwd/{kind}/final_state", final)
    # the training loop computes the gradients with weight decay
    if kind == "noise":
        feed(model, case.masks("noise_"))
    training = case.train(model, case.minibatches(1), max_grad_norm=0.0)
    training.state = (state,)
    (record,) = training.run()
    recording.compare(f"fwd/{kind}/cost_with_wd", record.loss * case.T + record.penalty)
    recording.compare(f"fwd/{kind}/global_norm_dense", record.norm_before)
    case.compare(f"fwd/{kind}/grad", {name: p.grad for name, p in model.named_parameters()})


def check_training(case: Case, kind: str, clip: str) -> None:
    recording, model, run = case.recording, case.model(kind == "noise"), f"train/{kind}_{clip}"
    if kind == "noise":
        feed(model, case.masks("noise_"))
    bound = float(re.fullmatch(r"clip([\d.]+)(_dense)?", clip)[1])
    training = case.train(model, case.minibatches(3), bound)
    training.state = (recording.tensor("init_state"),)
    costs, norms, states = [], [], []
    for record in training.run():
        costs.append(record.loss * case.T + record.penalty)
        norms.append(record.norm_before)
        states.append(training.state[0])
        assert record.grad_norm == pytest.approx(min(bound, record.norm_before), rel=1e-12)
        if record.iteration in (1, 3):
            case.compare(f"{run}/step{record.iteration}", dict(model.named_parameters()))
    recording.compare(f"{run}/cost", costs)
    recording.compare(f"{run}/final_state", torch.stack(states))
    if clip.endswith("_dense"):
        recording.compare(f"{run}/global_norm", norms)


def check_epochs(case: Case) -> None:
    recording, model = case.recording, case.model(noise=True)
    stream = recording.given("epoch/stream")
    split = case.split(stream)
    for pass_name, score in (
        ("batched", evaluate(model, split)),
        ("full", stream_score(model, torch.from_numpy(stream).long())),
    ):
        recording.compare(f"epoch/ppl_{pass_name}", score.perplexity)
        recording.compare(f"epoch/bits_{pass_name}", bits(score.loss))

    def epoch(model: nn.Module) -> float:
        training = case.train(model, split, max_grad_norm=10.0)
        return float(np.exp(sum(r.loss + r.penalty / case.T for r in training.run()) / len(split)))

    feed(model, case.masks("epoch/drop_noise_"))
    recording.compare("epoch/ppl_train_drop", epoch(model))
    case.compare("epoch/var_after_drop", dict(model.named_parameters()))
    model = case.model(noise=False)
    recording.compare("epoch/ppl_train_nodrop", epoch(model))
    case.compare("epoch/var_after", dict(model.named_parameters()))
    recording.compare("epoch/ppl_batched_after", evaluate(model, split).perplexity)


def check_monte_carlo(case: Case) -> None:
    recording, model = case.recording, case.model(noise=True)
    tokens = recording.tensor("mc/stream").long()
    samples, generator = int(recording.given("mc/steps")), torch.Generator()
    feed(model, case.masks("mc/noise_"))
    probabilities = torch.stack(
        [(-sample_losses(model, *pairs(tokens), generator)[:, 0]).exp() for _ in range(samples)]
    )
    # the program's arrays also have an entry for the last token, which predicts nothing
    recording.compare("mc/probs", F.pad(probabilities, (0, 1)))
    feed(model, case.masks("mc/noise_"))
    score = Score.of(monte_carlo_losses(model, *pairs(tokens), samples, generator))
    slip = (score.loss * (len(tokens) - 1) - np.log(SMALLEST)) / len(tokens)
    recording.compare("mc/ppl", np.exp(slip))
    recording.compare("mc/bits", slip / np.log(2))


CHECKS: dict[str, Callable[[Case], None]] = {
    "variables": check_variables,
    "minibatches": check_minibatches,
    **{f"forward, {kind}": lambda case, kind=kind: check_forward(case, kind) for kind in ("noise", "ones")},
    **{
        f"training, {kind}, {clip}": lambda case, kind=kind, clip=clip: check_training(case, kind, clip)
        for kind in ("noise", "ones")
        for clip in ("clip10", "clip0.5_dense")
    },
    "epochs": check_epochs,
    "Monte Carlo": check_monte_carlo,
}


def check_learning_rates(recording: Recording) -> None:
    options = TrainingOptions(
        optimizer="sgd",
        learning_rate=recording.given("cfg/learning_rate").item(),
        learning_rate_decay=1 / recording.given("cfg/lr_decay").item(),
        learning_rate_decay_after=recording.given("cfg/max_epoch").item(),
        max_epochs=recording.given("cfg/epochs").item(),
    )
    split = split_of(np.arange(7), 1, 3)
    model = registry.find("rhn").create(7, 2, 1, 0.0, depth=1)
    rates = [record.learning_rate for record in Training(model, split, None, options).run()]
    assert len(split) > 1, "some rates must hold for more than one iteration"
    recording.compare("lr", rates[:: len(split)])
    assert rates[:: len(split)] == rates[len(split) - 1 :: len(split)]
    recording.compare("lr_float32", np.float32(rates[:: len(split)]))


def check_masks(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that the recorded uniform numbers, used in place of torch's, give the recorded masks."""
    x = recording.tensor("noise_example/x").T.long()
    T, B = x.shape
    _, _, in_size, n_layers = recording.arrays["noise_example/noise_i"].shape
    rnn_size = recording.arrays["noise_example/noise_h"].shape[2]
    drops = dict(
        zip(("drop_x", "drop_i", "drop_h", "drop_o"), recording.given("noise_example/drop").tolist(), strict=True)
    )
    model = registry.find("rhn").create(int(x.max()) + 1, rnn_size, n_layers, 0.0, **drops)
    model.in_sizes = [in_size] * n_layers  # the recorded sizes do not fit together in one model
    names = ("noise_x", "noise_i", "noise_h", "noise_o")
    masks: dict[str, list[Tensor]] = {name: [] for name in names}
    before = []
    for seed in recording.given("noise_example/seeds"):
        numpy = np.random.RandomState(seed)
        shapes = [(B, T, 1), (B, in_size, n_layers), (B, rnn_size, n_layers), (B, 1, rnn_size)]
        u_x, u_i, u_h, u_o = (torch.from_numpy(numpy.random_sample(shape)) for shape in shapes)
        before.append(u_x)
        uniform = [u_x[..., 0].T, *u_i.permute(2, 0, 1).split(1), *u_h.permute(2, 0, 1).split(1), u_o[:, 0]]
        given = iter(uniform)

        def rand(shape: tuple[int, ...], given: Iterator[Tensor] = given, **rest: Any) -> Tensor:
            u = next(given)
            assert u.shape == shape
            return u

        with monkeypatch.context() as patch:
            patch.setattr(torch, "rand", rand)
            drawn = model.draw_masks(x)
        assert next(given, None) is None
        masks["noise_x"].append(drawn.x.transpose(0, 1))
        masks["noise_i"].append(torch.cat(drawn.i).permute(1, 2, 0))
        masks["noise_h"].append(torch.cat(drawn.h).permute(1, 2, 0))
        masks["noise_o"].append(drawn.o.unsqueeze(1))
    recording.compare("noise_example/uniform_x", torch.stack(before))
    for name in names:
        recording.compare(f"noise_example/{name}", torch.stack(masks[name]))
    for untied, tied in zip(
        *(recording.tensor(f"noise_example/noise_x{end}") for end in ("_before_tying", "")), strict=True
    ):
        assert torch.equal(rhn.tie_repeats(untied[..., 0].T, x, int(x.max()) + 1), tied[..., 0].T)
        assert not torch.equal(untied, tied)


def check_parameter_counts(recording: Recording) -> None:
    counts = []
    for name in recording.given("param_count_names"):
        shapes = {key: tuple(shape) for key, shape in json.loads(str(recording.given(f"shapes/{name}")))}
        n_layers = 1 + max(int(key.split("/")[1][3:]) for key in shapes if key.startswith("model/RHN"))
        depth = sum(bool(re.search(r"RHN0/h_\d+/Linear/Bias", key)) for key in shapes)
        tied = not any(key.startswith("model/softmax_w") for key in shapes)
        input_size = shapes[next(key for key in shapes if key.startswith("model/embedding"))][0]
        rnn_size = next(shape for key, shape in shapes.items() if "Bias" in key)[0]
        with torch.device("meta"):
            model = registry.find("rhn").create(input_size, rnn_size, n_layers, 0.0, depth=depth, tie_embeddings=tied)
        ours = variables(dict(model.named_parameters()), n_layers, depth)
        assert {key.removesuffix(":0"): shape for key, shape in shapes.items()} == {
            key: tuple(torch.cat(parts).shape) for key, parts in ours.items()
        }
        counts.append(sum(p.numel() for p in model.parameters()))
    recording.compare("param_counts", counts)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = Path(metafunc.config.getoption("--reference"))
    schedules = sorted(folder.glob("rhn_schedule*.npz"))
    files = {"path": sorted(set(folder.glob("rhn_*.npz")) - set(schedules)), "schedule": schedules}
    for name, paths in files.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, paths, ids=lambda path: path.stem)


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS.keys())
def test_equals_the_original(path: Path, check: Callable[[Case], None], kernels: str) -> None:
    check(Case(path))


def left_out(recording: Recording) -> set[str]:
    return {key for key in recording.arrays if any(fnmatch(key, pattern) for pattern in LEFT_OUT)}


def test_every_array_is_compared_or_left_out_with_a_reason(path: Path) -> None:
    case = Case(path)
    for check in CHECKS.values():
        check(case)
    assert case.recording.arrays.keys() - case.recording.seen == left_out(case.recording)


def test_the_comparison_detects_a_wrong_value(path: Path) -> None:
    for key in (
        "x",
        "fwd/noise/logits",
        "fwd/ones/grad/model/embedding",
        "train/noise_clip10/step3/model/softmax_b",
        "train/ones_clip0.5_dense/global_norm",
        "epoch/ppl_full",
        "epoch/var_after_drop/model/RHN0/t_0/Linear/Matrix",
        "mc/probs",
        "mc/ppl",
    ):
        case = Case(path)
        array = case.recording.arrays[key] = case.recording.arrays[key].copy()
        off = np.arange(array.size).reshape(array.shape) == array.size // 2
        array += np.where(off, 1 if array.dtype.kind == "i" else 1e-9 * np.abs(array).max(), 0).astype(array.dtype)
        with pytest.raises(AssertionError):
            for check in CHECKS.values():
                check(case)


def test_schedule_masks_and_sizes_equal_the_originals(schedule: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = Recording(schedule)
    check_learning_rates(recording)
    check_masks(recording, monkeypatch)
    check_parameter_counts(recording)
    assert recording.arrays.keys() - recording.seen == left_out(recording)


# Without recordings


def make(*sizes: int, seed: int = 0, **own: Any) -> nn.Module:
    """Create a model in float64, with weights so large that every part of it affects the result."""
    torch.manual_seed(seed)
    input_size, rnn_size, n_layers = sizes
    return (
        registry.find("rhn").create(input_size, rnn_size, n_layers, 0.0, init_scale=0.5, init_bias=-0.5, **own).double()
    )


def text(T: int, B: int, input_size: int, seed: int = 0) -> Tensor:
    return torch.randint(input_size, (T, B), generator=torch.Generator().manual_seed(seed))


DROPS = {"drop_x": 0.2, "drop_i": 0.4, "drop_h": 0.3, "drop_o": 0.5}
MODELS = {
    "untied, few tokens, 2 layers": ((5, 7, 2), {"depth": 3}),
    "untied, many tokens": ((9, 6, 1), {"depth": 2}),
    "tied, few tokens, 2 layers": ((4, 6, 2), {"depth": 1, "tie_embeddings": True}),
    "separate masks, 2 layers": ((5, 7, 2), {"depth": 3, "share_masks": False}),
}


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def model(request: pytest.FixtureRequest) -> nn.Module:
    sizes, own = request.param
    return make(*sizes, **own, **DROPS)


def paper(model: nn.Module, x: Tensor, s: Tensor, masks: Any) -> tuple[Tensor, Tensor]:
    """Compute logits (T, B, V) and the state row by row and step by step, with nothing batched or shared."""

    def sigmoid(a: Tensor) -> Tensor:
        return 1 / (1 + (-a).exp())

    s, logits = s.clone(), []
    L, B, _ = s.shape
    for step in range(len(x)):
        row_logits = []
        for row in range(B):
            e = model.embedding[x[step, row]] * masks.x[step, row]
            for l in range(L):
                W, R, b, i, h_mask = model.W[l], model.R[l], model.b[l], masks.i[l], masks.h[l]
                for d in range(len(R)):
                    into_h = (s[l, row] * h_mask[0, row]) @ R[d, 0] + b[d, 0, 0]
                    into_t = (s[l, row] * h_mask[-1, row]) @ R[d, 1] + b[d, 1, 0]
                    if d == 0:
                        into_h = into_h + (e * i[0, row]) @ W[0]
                        into_t = into_t + (e * i[-1, row]) @ W[1]
                    h, t = 2 * sigmoid(2 * into_h) - 1, sigmoid(into_t)
                    s[l, row] = h * t + s[l, row] * (1 - t)
                e = s[l, row].clone()
            decoder = model.embedding if model.softmax_w is None else model.softmax_w
            row_logits.append(decoder @ (e * masks.o[row]) + model.softmax_b)
        logits.append(torch.stack(row_logits))
    return torch.stack(logits), s


def random_state(model: nn.Module, B: int) -> Tensor:
    return torch.rand(len(model.R), B, model.rnn_size, dtype=torch.float64) - 0.5


@torch.no_grad()
@pytest.mark.parametrize("use_kernel", [True, False])
def test_equals_the_paper_step_by_step(model: nn.Module, use_kernel: bool, kernels: str) -> None:
    x, state = text(6, 3, len(model.embedding)), random_state(model, 3)
    masks = model.draw_masks(x, torch.Generator().manual_seed(1))
    model.use_kernel = use_kernel
    logits, (final,) = model(x, (state,), masks=masks)
    expected, expected_final = paper(model, x, state, masks)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(final, expected_final, rtol=0, atol=1e-13)
    # evaluation without masks must equal masks of ones
    ones = rhn.Masks(*(torch.ones_like(m) if isinstance(m, Tensor) else tuple(map(torch.ones_like, m)) for m in masks))
    torch.testing.assert_close(model.eval()(x, (state,))[0], paper(model, x, state, ones)[0], rtol=0, atol=1e-13)


@torch.no_grad()
def test_three_chunks_with_carried_state_equal_one_pass(model: nn.Module, kernels: str) -> None:
    x, state = text(11, 3, len(model.embedding)), (random_state(model, 3),)
    model.eval()
    whole, final = model(x, state)
    chunks = []
    for chunk in x.split([4, 1, 6]):
        logits, state = model(chunk, state)
        chunks.append(logits)
    torch.testing.assert_close(torch.cat(chunks), whole, rtol=0, atol=1e-13)
    torch.testing.assert_close(state, final, rtol=0, atol=1e-13)


@torch.no_grad()
def test_step_equals_forward(model: nn.Module) -> None:
    x = text(5, 3, len(model.embedding))
    whole, final = model.eval()(x)
    state = None
    for x_t, expected in zip(x, whole, strict=True):
        logits, state = model.step(x_t, state)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(state, final, rtol=0, atol=1e-13)


def test_gradients_equal_finite_differences(kernels: str) -> None:
    model = make(4, 3, 2, depth=2, **DROPS)
    x, names = text(4, 2, 4), [name for name, _ in model.named_parameters()]
    masks = model.draw_masks(x, torch.Generator().manual_seed(2))

    def logits(state: Tensor, *values: Tensor) -> Tensor:
        parameters = dict(zip(names, values, strict=True))
        return torch.func.functional_call(model, parameters, (x, (state,)), {"masks": masks})[0]

    inputs = [random_state(model, 2), *(p.detach().clone() for p in model.parameters())]
    assert torch.autograd.gradcheck(logits, [tensor.requires_grad_() for tensor in inputs])


def arguments(M: int, T: int, B: int, I: int, S: int, D: int, masked: bool) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(T + 10 * B + 100 * M)
    shapes = [(M, T, B, I), (B, S), (2, I, S), (D, 2, S, S), (D, 2, 1, S)]
    tensors = [torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5 for shape in shapes]
    keep = torch.rand((M, B, S), generator=generator) < 0.7
    return [tensor.requires_grad_() for tensor in tensors], keep.double() / 0.7 if masked else None


SHAPES = {
    "usual": (5, 3, 4, 6, 3),
    "one step": (1, 3, 4, 6, 3),
    "one row": (5, 1, 4, 6, 3),
    "depth one": (5, 3, 6, 4, 1),
    "one of everything": (1, 1, 1, 1, 1),
    "rows split into blocks": (30, 77, 4, 6, 2),
}


@pytest.mark.parametrize("block", [blocks.BLOCK, 6, 1])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("M", [1, 2])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_kernel_equals_the_loop(
    shape: Any, M: int, masked: bool, block: int, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", block)
    inputs, n = arguments(M, *shape, masked=masked)
    expected = rhn.loop(*inputs, n)
    upstream = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    expected_gradients = torch.autograd.grad(expected, inputs, upstream)
    actual = highway.scan(*inputs, n=n)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    for _ in range(2):  # a second pass through a retained graph must give the same gradients
        gradients = torch.autograd.grad(actual, inputs, upstream, retain_graph=True)
        for ours, theirs in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(highway.scan(*inputs, n=n), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("M", [1, 2])
def test_kernel_passes_gradcheck(M: int, kernels: str) -> None:
    inputs, n = arguments(M, 3, 2, 2, 3, 2, masked=True)
    assert torch.autograd.gradcheck(lambda *tensors: highway.scan(*tensors, n=n), inputs)


def test_gradcheck_detects_a_wrong_gradient(kernels: str) -> None:
    inputs, n = arguments(1, 3, 2, 2, 3, 2, masked=True)

    def wrong(x: Tensor, *rest: Tensor) -> Tensor:
        return highway.scan(x.detach() + 0.5 * (x - x.detach()), *rest, n=n)

    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(wrong, inputs)


def test_differentiating_kernel_gradients_is_an_error(kernels: str) -> None:
    inputs, n = arguments(1, 2, 2, 2, 2, 2, masked=True)
    gradients = torch.autograd.grad(highway.scan(*inputs, n=n).square().sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradients[0].sum().backward()


def test_each_token_of_a_row_has_the_mask_of_its_first_occurrence() -> None:
    x = text(30, 4, 6)
    mask = torch.rand(30, 4)
    tied = rhn.tie_repeats(mask, x, 6)
    for row in range(4):
        first: dict[int, float] = {}
        for step in range(30):
            assert tied[step, row] == first.setdefault(int(x[step, row]), float(mask[step, row]))
    assert len(tied.unique()) == sum(len(x[:, row].unique()) for row in range(4)), "rows must have independent masks"


def test_masks_have_the_right_rates_and_shapes() -> None:
    T, B, V, S, L = 1, 1500, 5, 40, 2
    for share_masks, M in ((True, 1), (False, 2)):
        model = registry.find("rhn").create(V, S, L, 0.9, share_masks=share_masks, **DROPS).double()
        masks = model.draw_masks(text(T, B, V), torch.Generator().manual_seed(0))
        assert masks.x.shape == (T, B, 1)
        assert [m.shape for m in masks.i] == [(M, B, V), (M, B, S)]
        assert [m.shape for m in masks.h] == [(M, B, S)] * L
        assert masks.o.shape == (B, S)
        for kind, rate in (("x", 0.2), ("i", 0.4), ("h", 0.3), ("o", 0.5)):
            drawn = getattr(masks, kind)
            for mask in drawn if isinstance(drawn, tuple) else (drawn,):
                values = torch.tensor([0, 1 / (1 - rate)], dtype=torch.float64)
                torch.testing.assert_close(mask.unique(), values, rtol=1e-15, atol=0)
                sigma = (rate * (1 - rate) / mask.numel()) ** 0.5
                assert abs((mask == 0).double().mean() - rate) < 5 * sigma
        assert not torch.equal(masks.h[0], masks.h[1])
        if M == 2:
            assert not torch.equal(masks.h[0][0], masks.h[0][1])


def test_the_models_own_rates_default_to_dropout() -> None:
    model = registry.find("rhn").create(5, 4, 1, 0.25, drop_h=0.5, drop_o=0.0)
    assert model.drops == (0.25, 0.25, 0.5, 0.0)


def test_a_rate_of_zero_uses_no_random_numbers() -> None:
    x, generator = text(6, 3, 5), torch.Generator().manual_seed(0)
    before = generator.get_state()
    masks = registry.find("rhn").create(5, 4, 2, 0.0).draw_masks(x, generator)
    assert torch.equal(generator.get_state(), before)
    for mask in (masks.x, *masks.i, *masks.h, masks.o):
        assert (mask == 1).all()
    with_others = registry.find("rhn").create(5, 4, 2, 0.0, drop_o=0.5).draw_masks(x, generator)
    alone = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(with_others.o, (alone < 0.5) * 2.0)


def test_masks_are_drawn_in_training_and_not_in_evaluation() -> None:
    model, x = make(5, 7, 2, **DROPS), text(6, 3, 5)
    torch.manual_seed(7)
    first, second = model(x)[0], model(x)[0]
    assert not torch.equal(first, second)
    torch.manual_seed(7)
    assert torch.equal(model(x)[0], first)
    torch.manual_seed(7)
    assert torch.equal(model(x, masks=model.draw_masks(x))[0], first)
    model.eval()
    before = torch.get_rng_state()
    assert torch.equal(model(x)[0], model(x)[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_initial_weights_have_the_right_distribution() -> None:
    model = registry.find("rhn").create(30, 20, 2, 0.0, init_bias=-3.0)
    for name, p in model.named_parameters():
        values = p[:, 0] if name.startswith("b.") else p
        assert 0.03 < values.abs().max() <= 0.04, name
        assert abs(values.mean()) < 0.02 and values.min() < 0 < values.max(), name
    assert all((b[:, 1] == -3).all() for b in model.b)
    model = registry.find("rhn").create(30, 20, 2, 0.0, init_scale=0.2, other_bias="constant")
    assert all((b[:, 0] == 0).all() and (b[:, 1] == -2).all() for b in model.b)
    assert (model.softmax_b == 0).all()
    assert 0.19 < model.R[0].abs().max() <= 0.2


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"depth": 0}, "depth must be at least 1, not 0"),
        ({"drop_x": 1.0}, r"drop_x must be at least 0 and below 1, not 1"),
        ({"drop_o": -0.5}, r"drop_o must be at least 0 and below 1, not -0.5"),
        ({"drop_h": float("nan")}, r"drop_h must be at least 0 and below 1, not nan"),
        ({"init_scale": -1.0}, "init_scale must be at least 0, not -1"),
    ],
)
def test_options_out_of_range_are_errors(own: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        rhn.create(5, 4, 1, 0.0, **own)
