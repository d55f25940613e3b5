"""The commands with a user's own model that breaks the contract, raises errors or cannot be copied."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import charrnn as api
from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.compute import random_state
from tests.helpers.command import QUICK, charrnn, one_line, run, write_text
from tests.helpers.runs import same

# a model that is a table of token pairs; the cases below change lines of it
PLUGIN = """\
import torch

import charrnn as api
from charrnn.compute import random_state
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


# lines to replace, each with its replacement, and last some words of the expected message
RETURNS = {
    "only logits": (RETURN, "return logits", "forward returns"),
    "nothing": (RETURN, "return None", "forward returns"),
    "three values": (RETURN, "return logits, (h,), None", "forward returns"),
    "a dict": (RETURN, "return {'logits': logits, 'state': (h,)}", "forward returns"),
    "a state that is a tensor": (RETURN, "return logits, h", "state"),
    "a state that is a list": (RETURN, "return logits, [h]", "state"),
    "a state that is None": (RETURN, "return logits, None", "state"),
    "a state of numbers": (RETURN, "return logits, (1, 2)", "state"),
    "a nested state": (RETURN, "return logits, ((h, h),)", "state"),
    "a state of arrays": (RETURN, "return logits, (h.numpy(),)", "state"),
    "a state with the batch last": (RETURN, "return logits, (h.mT,)", "state"),
    "a state with the batch first": (RETURN, "return logits, (h.transpose(0, 1),)", "state"),
    "a state of one dimension": (RETURN, "return logits, (h[0, :, 0],)", "state"),
    "a state without dimensions": (RETURN, "return logits, (h.sum(),)", "state"),
    "a sparse state": (RETURN, "return logits, (h.to_sparse(),)", "state"),
    "twice as many logits": (RETURN, "return torch.cat([logits, logits], -1), (h,)", "logits"),
    "too few logits": (RETURN, "return logits[..., :-1], (h,)", "logits"),
    "logits of the last step": (RETURN, "return logits[-1], (h,)", "logits"),
    "logits of the last step alone": (RETURN, "return logits[-1:], (h,)", "logits"),
    "logits with the batch first": (RETURN, "return logits.transpose(0, 1), (h,)", "logits"),
    "logits that are flattened": (RETURN, "return logits.flatten(0, 1), (h,)", "logits"),
    "logits with the tokens in the middle": (RETURN, "return logits.transpose(1, 2), (h,)", "logits"),
    "logits of four dimensions": (RETURN, "return logits[None], (h,)", "logits"),
    "one number": (RETURN, "return logits.mean(), (h,)", "logits"),
    "integers": (RETURN, "return logits.round().long(), (h,)", "logits"),
    "token ids": (RETURN, "return logits.argmax(-1), (h,)", "logits"),
    "complex logits": (RETURN, "return torch.complex(logits, logits), (h,)", "logits"),
    "logits as an array": (RETURN, "return logits.detach().numpy(), (h,)", "logits"),
    "logits as a list": (RETURN, "return list(logits), (h,)", "logits"),
    "sparse logits": (RETURN, "return logits.to_sparse(), (h,)", "logits"),
    "logits without a gradient": (RETURN, "return logits.detach(), (h,)", "gradient"),
    "logits computed without gradients": (LOGITS, "with torch.no_grad(): logits = self.table(x)", "gradient"),
}

# the same for a model's parts
PARTS = {
    "no parameters": (TABLE, "self.table = lambda x: torch.zeros(*x.shape, self.input_size)", "no parameters"),
    "only buffers": (
        TABLE,
        "self.register_buffer('weight', torch.zeros(input_size, input_size))",
        LOGITS,
        "logits = self.weight[x]",
        "no parameters",
    ),
    "only frozen parameters": (TABLE, TABLE + ".requires_grad_(False)", "gradient"),
    "sparse gradients": (TABLE, "self.table = nn.Embedding(input_size, input_size, sparse=True)", "sparse"),
    "complex parameters": (
        TABLE,
        "self.phase = nn.Parameter(torch.zeros(3, dtype=torch.complex64)); " + TABLE,
        LOGITS,
        "logits = self.table(x) + self.phase.abs().sum()",
        "complex",
    ),
}


@pytest.mark.parametrize("kernels", ["torch", "auto"])
@pytest.mark.parametrize("case", RETURNS | PARTS)
def test_a_model_that_breaks_the_contract_is_refused_in_one_sentence(case: str, kernels: str, tmp_path: Path) -> None:
    *replacements, words = (RETURNS | PARTS)[case]
    threads = ("-threads", 0) if kernels == "auto" else ()
    done = run(plugin(tmp_path, *replacements), *TRAIN, *threads, "-kernels", kernels, code=1)
    message = done.errors[-1]
    assert message.startswith("charrnn: the model mine: ") and words in message
    assert len(done.errors) == 1 or "gradient" in words + case
    assert not done.out and not list((tmp_path / "cv").glob("*.pt"))


# errors that charrnn explains in its own words, unless a model raises them itself
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
def test_an_error_that_a_model_raises_itself_keeps_its_traceback(place: str, error: str, tmp_path: Path) -> None:
    old, new = PLACES[place]
    plugin(tmp_path, old, new.format(ERRORS[error]))
    its_own(tmp_path, *TRAIN)


def its_own(folder: Path, *args: object) -> None:
    """Assert that a command ends with an error that the plugin raises itself."""
    with pytest.raises((OSError, RuntimeError, UnicodeEncodeError)) as caught:
        run(folder, *args)
    assert caught.traceback[-1].path.name in ("mine.py", "elsewhere.py")


def test_an_encoding_error_in_a_model_is_not_blamed_on_the_output(tmp_path: Path) -> None:
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
def test_an_error_when_a_saved_model_is_used_keeps_its_traceback(
    args: tuple[object, ...], error: str, tmp_path: Path
) -> None:
    run(plugin(tmp_path), *TRAIN)
    plugin(tmp_path, LOGITS, f"raise {ERRORS[error]}")
    its_own(tmp_path, *args)


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_in_a_package_that_the_model_imports_keeps_its_traceback(
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


def test_the_command_prints_the_traceback_of_a_models_own_error(tmp_path: Path) -> None:
    plugin(tmp_path, LOGITS, 'raise BrokenPipeError("the tape was cut")')
    message = charrnn(*TRAIN, cwd=tmp_path, code=1).stderr.decode()
    assert "Traceback" in message and "models/mine.py" in message and message.endswith("the tape was cut\n")


@pytest.mark.parametrize("error", ["SystemExit()", "SystemExit('\\x1b[31mred')"])
def test_a_model_cannot_end_the_command_silently(error: str, tmp_path: Path) -> None:
    plugin(tmp_path, LOGITS, f"raise {error}")
    message = charrnn(*TRAIN, cwd=tmp_path, code=1).stderr.decode()
    assert "Traceback" in message and "models/mine.py" in message and "\x1b" not in message


def test_a_model_whose_logits_are_not_finite_is_refused_before_the_first_iteration(tmp_path: Path) -> None:
    done = run(plugin(tmp_path, LOGITS, LOGITS + "; logits = logits * float('nan')"), *TRAIN, code=1)
    assert "the model mine: its logits are not finite before training: check its initial weights" in done.errors[-1]


def test_the_message_for_a_model_that_runs_out_of_memory_says_how_much_is_needed(tmp_path: Path) -> None:
    done = run(plugin(tmp_path, LOGITS, f"torch.empty(2**45); {LOGITS}"), *TRAIN, code=1)
    assert "charrnn: out of memory: this run needs about" in done.errors[-1]


def test_a_models_own_error_about_an_overflow_is_not_taken_for_a_size_that_is_too_large(tmp_path: Path) -> None:
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
        resumed = run(tmp_path / "b", "train", "-resume", "cv", "-max_epochs", 1.1)
        assert not any("cannot be copied" in line for line in resumed.errors), "nothing is timed"
        run(tmp_path / "b", "sample", "cv", "-length", 5)
        run(tmp_path / "b", "eval", "cv")
        assert "-dynamic" in one_line(run(tmp_path / "b", "eval", "cv", "-dynamic", 0.1, "-gpuid", -1, code=1))
    finally:
        torch.set_num_threads(before)


INIT = f"{TABLE}; "
STATE = "1, x.shape[1], 3"

# models whose checkpoint cannot be read back, or gives a different model: lines with their replacements, and last some
# words of the message
UNREADABLE = {
    "extra state": (
        TABLE,
        f"{TABLE}\n    def get_extra_state(self): return [1]\n    def set_extra_state(self, state): pass",
        "_extra_state",
    ),
    "extra state as a tensor that is read": (
        TABLE,
        f"{TABLE}; self.n = 0\n    def get_extra_state(self): return torch.tensor(self.n)\n"
        "    def set_extra_state(self, state): self.n = int(state)",
        "cannot be read back",
    ),
    "a state that grows with the text": (
        RETURN,
        "return logits, (torch.cat([h, logits[..., :3].detach()]),)",
        "its shapes are",
    ),
    "a state that grows with each call": (
        RETURN,
        "return logits, (h if state is None else torch.cat([h, h[:1]]),)",
        "its shapes are",
    ),
    "a state of more and more tensors": (RETURN, "return logits, (state or ()) + (h,)", "its shapes are"),
    "a complex state": ("dtype=torch.float32", "dtype=torch.complex64", "ComplexFloatStorage"),
    "a parameter made in forward": (
        LOGITS,
        "self.w = getattr(self, 'w', None) or nn.Parameter(torch.zeros(1)); " + LOGITS,
        "Unexpected key",
    ),
    "a buffer made in forward": (LOGITS, "self.register_buffer('n', torch.ones(1)); " + LOGITS, "Unexpected key"),
    "a buffer that grows": (
        TABLE,
        INIT + "self.register_buffer('n', torch.zeros(0))",
        LOGITS,
        "self.n = torch.cat([self.n, torch.ones(1)]); " + LOGITS,
        "size mismatch",
    ),
    "a complex buffer": (TABLE, INIT + "self.register_buffer('n', torch.zeros(2, dtype=torch.complex64))", "complex"),
    "a lazy parameter": (
        TABLE,
        INIT + "self.lazy = nn.LazyLinear(input_size)",
        LOGITS,
        "logits = self.lazy(self.table(x))",
        "no shape yet",
    ),
    "a sparse parameter": (TABLE, INIT + "self.s = nn.Parameter(torch.ones(3).to_sparse())", "sparse"),
    "random numbers outside the buffers": (
        TABLE,
        INIT + "self.w = torch.randn(input_size)",
        LOGITS,
        "logits = self.table(x) * self.w",
        "different logits",
    ),
    "a random buffer that is not persistent": (
        TABLE,
        INIT + "self.register_buffer('w', torch.randn(input_size), persistent=False)",
        LOGITS,
        "logits = self.table(x) * self.w",
        "different logits",
    ),
    "a count of the calls": (
        LOGITS,
        "self.n = getattr(self, 'n', 0) + 1; logits = self.table(x) * self.n",
        "different logits",
    ),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_model_whose_checkpoint_cannot_be_read_back_is_refused_at_the_start(case: str, tmp_path: Path) -> None:
    *replacements, words = UNREADABLE[case]
    plugin(tmp_path, *replacements)
    message = one_line(run(tmp_path, *TRAIN, code=1))
    assert message.startswith("charrnn: the model mine: ") and words in message
    assert not (tmp_path / "cv").exists()
    assert one_line(run(tmp_path, *TRAIN, "-dry_run", code=1)) == message


# unusual models that are supported
SHARING = {
    "extra state as a tensor": (
        TABLE,
        INIT + "self.n = torch.zeros(())\n    def get_extra_state(self): return self.n\n"
        "    def set_extra_state(self, state): self.n = state",
        LOGITS,
        "self.n = self.n + self.training; logits = self.table(x) * (1 + 0.01 * self.n)",
    ),
    "two parameters over one storage": (
        TABLE,
        INIT + "self.out = nn.Parameter(self.table.weight.data)",
        LOGITS,
        "logits = self.table(x) @ self.out",
    ),
    "two parameters that are halves of one tensor": (
        TABLE,
        INIT + "w = torch.randn(2, input_size, input_size); self.a = nn.Parameter(w[0]); self.b = nn.Parameter(w[1])",
        LOGITS,
        "logits = self.table(x) @ self.a + self.b[x]",
    ),
    "two parameters that overlap": (
        TABLE,
        INIT + "w = torch.randn(input_size + 3, input_size); "
        "self.a = nn.Parameter(w[3:]); self.b = nn.Parameter(w[:-3])",
        LOGITS,
        "logits = self.table(x) @ self.a + self.b[x]",
    ),
    "one parameter under two names": (
        TABLE,
        INIT + "self.out = nn.Linear(input_size, input_size); self.out.weight = self.table.weight",
        LOGITS,
        "logits = self.out(self.table(x))",
    ),
    "a buffer that training changes": (
        TABLE,
        INIT + "self.register_buffer('n', torch.zeros(()))",
        LOGITS,
        "self.n += self.training; logits = self.table(x) * (1 + 0.01 * self.n)",
    ),
    "batch normalisation": (
        TABLE,
        INIT + "self.norm = nn.BatchNorm1d(input_size)",
        LOGITS,
        "logits = self.norm(self.table(x).transpose(1, 2)).transpose(1, 2)",
    ),
    "a constant buffer that is not persistent": (
        TABLE,
        INIT + "self.register_buffer('w', torch.arange(input_size) / 10, persistent=False)",
        LOGITS,
        "logits = self.table(x) * self.w",
    ),
    "numpy's and Python's random numbers in training": (
        "import torch\n",
        "import random\nimport numpy as np\nimport torch\n",
        LOGITS,
        "logits = self.table(x) * (1 + (random.random() + float(np.random.rand()) if self.training else 0))",
    ),
}


@pytest.mark.parametrize("case", SHARING)
def test_unusual_models_resume_exactly(case: str, tmp_path: Path) -> None:
    ends = []
    for folder, steps in (("whole", [1.0]), ("parts", [0.3, 1.0])):
        plugin(tmp_path / folder, *SHARING[case])
        run(tmp_path / folder, *TRAIN, "-max_epochs", steps[0])
        for step in steps[1:]:
            run(tmp_path / folder, "train", "-resume", "cv", "-max_epochs", step)
        ends.append(Checkpoint.load(newest(tmp_path / folder / "cv")))
    same(ends[0].weights, ends[1].weights)
    same(ends[0].training["losses"], ends[1].training["losses"])


def newest(folder: Path) -> Path:
    (path,) = folder.glob("*epoch1.00*.pt")
    return path


def test_loading_sampling_and_scoring_leave_the_global_generators_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tested with a model that draws its initial weights and its dropout with numpy and Python."""
    plugin(
        tmp_path,
        "import torch\n",
        "import random\nimport numpy as np\nimport torch\n",
        TABLE,
        INIT + "self.table.weight.data *= random.random() + float(np.random.rand())",
        LOGITS,
        "logits = self.table(x) * (1 + (random.random() + float(np.random.rand()) if self.training else 0))",
    )
    run(tmp_path, *TRAIN)
    monkeypatch.chdir(tmp_path)
    cpu = torch.device("cpu")
    before = random_state(cpu)
    api.load("cv")
    "".join(api.sample("cv", length=5, gpuid=-1))
    losses = [api.evaluate("cv", mc_samples=3, seed=seed, gpuid=-1).loss for seed in (1, 1, 2)]
    same(random_state(cpu), before)
    assert losses[0] == losses[1] != losses[2]
