"""``charrnn train``: metrics, TensorBoard events, the summary, several texts, and the display."""

from __future__ import annotations

import io
import json
import math
import os
import re
import resource
import shlex
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from rich.console import Console

from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.checkpoints.folder import find_newest
from charrnn.cli.display import LiveDisplay
from charrnn.data.datasets import catalogue
from charrnn.data.text import find_files, open_text
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError
from charrnn.sampling.sampler import sample
from charrnn.training.advice import advice
from charrnn.training.loop import Record
from charrnn.training.metrics import MetricsFile
from charrnn.training.setup import configure
from tests.helpers.command import QUICK, SMALL, SONG, charrnn, on_a_terminal, run, write_text
from tests.helpers.runs import FLAGS, broken_at_8, data, new_run


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def train(folder: Path, *more: object) -> list[str]:
    """Run ``charrnn train`` in this process. Return the lines on stdout."""
    return run(folder, "train", "-data_dir", "data", *QUICK, *more).lines


@pytest.mark.parametrize("dry_run", [False, True])
def test_train_without_a_text_first_prepares_tinyshakespeare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dry_run: bool
) -> None:
    """This is the README's first command. A dry run leaves nothing behind."""

    def make(folder: Path, report: Any, progress: Any) -> None:
        write_text(folder)
        report("made it")

    monkeypatch.setitem(catalogue.DATASETS, "tinyshakespeare", catalogue.Dataset(make))
    done = run(tmp_path, "train", *QUICK, "-max_epochs", 0.1, *(["-dry_run"] if dry_run else []))
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert "made it" in done.out.decode() + done.err.decode()
    if dry_run:
        assert "parameters" in done.out.decode() and left == set()
    else:
        assert Checkpoint.load(tmp_path / "cv").training["iteration"] > 5
        assert "data/tinyshakespeare/input.txt" in left


def test_the_metrics_file_has_the_losses_of_the_run(tmp_path: Path) -> None:
    write_text(tmp_path / "data")
    train(tmp_path, "-max_epochs", 1, "-eval_val_every", 25)
    lines = read(tmp_path / "cv/lm_lstm_metrics.jsonl")
    last = Checkpoint.load(max((tmp_path / "cv").glob("*.pt"), key=os.path.getmtime))
    assert [line["iteration"] for line in lines] == list(range(1, len(lines) + 1))
    assert [line["loss"] for line in lines] == last.training["losses"].tolist()
    validated = {line["iteration"]: line["val_loss"] for line in lines if "val_loss" in line}
    assert validated == last.training["val_losses"]
    assert lines[-1]["epoch"] == 1
    assert all(line["seconds"] > 0 and line["param_norm"] > 0 for line in lines)


def test_two_runs_in_a_folder_do_not_mix_and_a_new_run_replaces_its_metrics(tmp_path: Path) -> None:
    write_text(tmp_path / "data")
    train(tmp_path, "-max_epochs", 0.3, "-savefile", "one")
    train(tmp_path, "-max_epochs", 0.2, "-savefile", "two", "-seed", 5)
    train(tmp_path, "-max_epochs", 0.1, "-savefile", "one")
    one, two = (read(tmp_path / f"cv/lm_{name}_metrics.jsonl") for name in ("one", "two"))
    assert 0 < len(one) < len(two)


def records(path: Path, *losses: float, report: Any = pytest.fail) -> MetricsFile:
    file = MetricsFile(path, report)
    file.begin([])
    for iteration, loss in enumerate(losses, 1):
        file.add(Record(iteration, 9, 0.1, 0.002, loss))
    return file


@pytest.mark.parametrize(
    ("history", "kept"),
    [
        ([4.0, 3.0, 2.0], [(1, 4.0), (2, 3.0), (3, 2.0)]),  # the run continues before its last line
        ([4.0, 3.0, 2.0, 1.0, 0.5], [(1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)]),  # a line is lost
        ([4.0, 3.5, 2.0], [(1, 4.0)]),  # the lines belong to another run
        ([], []),
    ],
)
def test_truncated_lines_and_lines_of_other_runs_and_later_iterations_are_dropped(
    tmp_path: Path, history: list[float], kept: list[tuple[int, float]]
) -> None:
    path = tmp_path / "metrics.jsonl"
    file = records(path, 4.0, 3.0, 2.0, 1.0)
    file.close()
    path.write_bytes(path.read_bytes() + b'{"iteration": 5, "loss": 0.5')
    file.begin(history)
    file.add(Record(len(history) + 1, 9, 0.1, 0.002, 1.5, grad_norm=math.inf, val_loss=1.25))
    file.close()
    lines = read(path)
    assert [(line["iteration"], line["loss"]) for line in lines] == [*kept, (len(history) + 1, 1.5)]
    assert lines[-1]["grad_norm"] is None and lines[-1]["val_loss"] == 1.25
    assert list(tmp_path.iterdir()) == [path], "no temporary file may be left"


def test_a_full_disk_loses_metrics_but_does_not_stop_the_run(tmp_path: Path) -> None:
    path, said = tmp_path / "metrics.jsonl", []
    file = records(path, 4.0, 3.0, report=said.append)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, hard))
    try:
        file.add(Record(3, 9, 0.1, 0.002, 2.0))
        file.add(Record(4, 9, 0.1, 0.002, 2.0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before, "half a line would spoil the next one"
    assert len(said) == 1 and "training continues" in said[0]
    file.add(Record(5, 9, 0.1, 0.002, 1.0))
    file.close()
    assert [line["iteration"] for line in read(path)] == [1, 2, 5]


def test_metrics_are_flushed_to_disk_before_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = FLAGS | data(tmp_path / "data", "fractions") | {"checkpoint_dir": str(tmp_path / "cv")}
    run = new_run(configure(flags))
    records = run.records()
    next(records)
    flushed: list[str] = []
    fsync = os.fsync

    def watched(file: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{file}")).name)
        fsync(file)

    monkeypatch.setattr(os, "fsync", watched)
    run.save_last()
    assert flushed[0] == "lm_lstm_metrics.jsonl" and "lm_lstm_last.pt" in flushed[1]


def test_a_rollback_removes_its_metrics(tmp_path: Path) -> None:
    flags = FLAGS | data(tmp_path / "data", "fractions") | {"on_nan": "rollback", "eval_val_every": 5}
    rolled_back = new_run(configure(flags | {"checkpoint_dir": str(tmp_path / "cv")}))
    for _ in broken_at_8(rolled_back):
        pass
    lines = read(tmp_path / "cv/lm_lstm_metrics.jsonl")
    assert rolled_back.training.rollbacks == 1
    assert [line["iteration"] for line in lines] == list(range(1, rolled_back.training.iterations + 1))
    assert [line["loss"] for line in lines] == rolled_back.training.losses


def test_tensorboard_shows_the_values_of_the_metrics_across_a_resume(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write_text(tmp_path / "data")
    train(tmp_path, "-max_epochs", 0.5, "-eval_val_every", 20, "-log_dir", "runs")
    run(tmp_path, "train", "-resume", "cv", "-max_epochs", 1, "-log_dir", "runs")
    lines = read(tmp_path / "cv/lm_lstm_metrics.jsonl")
    events = accumulator.EventAccumulator(str(tmp_path / "runs/lstm"), size_guidance={"scalars": 0})
    events.Reload()
    shown = {event.step: event.value for event in events.Scalars("loss/train")}
    assert shown == pytest.approx({line["iteration"]: line["loss"] for line in lines})
    validated = {event.step: event.value for event in events.Scalars("loss/validation")}
    assert validated == pytest.approx({line["iteration"]: line["val_loss"] for line in lines if "val_loss" in line})


def test_if_tensorboard_is_missing_log_dir_says_what_to_install_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "data")
    monkeypatch.setattr("charrnn.training.metrics.find_spec", lambda name: None)
    said = run(tmp_path, "train", "-data_dir", "data", *QUICK, "-log_dir", "runs", code=1).errors
    assert "pip install 'char-rnn-torch[tensorboard]'" in said[-1]
    assert not (tmp_path / "cv").exists() and not (tmp_path / "runs").exists()


def test_the_summary_names_the_best_checkpoint_and_a_command_that_works(tmp_path: Path) -> None:
    write_text(tmp_path / "data")
    lines = train(tmp_path, "-max_epochs", 2, "-eval_val_every", 30, "-checkpoint_dir", "my cv")
    losses = {path.name: float(path.stem.split("_")[-1]) for path in (tmp_path / "my cv").glob("*.pt")}
    best = min(losses, key=lambda name: losses[name])
    bpc = losses[best] / math.log(2)
    assert f"best: my cv/{best}, validation loss {losses[best]:.4f} ({bpc:.3f} bits per character)" in lines
    assert re.fullmatch(r"done, 2\.00 epochs: \d+ iterations in 0:00:\d\d", lines[-3])
    program, *words = shlex.split(lines[-1].removeprefix("to sample from it: "))
    assert program == "charrnn"
    # in a real process, since the command is for the user's shell
    sampled = charrnn(*words, "-length", 20, "-gpuid", -1, cwd=tmp_path).stdout
    assert len(sampled) == 21


def test_a_run_without_validation_keeps_its_last_checkpoint(tmp_path: Path) -> None:
    write_text(tmp_path / "data")
    lines = train(tmp_path, "-max_epochs", 0.5, "-train_frac", 1, "-val_frac", 0)
    assert "without a validation split" in lines[-2]
    assert lines[-1].endswith("charrnn sample cv/lm_lstm_last.pt")
    assert Checkpoint.load(tmp_path / "cv/lm_lstm_last.pt").epoch == pytest.approx(0.5, abs=0.02)
    assert "nothing left to train" in "".join(run(tmp_path, "train", "-resume", "cv").lines)


def test_warm_up_and_adams_betas_affect_the_run_and_are_kept_on_resume(tmp_path: Path) -> None:
    write_text(tmp_path / "data")
    onecycle = ("-optimizer", "adam", "-lr_schedule", "onecycle", "-max_epochs", 1)
    losses = []
    for n, more in enumerate([(), ("-warm_up", 0.6), ("-beta1", 0.5), ("-beta2", 0.5)]):
        train(tmp_path, *onecycle, *more, "-checkpoint_dir", f"cv_{n}")
        lines = read(tmp_path / f"cv_{n}/lm_lstm_metrics.jsonl")
        top = max(range(len(lines)), key=lambda i: lines[i]["learning_rate"])
        assert top == pytest.approx((0.6 if more[:1] == ("-warm_up",) else 0.3) * len(lines) - 1, abs=1)
        losses.append(lines[-1]["loss"])
    assert len(set(losses)) == 4
    for flag in ("-warm_up", "-beta1", "-beta2"):
        errors = run(tmp_path, "train", "-resume", "cv_0", flag, 0.7, code=1).errors
        assert re.search(rf"{flag} 0.7 \(was 0\.\d+\)", " ".join(errors))


def test_early_stopping_is_reported(tmp_path: Path) -> None:
    write_text(tmp_path / "data")
    # nothing is learned at a rate of 0: the second and third validations are no better than the first
    lines = train(tmp_path, "-early_stop", 2, "-eval_val_every", 10, "-learning_rate", 0)
    assert any(line.startswith("stopped early, after 2 validations without a new best: 30 iter") for line in lines)
    bare = ("-early_stop", 2, "-train_frac", 1, "-val_frac", 0)
    said = run(tmp_path, "train", "-data_dir", "data", *QUICK, *bare, code=1).errors
    assert "-early_stop" in said[-1] and "-val_frac" in said[-1]


EVERY = 100


def curves(train: list[float], val: list[float], dropout: float = 0.0) -> str:
    """Return the advice for these losses, with the training loss constant between validations."""
    losses = [loss for loss in train for _ in range(EVERY)]
    return advice(losses, {EVERY * (i + 1): loss for i, loss in enumerate(val)}, dropout)


@pytest.mark.parametrize(
    ("train", "val", "said"),
    [
        ([3, 2, 1.5, 1.2, 1.0, 0.8], [3, 2.2, 2.0, 2.1, 2.2, 2.3], "overfitting since iteration 300: try -dropout"),
        ([3, 2, 1.5, 1.2, 1.0, 0.8], [3, 2.2, 2.0, 2.1, 2.2, 1.9], ""),
        ([3, 2, 1.5, 1.6, 1.7, 1.8], [3, 2.2, 2.0, 2.1, 2.2, 2.3], ""),
        ([3, 2, 1.5, 1.2, 1.0, 0.8], [3, 2.2, 2.0, 2.01, 2.005, 2.01], ""),
        ([3, 2, 1.8, 1.8, 1.799, 1.799], [3, 2, 1.82, 1.82, 1.81, 1.81], "underfitting: a larger -rnn_size may help"),
        ([3, 2, 1.5, 1.5, 1.5, 1.5], [3, 2, 1.82, 1.82, 1.81, 1.81], ""),
        ([3, 2, 1.9, 1.8, 1.7, 1.6], [3, 2, 1.9, 1.8, 1.7, 1.6], ""),
        ([3, 2], [3, 3.1], ""),
        ([3, 2, 1, 1, 1, 1], [math.nan] * 6, ""),
        ([], [], ""),
    ],
)
def test_the_advice_depends_on_both_losses(train: list[float], val: list[float], said: str) -> None:
    assert curves(train, val) == said


def test_with_dropout_already_on_the_advice_is_to_raise_it() -> None:
    overfitted = ([3, 2, 1.5, 1.2, 1.0, 0.8], [3, 2.2, 2.0, 2.1, 2.2, 2.3])
    assert curves(*overfitted, dropout=0.2) == "overfitting since iteration 300: try a higher -dropout"


def test_a_memorised_text_is_reported_as_overfitting(tmp_path: Path) -> None:
    write_text(tmp_path / "data", "".join(Random(1).choices("abcdefgh", k=2000)))
    settings = ("-rnn_size", 64, "-train_frac", 0.5, "-val_frac", 0.5, "-eval_val_every", 40, "-max_epochs", 20)
    done = run(tmp_path, "train", "-data_dir", "data", *QUICK, *settings)
    output, notes = done.lines, done.errors
    (said,) = (line for line in output if line.startswith("overfitting"))
    assert re.fullmatch(r"overfitting since iteration \d+: try -dropout", said)
    assert said in notes, "reported as soon as it is detected"


def three_texts(folder: Path) -> list[str]:
    folder.mkdir()
    parts = [f"{i}: {SONG * (10 + i)}" for i in range(3)]
    for i, part in enumerate(parts):
        (folder / f"{i}.txt").write_text(part)
    return parts


def test_several_texts_are_joined_in_order_of_name(tmp_path: Path) -> None:
    whole = "".join(three_texts(tmp_path / "parts"))
    files = find_files([str(tmp_path / "parts/2.txt"), str(tmp_path / "parts/[01].txt"), str(tmp_path / "**/2.txt")])
    assert [file.name for file in files] == ["0.txt", "1.txt", "2.txt"]
    many = [str(tmp_path / "many" / f"{letter}.txt") for letter in "hbgacdfe"]
    (tmp_path / "many").mkdir()
    for name in many:
        Path(name).touch()
    assert [file.stem for file in find_files(many)] == list("abcdefgh")
    text = open_text(files, report=pytest.fail)
    assert text.vocabulary.decode(text.files["input"][:].tolist()) == whole
    assert text.counts == {ord(c): whole.count(c) for c in set(whole)}
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["0.txt", "1.txt", "2.txt"]


def test_several_files_train_like_the_same_text_in_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "data", "".join(three_texts(tmp_path / "parts")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    train(tmp_path, "-max_epochs", 1)
    # a pattern expanded by the shell, one that charrnn expands, and a TOML list
    expanded = sorted((tmp_path / "parts").glob("*.txt"))
    run(tmp_path, "train", "-input", *expanded, *QUICK, "-checkpoint_dir", "cv2", "-max_epochs", 0.5)
    run(tmp_path, "train", "-resume", "cv2", "-input", "parts/*.txt", "-max_epochs", 1)
    (tmp_path / "mine.toml").write_text('input = ["parts/1.txt", "parts/0.txt", "parts/2.txt"]\nmax_epochs = 1\n')
    run(tmp_path, "train", "-config", "mine.toml", *QUICK, "-checkpoint_dir", "cv3")
    one, two, three = (Checkpoint.load(find_newest(tmp_path / name)) for name in ("cv", "cv2", "cv3"))
    for other in (two, three):
        assert other.epoch == one.epoch == 1
        assert other.weights.keys() == one.weights.keys()
        assert all(torch.equal(tensor, other.weights[name]) for name, tensor in one.weights.items())
    assert two.options.input == ("parts/0.txt", "parts/1.txt", "parts/2.txt") == three.options.input
    newest = find_newest(tmp_path / "cv2")
    scored = json.loads(run(tmp_path, "eval", newest, "-gpuid", -1, "-json").lines[0])
    assert scored["loss"] == pytest.approx(two.val_loss)
    (tmp_path / "parts/1.txt").write_text("another " + SONG * 11)
    said = run(tmp_path, "train", "-resume", "cv2", "-max_epochs", 2, code=1).errors
    assert "-input is not the one" in said[-1]


def test_missing_texts_and_input_combined_with_data_dir_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.md").mkdir()
    for name, wrong in (("*.txt", "no such file"), ("*.md", "no such file"), ("folder.md", "not a regular file")):
        with pytest.raises(UserError, match=rf"-input .*{re.escape(name)}: {wrong}"):
            find_files([str(tmp_path / name)])
    (tmp_path / "file.md").touch()
    assert find_files([str(tmp_path / "*.md")]) == [tmp_path / "file.md"]
    said = run(tmp_path, "train", "-input", "a.txt", "-data_dir", "b", code=1).errors
    assert "give only one of them" in said[-1]


ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


FIGURES = ("iteration", "epoch", "train loss", "validation", "best", "grad/param norm", "characters/s", "left")


@pytest.mark.parametrize("columns", [60, 140])
def test_the_live_display_fits_the_terminal(tmp_path: Path, columns: int) -> None:
    write_text(tmp_path / "data")
    args = ("train", "-data_dir", "data", *SMALL, "-max_epochs", 1, "-eval_val_every", 40, "-sample_length", 20)
    code, output = on_a_terminal(tmp_path, *args, columns=columns)
    assert code == 0, output
    drawn = [line for line in ESCAPE.sub("", output).replace("\r", "\n").split("\n") if "grad/param norm" in line]
    assert drawn and all(len(line) <= columns for line in drawn)
    last = ESCAPE.sub("", output[: output.index("to sample from it")]).replace("\r", "\n").split("\n")[-16:]
    for figure in FIGURES:  # fails if a line break separates a name from its value
        assert any(re.search(rf"{figure} \S", line) for line in last), (figure, last)
    assert "\x1b[3" not in output, "coloured despite NO_COLOR"
    assert "to sample from it: charrnn sample cv/lm_lstm_epoch" in ESCAPE.sub("", output)


def test_a_dumb_terminal_and_a_pipe_get_plain_lines(tmp_path: Path) -> None:
    write_text(tmp_path / "data")
    code, output = on_a_terminal(tmp_path, "train", "-data_dir", "data", *SMALL, "-max_epochs", 0.1, TERM="dumb")
    assert code == 0 and "train_loss = " in output
    assert "\x1b" not in output
    assert not any("\x1b" in line for line in train(tmp_path, "-max_epochs", 0.1, "-print_every", 1))


def test_a_resumed_run_shows_the_best_loss_of_the_whole_run() -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=100, color_system=None)
    display = LiveDisplay(console, 100, [1.25, 1.5], Vocabulary)
    display.show(Record(1, 2, 0.5, 0.002, 2.0, grad_norm=1.0, param_norm=2.0, seconds=0.1))
    display.close()
    assert "validation 1.5000" in shown.getvalue() and "best 1.2500" in shown.getvalue()


def test_the_live_display_shows_what_a_validation_found() -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=100, color_system=None)
    display = LiveDisplay(console, 100, [], Vocabulary)
    record = Record(7, 9, 0.5, 0.002, 2.0, seconds=0.1, val_loss=1.25, measures={"whole sums": 0.5})
    display.show(record)
    display.validated(record, "cv/one.pt", "To be, or not")
    display.ended(["done"])
    for words in (
        "iteration 7, epoch 0.50: validation loss 1.2500",
        "saved to cv/one.pt",
        "whole sums",
        "To be, or not",
    ):
        assert words in shown.getvalue()
    assert shown.getvalue().endswith("done\n")


@pytest.mark.parametrize(("text", "prime"), [(SONG * 20, "\n"), ("no line end " * 99, "")])
def test_the_sample_of_a_validation_begins_a_line_if_the_model_knows_lines(
    tmp_path: Path, text: str, prime: str
) -> None:
    write_text(tmp_path / "data", text)
    flags = FLAGS | {"data_dir": str(tmp_path / "data"), "sample_length": 30, "checkpoint_dir": str(tmp_path / "cv")}
    run = new_run(configure(flags))
    expected = "".join(sample(run.model, run.setup.vocabulary, prime, 30, seed=flags.get("seed", 123)))
    assert run.sample() == expected and len(expected) == 30
