"""The addition task: problems are checked with a separate parser, loss and accuracies with plain loops."""

from __future__ import annotations

import hashlib
import json
import random
import re
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from charrnn import registry
from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.data import addition as problems
from charrnn.data.addition import Problems
from charrnn.data.datasets import addition
from charrnn.data.minibatches import IGNORED
from charrnn.data.text import minibatches, open_text
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError
from charrnn.evaluation.loss import evaluate
from charrnn.settings.training import TrainingOptions
from charrnn.training.loop import Training
from charrnn.training.setup import configure
from tests.helpers.command import charrnn, one_line, run, write_text
from tests.helpers.runs import FLAGS, metrics, new_run, same_run, silent, train

SYMBOLS = "\n-0123456789"
VOCABULARY = Vocabulary(tuple(map(ord, SYMBOLS)))

# the file of a model that adds; its state consists of the characters read so far and their count
ADDER = '''
from typing import Annotated, Literal

import torch
from torch import nn

SYMBOLS = "\\n-0123456789"


def answer(a, b, fault):
    if fault == "carry":  # forgets to carry
        return "".join(str((int(c) + int(d)) % 10) for c, d in zip(a, b)).ljust(len(a) + 2, "-")
    return str(int(a) + int(b)).ljust(len(a) + 2, "-")


def following(text, digits, fault):
    """The next character after a text."""
    length = 2 * digits + 3
    if len(text) < length:
        return "\\n"
    _, a, b, written = text[: length - 1].split("-") + [text[length:]] if text[length - 1] == "-" else [""] * 4
    if not a or len(written) >= digits + 2:
        return "\\n"
    right = answer(a, b, fault)
    if fault == "stumble":  # begins odd sums with 0, and then writes only 7
        if not written and (int(a) + int(b)) % 2:
            return "0"
        if written.startswith("0"):
            return "7"
    if fault == "endless" and len(written) == digits + 1:  # does not stop at the end of the sum
        return "0"
    return right[len(written)]


class Adder(nn.Module):
    def __init__(self, size, digits, fault):
        super().__init__()
        self.sure = nn.Parameter(torch.tensor(50.0))
        self.size, self.digits, self.fault = size, digits, fault

    def forward(self, x, state=None):
        seen = x.new_zeros(x.shape[1], 99) if state is None else state[0].long()
        logits = torch.zeros(*x.shape, self.size, dtype=self.sure.dtype)
        seen = seen.clone()
        for t, row in enumerate(x):
            for b, number in enumerate(row.tolist()):
                seen[b, 98] += 1
                seen[b, seen[b, 98] - 1] = number
                text = "".join(SYMBOLS[n] for n in seen[b, : seen[b, 98]].tolist())
                logits[t, b, SYMBOLS.index(following(text, self.digits, self.fault))] = 1
        return logits * self.sure, (seen.to(self.sure.dtype),)


def create(
    input_size, rnn_size, n_layers, dropout, *,
    digits: Annotated[int, "digits per number"] = 2,
    fault: Annotated[Literal["none", "carry", "stumble", "endless"], "the mistake that it makes"] = "none",
):
    return Adder(input_size, digits, fault)
'''


def parsed(line: str, digits: int) -> tuple[int, int] | None:
    """Return the two numbers of a correct problem, or None for any other line. Does not use the code under test."""
    parts = re.fullmatch(r"-(\d+)-(\d+)-(\d+)(-+)", line)
    if not parts or len(line) != 3 * digits + 5:
        return None
    a, b, c, _ = parts.groups()
    right = len(a) == len(b) == digits and a[0] != "0" != b[0] and c[0] != "0" and int(a) + int(b) == int(c)
    return (int(a), int(b)) if right else None


def read(lines: list[str], end: str = "\n") -> Problems:
    text = "\n".join(lines) + end
    return problems.read("sums.txt", np.array(VOCABULARY.encode(text), np.uint8), VOCABULARY)


def prepared(folder: Path, digits: int, examples: int, val_examples: int, seed: int = 1) -> Path:
    options = {"digit_length": digits, "examples": examples, "val_examples": val_examples, "seed": seed}
    addition.prepare(folder, silent, None, **options)
    return folder


# the generator


@pytest.mark.parametrize(
    ("digits", "examples", "val_examples"), [(1, 40, 20), (2, 3000, 500), (3, 500, 50), (19, 60, 9)]
)
def test_every_sum_is_correct_and_no_pair_of_numbers_is_in_both_splits(
    digits: int, examples: int, val_examples: int
) -> None:
    lines = addition.problems(digits, examples, val_examples, seed=5)
    sums = [[parsed(line, digits) for line in part] for part in lines]
    assert [len(part) for part in lines] == [examples, val_examples]
    found, held_out = ([pair for pair in part if pair] for part in sums)
    assert len(found) == examples and len(held_out) == val_examples, "some lines are not correct problems"
    assert len(set(found)) == examples
    assert len({frozenset(pair) for pair in held_out}) == val_examples
    assert not {frozenset(pair) for pair in found} & {frozenset(pair) for pair in held_out}


def test_digits_are_distributed_evenly() -> None:
    train, _ = addition.problems(3, 9000, 10, seed=2)
    found = [pair for line in train if (pair := parsed(line, 3))]
    for n in range(2):
        numbers = np.array([pair[n] for pair in found])
        for place, choices in ((100, 9), (10, 10), (1, 10)):
            counts = np.unique(numbers // place % 10, return_counts=True)[1]
            assert len(counts) == choices
            # chi-square with at most 9 degrees of freedom exceeds 40 about once in 100,000 tries
            assert ((counts - 9000 / choices) ** 2 / (9000 / choices)).sum() < 40


def test_a_seed_always_gives_the_same_bytes_and_different_seeds_give_different_bytes(tmp_path: Path) -> None:
    texts = [prepared(tmp_path / str(seed), 3, 50, 10, seed) / "train.txt" for seed in (1, 1, 2)]
    assert texts[0].read_bytes() != texts[2].read_bytes()
    known = "5dc2f742a2bf7eb3ee89ff465f3a6f95649780110faa22811a1f5656ca8807e1"
    assert hashlib.sha256(texts[0].read_bytes()).hexdigest() == known


def test_all_possible_problems_can_be_made_but_no_more() -> None:
    train, val = addition.problems(1, 60, 10, seed=3)
    assert len(train) == 60 and len(val) == 10
    held_out = {frozenset(pair) for line in val if (pair := parsed(line, 1))}
    there = 81 - sum(len(pair) for pair in held_out)
    assert len(addition.problems(1, there, 10, seed=3)[0]) == there
    with pytest.raises(UserError, match=f"only {there} problems"):
        addition.problems(1, there + 1, 10, seed=3)
    with pytest.raises(UserError, match="only 45 pairs"):
        addition.problems(1, 1, 45, seed=3)


def test_prepare_writes_the_problems_and_does_not_replace_existing_files(tmp_path: Path) -> None:
    flags = ("-digit_length", 3, "-examples", 90, "-val_examples", 8, "-seed", 4)
    charrnn("prepare", "addition", *flags, cwd=tmp_path)
    folder = tmp_path / "data/addition"
    assert (folder / "train.txt").read_text().splitlines() == addition.problems(3, 90, 8, seed=4)[0]
    assert (folder / "val.txt").read_text().splitlines() == addition.problems(3, 90, 8, seed=4)[1]
    before = {name: (folder / name).stat() for name in ("train.txt", "val.txt")}
    again = charrnn("prepare", "addition", *flags, cwd=tmp_path)
    assert "nothing to do" in again.stderr.decode() + again.stdout.decode()
    other = charrnn("prepare", "addition", *flags[:6], cwd=tmp_path, code=1)
    assert "train.txt exists and is not part of addition, so it was left unchanged" in one_line(other)
    for name, then in before.items():
        now = (folder / name).stat()
        assert (now.st_ino, now.st_mtime_ns) == (then.st_ino, then.st_mtime_ns)


# the minibatches


@pytest.mark.parametrize("digits", [1, 2, 5])
def test_a_minibatch_has_whole_problems_and_only_the_answers_count(digits: int) -> None:
    lines, _ = addition.problems(digits, 11, 3, seed=1)
    found = Problems(read(lines).lines, digits, 4, VOCABULARY)
    assert len(found) == 2 and found.seq_length == 3 * digits + 4 and found.predicted == digits + 2
    for k in range(2):
        x, y = found.batch(k)
        assert x.dtype == y.dtype == torch.int64
        for b, line in enumerate(lines[4 * k : 4 * k + 4]):
            assert VOCABULARY.decode(x[:, b].tolist()) == line[:-1]
            counted = y[:, b] != IGNORED
            assert VOCABULARY.decode(y[counted, b].tolist()) == line[2 * digits + 3 :]
            assert counted.tolist() == [False] * (2 * digits + 2) + [True] * (digits + 2)
    with pytest.raises(IndexError):
        found.batch(2)


def test_validation_covers_all_problems() -> None:
    for count in (1, 7, 40, 600, 1022):
        lines, _ = addition.problems(3, count, 1, seed=1)
        found = read(lines).in_equal_parts()
        assert len(found) * found.batch_size == count and found.batch_size <= problems.BLOCK
    assert found.batch_size == 511


def naive(model: nn.Module, line: str) -> torch.Tensor:
    """Return the summed loss, in nats, of one problem's answer, computed one character at a time."""
    state, nats = None, torch.zeros((), dtype=torch.float64)
    answer = line.rindex("-", 0, len(line.rstrip("-"))) + 1
    for place, (character, after) in enumerate(pairwise(line)):
        logits, state = model(torch.tensor([[SYMBOLS.index(character)]]), state)
        if place + 1 >= answer:
            nats = nats - logits[0, 0].log_softmax(0)[SYMBOLS.index(after)]
    return nats


@pytest.mark.parametrize("name", ["lstm", "grid_lstm"])
def test_loss_and_gradient_equal_those_of_the_problems_one_at_a_time(tmp_path: Path, name: str) -> None:
    folder = prepared(tmp_path, 2, 42, 9)
    lines = (folder / "train.txt").read_text().splitlines()
    torch.manual_seed(1)
    model = registry.find(name).create(len(SYMBOLS), 7, 2, 0.0).double()
    weights = list(model.parameters())
    for p in weights:  # weights large enough that the losses differ
        nn.init.uniform_(p, -0.8, 0.8)
    options = TrainingOptions(
        task="addition", batch_size=6, max_epochs=3 / 7, optimizer="sgd", learning_rate=0.5, grad_clip=0.0
    )
    splits = minibatches(open_text(folder, report=silent), options)
    run = Training(model, splits["train"], None, options).run()
    for k in range(3):
        each = [naive(model, line) for line in lines[6 * k : 6 * k + 6]]
        gradients = torch.autograd.grad(sum(each, torch.zeros(())) / 6, weights)
        expected = [p.detach() - 0.5 * g for p, g in zip(weights, gradients, strict=True)]
        record = next(run)
        assert record.loss == pytest.approx(sum(nats.item() for nats in each) / 6 / 4, rel=1e-12)
        for p, wanted in zip(weights, expected, strict=True):
            torch.testing.assert_close(p.detach(), wanted, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        val = [naive(model, line).item() for line in (folder / "val.txt").read_text().splitlines()]
    held_out = splits["val"]
    assert isinstance(held_out, Problems)
    for split in (held_out, replace(held_out, batch_size=3)):  # one minibatch, then three
        score = evaluate(model, split)
        assert score.loss == pytest.approx(sum(val) / 9 / 4, rel=1e-12) and score.tokens == 9 * 4


# the accuracies


FAULTS = ("none", "carry", "stumble", "endless")


@pytest.fixture(scope="module")
def adders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 2-digit problems, and for each fault the checkpoint of an adder, in a folder named after it."""
    folder = tmp_path_factory.mktemp("adders")
    (folder / "models").mkdir()
    (folder / "models/adder.py").write_text(ADDER)
    prepared(folder / "data", 2, 60, 70)
    for fault in FAULTS:
        log = run(folder, "train", "-model", "adder", "-fault", fault, "-checkpoint_dir", fault, *TRAIN).out.decode()
        (folder / fault / "log").write_text(log)
    return folder


TRAIN = (
    "-task",
    "addition",
    "-data_dir",
    "data",
    "-gpuid",
    -1,
    "-batch_size",
    20,
    "-max_epochs",
    1,
    "-learning_rate",
    0,
)


def written(a: int, b: int, fault: str) -> str:
    """Return the answer that an adder with this fault writes for a + b."""
    true = f"{a + b}".ljust(4, "-")
    if fault == "carry":
        return f"{(a // 10 + b // 10) % 10}{(a % 10 + b % 10) % 10}--"
    if fault == "endless":
        return f"{true[:3]}0"
    return "0777" if fault == "stumble" and (a + b) % 2 else true


def shares(lines: list[str], fault: str) -> tuple[float, float]:
    places = digits = sums = 0
    for a, b in filter(None, (parsed(line, 2) for line in lines)):
        true, own = f"{a + b}".ljust(4, "-"), written(a, b, fault)
        places += len(str(a + b))
        digits += sum(c == d for c, d in zip(str(a + b), own, strict=False))
        sums += own == true
    return digits / places, sums / len(lines)


@pytest.mark.parametrize("fault", FAULTS)
def test_eval_and_train_report_the_known_accuracies(adders: Path, fault: str) -> None:
    lines = (adders / "data/val.txt").read_text().splitlines()
    expected = shares(lines, fault)
    assert (expected == (1, 1)) == (fault == "none") and (expected == (1, 0)) == (fault == "endless")
    assert min(expected) > 0.1 or fault == "endless"
    found = json.loads(run(adders, "eval", fault, "-gpuid", -1, "-json").out.decode())
    assert (found["digit_accuracy"], found["sum_accuracy"]) == pytest.approx(expected)
    assert found["characters"] == 70 * 4
    last = metrics(adders / fault / "lm_adder_metrics.jsonl")[-1]
    assert (last["digit_accuracy"], last["sum_accuracy"]) == pytest.approx(expected)
    log = (adders / fault / "log").read_text()
    assert f"digit_accuracy = {expected[0]:.4f}, sum_accuracy = {expected[1]:.4f}" in log
    shown = re.findall(r"^(-\d+-\d+-\S+)( wrong)?$", log, re.MULTILINE)
    assert len(shown) == 200 // 12
    for line, (text, wrong) in zip(lines, shown, strict=False):
        a, b = parsed(line, 2) or (0, 0)
        assert text == line[:7] + written(a, b, fault) and bool(wrong) == (text != line)


def test_eval_prints_the_accuracies_of_a_split_or_of_a_text(adders: Path) -> None:
    printed = run(adders, "eval", "none", "-gpuid", -1).out.decode()
    assert printed.splitlines()[1] == "val: digit accuracy 100.00%, sum accuracy 100.00%"
    text = adders / "some.txt"
    text.write_text("-12-34-46--\n-99-99-198-\n-10-15-25--")
    found = json.loads(run(adders, "eval", "stumble", "-text", text, "-json", "-gpuid", -1).out.decode())
    assert found["sum_accuracy"] == pytest.approx(2 / 3) and found["digit_accuracy"] == pytest.approx(5 / 7)
    text.write_text("-12-34-46--\n-12-34-47--\n")
    wrong = run(adders, "eval", "none", "-text", text, "-gpuid", -1, code=1).err.decode()
    assert "some.txt, line 2: 12 + 34 is 46, not 47" in wrong
    for flags in (("-dynamic", 0.1), ("-mc_samples", 2), ("-per_line",), ("-per_char",), ("-ensemble", "carry")):
        assert "cannot be scored in this way" in run(adders, "eval", "none", *flags, "-gpuid", -1, code=1).err.decode()


def test_sampling_completes_a_sum(adders: Path) -> None:
    flags = ("-length", 4, "-sample", 0, "-gpuid", -1, "-verbose", 0)
    done = charrnn("sample", "none", "-primetext", "-77-46-", *flags, cwd=adders)
    assert done.stdout.decode() == "-77-46-123-\n"


# training runs


def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    flags = {key: value for key, value in FLAGS.items() if key != "seq_length"}
    flags |= {"data_dir": str(prepared(tmp_path / "data", 2, 62, 12)), "task": "addition", "model": "grid_lstm"}
    whole = train(tmp_path / "whole", flags)
    assert whole.training.epoch > 2 and whole.options.seq_length == 10
    train(tmp_path / "parts", flags, stop_at=3)
    for stop_at in (20, 0):
        train(tmp_path / "parts", flags, tmp_path / "parts", stop_at)
    same_run(tmp_path / "whole/lm_grid_lstm_last.pt", tmp_path / "parts/lm_grid_lstm_last.pt")
    lines = [metrics(tmp_path / name / "lm_grid_lstm_metrics.jsonl") for name in ("whole", "parts")]
    assert lines[0] == lines[1] and any("sum_accuracy" in line for line in lines[0])


def test_seq_length_must_be_the_length_of_a_problem(tmp_path: Path) -> None:
    flags: dict[str, Any] = {
        "data_dir": str(prepared(tmp_path / "data", 3, 20, 5)),
        "task": "addition",
        "batch_size": 4,
    }
    flags |= {"checkpoint_dir": str(tmp_path / "cv"), "rnn_size": 4, "gpuid": -1, "threads": 1}
    for given_steps in ({}, {"seq_length": 13}):
        assert new_run(configure(flags | given_steps)).options.seq_length == 13
    with pytest.raises(UserError, match=r"-seq_length 14: a problem in this text has 13"):
        new_run(configure(flags | {"seq_length": 14}))
    with pytest.raises(UserError, match=r"20 problems, but a minibatch takes 21: lower -batch_size"):
        new_run(configure(flags | {"batch_size": 21}))
    with pytest.raises(UserError, match="-level word"):
        configure(flags | {"level": "word"})
    other = write_text(tmp_path / "text", "-12-34-46--\n" * 40)
    with pytest.raises(UserError, match=r"needs train\.txt and val\.txt"):
        new_run(configure(flags | {"data_dir": str(other)}))


def test_the_task_of_a_checkpoint_that_does_not_record_one_is_text() -> None:
    before = asdict(TrainingOptions())
    del before["task"]
    assert TrainingOptions(**before).task == "text"
    content = {
        "options": before, "model_options": {}, "vocabulary": VOCABULARY.to_dict(), "weights": {}, "epoch": 1.0,
        "val_loss": None, "training": {},
    }  # fmt: skip
    assert Checkpoint._from_content(content).options.task == "text"


# lines that are not problems

BAD = {
    "-12-34-47--": "12 + 34 is 46, not 47",
    "-12-34-460-": "12 + 34 is 46, not 460",
    "-12-34-----": "12 + 34 is 46, not nothing",
    "-12-34-46-": "not a problem of 2 digits",
    "-12-34-46---": "not a problem of 2 digits",
    "-02-34-36--": "not a problem of 2 digits",
    "-12-034-46-": "not a problem of 2 digits",
    "-12-34-46-0": "not a problem of 2 digits",
    "112-34-46--": "not a problem of 2 digits",
    "-12334-46--": "not a problem of 2 digits",
    "-123-234-357--": "not a problem of 2 digits",
    "": "not a problem of 2 digits",
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("place", [2, 17, 40])
def test_the_message_names_a_bad_line(bad: str, place: int) -> None:
    lines, _ = addition.problems(2, 40, 1, seed=1)
    assert len(read(lines).lines) == len(read(lines, end="").lines) == 40
    lines[place - 1] = bad
    with pytest.raises(UserError, match=re.escape(BAD[bad])) as raised:
        read(lines)
    assert str(raised.value).startswith(f"sums.txt, line {place}: ")


def test_the_first_line_sets_the_width_of_all_lines() -> None:
    lines, _ = addition.problems(2, 5, 1, seed=1)
    with pytest.raises(UserError, match=r"line 2: '-.*-' is not a problem of 3 digits like -123-999-1122-"):
        read(["-123-234-357--", *lines])
    with pytest.raises(UserError, match=r"line 1: .* is not an addition problem.*; correct or remove it"):
        read(["12-34", *lines])
    with pytest.raises(UserError, match="no addition problem"):
        problems.read("empty.txt", np.zeros(0, np.uint8), VOCABULARY)


@given(st.integers(0, 2**32), st.integers(1, 4))
def test_a_changed_character_is_detected_anywhere(seed: int, digits: int) -> None:
    draw = random.Random(seed)
    lines, _ = addition.problems(digits, 12, 1, seed)
    n, place = draw.randrange(12), draw.randrange(3 * digits + 5)
    line = lines[n]
    lines[n] = line[:place] + draw.choice("-0123456789") + line[place + 1 :]
    if parsed(lines[n], digits):
        assert len(read(lines).lines) == 12
        return
    with pytest.raises(UserError, match=f"line {n + 1}: "):
        read(lines)


def test_train_names_the_file_and_line_of_a_bad_problem_and_writes_nothing(tmp_path: Path) -> None:
    prepared(tmp_path / "data", 2, 60, 20)
    text = (tmp_path / "data/val.txt").read_text()
    (tmp_path / "data/val.txt").write_text(text.replace("\n", "\nx", 7).replace("\nx", "\n", 6))
    done = charrnn("train", *TRAIN, cwd=tmp_path, code=1)
    assert re.search(r"data/val\.txt, line 8: 'x-.* is not a problem of 2 digits", one_line(done))
    assert not (tmp_path / "cv").exists()
