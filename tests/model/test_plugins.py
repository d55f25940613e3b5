"""What charrnn train says and does with models of a user's own that break the contract, or that raise errors."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from charrnn.checkpoints.checkpoint import Checkpoint
from tests.helpers.command import QUICK, charrnn, one_line, run, write_text
from tests.helpers.runs import same

# a table of pairs of tokens; every case below changes a line of it
PLUGIN = """\
import torch
from torch import nn


class Table(nn.Module):
    def __init__(self, input_size):
        super().__init__()
        self.input_size = input_size
        self.table = nn.Embedding(input_size, input_size)

    def forward(self, x, state=None):
        h = x.new_zeros(1, x.shape[1], 3, dtype=torch.float32) if state is None else state[0]
        logits = self.table(x)
        return logits, (h,)


def create(input_size, rnn_size, n_layers, dropout):
    return Table(input_size)
"""
RETURN = "return logits, (h,)"
LOGITS = "logits = self.table(x)"
TABLE = "self.table = nn.Embedding(input_size, input_size)"
TRAIN = ("train", "-data_dir", "data", "-model", "mine", *QUICK, "-threads", 1, "-max_epochs", 1)


def plugin(folder: Path, *replacements: str) -> Path:
    """Write the plugin with some of its lines replaced. Return the folder to run commands in."""
    source = PLUGIN
    for old, new in zip(replacements[::2], replacements[1::2], strict=True):
        assert old in source
        source = source.replace(old, new)
    (folder / "models").mkdir(parents=True, exist_ok=True)
    (folder / "models" / "mine.py").write_text(source)
    write_text(folder / "data")
    return folder


def test_the_plugin_itself_trains_and_resumes(tmp_path: Path) -> None:
    run(plugin(tmp_path), *TRAIN)
    run(tmp_path, "train", "-resume", "cv", "-max_epochs", 2)


# errors that charrnn has a message of its own for, where they are not a model's
ERRORS = {
    "a full disk": 'OSError(28, "no room in the tape")',
    "a broken disk": 'OSError(5, "the tape is broken")',
    "a closed pipe": 'BrokenPipeError("the tape was cut")',
    "memory": 'RuntimeError("not enough memory cells")',
    "an allocation": 'RuntimeError("the tape has a bad_alloc mark")',
    "a failed allocation": 'RuntimeError("can\'t allocate memory cells")',
}
RAISE = "raise {}"
PLACES = {
    "while it is imported": ("import torch\n", f"import torch\n\n{RAISE}\n"),
    "while it is built": ("return Table(input_size)", RAISE),
    "while it computes": (LOGITS, RAISE),
    "after some iterations": (
        LOGITS,
        "self.n = getattr(self, 'n', 0) + 1\n        if self.n > 30: " + RAISE + f"\n        {LOGITS}",
    ),
    "in the backward pass": (
        LOGITS,
        f"def fail(gradient): {RAISE}\n        {LOGITS}\n        if logits.requires_grad: logits.register_hook(fail)",
    ),
    "while it is validated": (LOGITS, f"if not self.training and len(x) > 1: {RAISE}\n        {LOGITS}"),
}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("place", PLACES)
def test_an_error_of_a_models_own_keeps_its_traceback(place: str, error: str, tmp_path: Path) -> None:
    old, new = PLACES[place]
    plugin(tmp_path, old, new.format(ERRORS[error]))
    its_own(tmp_path, *TRAIN)


def its_own(folder: Path, *args: object) -> None:
    """Assert that a command ends with an error that the plugin raises itself."""
    with pytest.raises((OSError, RuntimeError, UnicodeEncodeError)) as caught:
        run(folder, *args)
    assert caught.traceback[-1].path.name in ("mine.py", "elsewhere.py")


def test_text_that_a_model_cannot_encode_is_not_taken_for_the_output(tmp_path: Path) -> None:
    its_own(plugin(tmp_path, LOGITS, '"\\udc80".encode("utf-8")'), *TRAIN)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(
    "args",
    [
        ("sample", "cv", "-length", 5),
        ("sample", "cv", "-length", 5, "-output", "text"),
        ("sample", "cv", "-primetext", "The ", "-length", 5),
        ("eval", "cv"),
        ("train", "-resume", "cv", "-max_epochs", 2),
        ("train", *TRAIN[1:], "-init_from", "cv"),
    ],
    ids=lambda args: " ".join(map(str, args[:1] + args[-2:])),
)
def test_so_does_an_error_when_a_model_is_used_again(args: tuple[object, ...], error: str, tmp_path: Path) -> None:
    run(plugin(tmp_path), *TRAIN)
    plugin(tmp_path, LOGITS, f"raise {ERRORS[error]}")
    its_own(tmp_path, *args)


@pytest.mark.parametrize("error", ERRORS)
def test_so_does_an_error_in_a_package_that_the_model_imports(
    error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = "def create(input_size, rnn_size, n_layers, dropout):"
    plugin(tmp_path, create, "def build(input_size):", LOGITS, f"raise {ERRORS[error]}")
    (tmp_path / "models" / "mine.py").rename(tmp_path / "elsewhere.py")
    (tmp_path / "models" / "mine.py").write_text(
        f"from elsewhere import build\n{create}\n    return build(input_size)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "elsewhere", raising=False)
    its_own(tmp_path, *TRAIN)


def test_a_models_own_error_ends_the_command_with_its_traceback(tmp_path: Path) -> None:
    plugin(tmp_path, LOGITS, 'raise BrokenPipeError("the tape was cut")')
    message = charrnn(*TRAIN, cwd=tmp_path, code=1).stderr.decode()
    assert "Traceback" in message and "models/mine.py" in message and message.endswith("the tape was cut\n")


def test_a_model_that_runs_out_of_memory_is_still_explained(tmp_path: Path) -> None:
    done = run(plugin(tmp_path, LOGITS, f"torch.empty(2**45); {LOGITS}"), *TRAIN, code=1)
    assert "charrnn: out of memory: this run needs about" in done.errors[-1]


def test_a_size_that_overflows_is_told_from_a_models_own_error(tmp_path: Path) -> None:
    plugin(tmp_path, "return Table(input_size)", 'raise RuntimeError("the tape is in overflow")')
    its_own(tmp_path, *TRAIN)


# parts that make copy.deepcopy fail, each in its own way, or make it return the model itself
UNCOPYABLE = {
    "a lock": "self.lock = threading.Lock()",
    "a tensor with a history": "self.kept = self.table.weight * 2",
    "a generator": "self.numbers = (n for n in range(3))",
    "an error of its own": "self.__class__.__deepcopy__ = lambda self, memo: {}['copy']",
    "itself as its copy": "self.__class__.__deepcopy__ = lambda self, memo: self",
}


@pytest.mark.parametrize("part", UNCOPYABLE.values(), ids=UNCOPYABLE)
def test_a_model_that_cannot_be_copied_trains_without_a_trial_of_threads(part: str, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run(plugin(tmp_path / "a"), *TRAIN, "-threads", 2)
        plugin(tmp_path / "b", "import torch\n", "import threading\nimport torch\n", TABLE, f"{TABLE}; {part}")
        done = run(tmp_path / "b", *TRAIN, "-threads", 0, "-kernels", "auto", "-sample_length", 10)
        assert any("cannot be copied" in line and "2 threads" in line for line in done.errors)
        expected, found = (Checkpoint.load(tmp_path / folder / "cv") for folder in "ab")
        assert found.options.threads == 2
        same(found.weights, expected.weights)
        run(tmp_path / "b", "train", "-resume", "cv", "-max_epochs", 1.1)
        run(tmp_path / "b", "sample", "cv", "-length", 5)
        run(tmp_path / "b", "eval", "cv")
        assert "-dynamic" in one_line(run(tmp_path / "b", "eval", "cv", "-dynamic", 0.1, "-gpuid", -1, code=1))
    finally:
        torch.set_num_threads(before)
