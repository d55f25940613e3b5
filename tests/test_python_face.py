"""``charrnn.train``, ``charrnn.sample`` and ``charrnn.evaluate``, compared with the commands."""

from __future__ import annotations

import inspect
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import charrnn
from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.checkpoints.folder import find_best
from charrnn.errors import UserError
from charrnn.kernels import backend
from charrnn.settings.evaluation import EvaluationOptions
from charrnn.settings.option import Option, options_of
from charrnn.settings.sampling import SamplingOptions
from charrnn.training.loop import Diverged, Training
from tests.helpers.command import SMALL, run, write_text

TEXT = "The lazy fox sleeps.\nThe dog, and over the brown fox."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts, and models of characters (cv, other), words (words) and bytes (bytes)."""
    folder = tmp_path_factory.mktemp("face")
    write_text(folder / "data")
    write_text(folder / "umlauts", "Schöne größere Hüte für müßige Bären.\n" * 100)
    for name, data, *more in (
        ("cv", "data", "-dropout", "0.1"),
        ("other", "data", "-model", "gru"),
        ("words", "data", "-level", "word"),
        ("bytes", "umlauts", "-encoding", "bytes"),
    ):
        flags = ["-data_dir", str(folder / data), "-checkpoint_dir", str(folder / name), *map(str, SMALL), *more]
        run(folder, "train", *flags, "-max_epochs", "1", "-sample_length", "0")
    return folder


def test_import_charrnn_loads_neither_torch_nor_numpy() -> None:
    words = "import charrnn, sys; sys.exit(bool({'torch', 'numpy', 'click'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", words]).returncode == 0


@pytest.mark.parametrize(
    ("function", "options", "left_out", "own"),
    [
        (charrnn.sample, options_of(SamplingOptions), {"num_samples"}, {"checkpoint", "primetext"}),
        (charrnn.evaluate, options_of(EvaluationOptions), set(), {"checkpoint", "text", "ensemble"}),
    ],
)
def test_parameters_and_defaults_equal_the_commands(
    function: Callable[..., Any], options: dict[str, Option], left_out: set[str], own: set[str]
) -> None:
    parameters = inspect.signature(function).parameters
    assert parameters.keys() == options.keys() - left_out | own
    for name in parameters.keys() - own:
        assert parameters[name].default == options[name].default, name
    documented = {line.partition(":")[0].strip() for line in (function.__doc__ or "").splitlines() if ":" in line}
    assert parameters.keys() <= documented


@pytest.mark.parametrize(
    ("name", "primetext", "settings"),
    [
        ("cv", "The", {}),
        ("cv", "", {"seed": 4}),
        ("cv", "The", {"temperature": 2.0, "top_k": 9, "top_p": 0.9, "seed": 7}),
        ("cv", "The", {"sample": False, "precision": "float32"}),
        ("cv", "The", {"stop": "dog"}),
        ("cv", "T", {"beam": 6}),
        ("cv", "Th7eΩ", {"unknown": "skip"}),
        ("words", "The quick", {"temperature": 2.0}),
        ("bytes", "Schö", {}),
    ],
)
def test_a_sample_equals_the_commands(folder: Path, name: str, primetext: str, settings: dict[str, Any]) -> None:
    pieces = list(charrnn.sample(folder / name, primetext, 60, gpuid=-1, **settings))
    flags = [word for key, value in settings.items() for word in (f"-{key}", int(value) if value is False else value)]
    printed = run(folder, "sample", name, "-gpuid", -1, "-json", "-length", 60, "-primetext", primetext, *flags)
    assert "".join(pieces) == json.loads(printed.out)["text"]
    assert len(pieces) > 1 and all(pieces)
    if name == "bytes":
        assert "ö" in pieces or "ü" in pieces, "a two-byte character arrives in one piece"


def test_a_checkpoint_can_be_a_file_a_folder_or_an_object(folder: Path) -> None:
    file = next((folder / "cv").glob("*epoch*.pt"))
    texts = [
        "".join(charrnn.sample(source, "The", 30))
        for source in (folder / "cv", str(folder / "cv"), file, Checkpoint.load(file))
    ]
    assert len(set(texts)) == 1 and len(texts[0]) == 30
    scores = [charrnn.evaluate(source, TEXT) for source in (folder / "cv", file, Checkpoint.load(file))]
    assert scores[0] == scores[1] == scores[2]


def test_random_numbers_and_threads_are_restored(folder: Path) -> None:
    before, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        assert len("".join(charrnn.sample(folder / "cv", "The", 10))) == 10
        assert charrnn.evaluate(folder / "cv", TEXT, mc_samples=2).tokens == len(TEXT) - 1
        assert torch.get_num_threads() == 2 and torch.equal(torch.get_rng_state(), state)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"primetext": "Ω"}, "'Ω'"),
        ({"stop": "Ω"}, "the text of -stop"),
        ({"top_p": 2.0}, "-top_p 2.0: must be above 0 and at most 1"),
        ({"temperature": 0}, "-temperature 0: must be positive"),
        ({"length": 2.5}, "-length 2.5: must be a whole number"),
        ({"unknown": "ignore"}, "-unknown ignore: must be one of error, skip"),
        ({"beam": 3, "top_k": 2}, "-beam and -top_k cannot be combined"),
        ({"checkpoint": "nowhere"}, "nowhere"),
    ],
)
def test_sample_reports_errors_when_it_is_called(folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        charrnn.sample(**{"checkpoint": folder / "cv", **settings})
    assert message in str(raised.value) and raised.type is charrnn.UserError


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cv", {}),
        ("cv", {"mc_samples": 2, "seed": 5}),
        ("cv", {"dynamic": 0.02}),
        ("cv", {"ensemble": ["other", "cv"]}),
        ("words", {"unk": "the"}),
        ("bytes", {}),
    ],
)
def test_an_evaluation_equals_the_commands(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, settings: dict[str, Any]
) -> None:
    monkeypatch.chdir(folder)
    text = (folder / "umlauts" / "input.txt").read_text()[:200] if name == "bytes" else TEXT
    (folder / "text.txt").write_text(text)
    flags: list[object] = []
    for key, value in settings.items():
        flags += [word for item in (value if key == "ensemble" else [value]) for word in (f"-{key}", item)]
    for given, words in ((text, ["-text", "text.txt"]), (None, []), (None, ["-split", "train", "-batch_size", 1])):
        if name == "words" and given is None:
            continue
        more = {"split": "train", "batch_size": 1} if "-split" in words else {}
        found = charrnn.evaluate(name, given, gpuid=-1, **settings, **more)
        printed = json.loads(run(folder, "eval", name, "-gpuid", -1, "-json", *words, *flags).out)
        counted = "words" if name == "words" else "characters"
        assert (found.loss, found.perplexity, found.tokens) == (printed["loss"], printed["ppl"], printed[counted])
        assert found.bits_per_character == printed.get("bpc")
        assert (found.dynamic and found.dynamic.loss) == (printed["dynamic"]["loss"] if "dynamic" in printed else None)


def test_an_evaluation_returns_plain_numbers(folder: Path) -> None:
    found = charrnn.evaluate(folder / "cv", TEXT)
    assert found.tokens == len(TEXT) - 1 and found.measures == {} and found.dynamic is None
    assert found.bits_per_character == pytest.approx(found.loss / math.log(2))
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert charrnn.evaluate(folder / "cv", data_dir=folder / "data") == charrnn.evaluate(folder / "cv")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text": "Ω or so"}, "'Ω'"),
        ({"text": "a"}, "at least two characters"),
        ({"text": "The dog", "split": "train"}, "-text and -split cannot be combined"),
        ({"mc_samples": 2, "dynamic": 0.1}, "-mc_samples and -dynamic cannot be combined"),
        ({"dynamic": -1}, "-dynamic -1: must be at least 0"),
        ({"split": "all"}, "-split all: must be one of train, val, test"),
        ({"unk": "the"}, "-unk the"),
        ({"text": "The dog", "ensemble": ["words"]}, "cannot be averaged"),
    ],
)
def test_evaluate_reports_errors(
    folder: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(UserError) as raised:
        charrnn.evaluate("cv", **settings)
    assert message in str(raised.value)


# three short epochs, with one validation per epoch
SHORT: dict[str, Any] = dict(zip([str(word)[1:] for word in SMALL[::2]], SMALL[1::2], strict=True)) | {
    "max_epochs": 3,
    "eval_val_every": 80,
    "sample_length": 20,
    "threads": 1,
}


def short(folder: Path, name: str, *args: Any, **settings: Any) -> Any:
    return charrnn.train(*args, progress=False, checkpoint_dir=folder / name, **{**SHORT, **settings})


def flags(settings: dict[str, Any]) -> list[object]:
    return [word for name, value in settings.items() for word in (f"-{name}", value)]


def weights(file: Path) -> dict[str, torch.Tensor]:
    return Checkpoint.load(file).weights


def same(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (None, {}),
        ("gru", {"kernels": "compiled", "reset_after": True}),
        ("rhn", {"depth": 3, "optimizer": "adam", "keep": 1}),
        ("lstm", {"level": "word", "save_every": 7, "eval_val_every": 5, "dropout": 0.2, "num_layers": 2}),
    ],
)
def test_a_training_run_equals_the_commands(
    folder: Path, tmp_path: Path, model: str | None, settings: dict[str, Any]
) -> None:
    seen: list[Any] = []
    trained = short(tmp_path, "ours", folder / "data", model, on_record=seen.append, **settings)
    named = {"model": model} if model else {}
    words = flags({**SHORT, **settings, **named, "data_dir": folder / "data", "checkpoint_dir": "theirs"})
    run(tmp_path, "train", *("1" if word is True else word for word in words))
    files = [sorted(p.name for p in (tmp_path / name).iterdir()) for name in ("ours", "theirs")]
    assert files[0] == files[1] and len(files[0]) > 2
    for name in files[0]:
        if name.endswith(".pt"):
            assert same(tmp_path / "ours" / name, tmp_path / "theirs" / name), name
    assert trained.best == find_best(tmp_path / "theirs").parent.with_name("ours") / find_best(tmp_path / "theirs").name
    assert trained.records == tuple(seen) and not trained.interrupted
    assert [record.iteration for record in seen] == list(range(1, seen[-1].iterations + 1))
    lines = (tmp_path / "theirs").glob("*.jsonl").__next__().read_text().splitlines()
    assert [record.loss for record in seen] == [json.loads(line)["loss"] for line in lines]
    validated = [record.val_loss for record in seen if record.val_loss is not None]
    assert len(validated) > 1 and trained.val_loss == min(validated)


def test_training_runs_do_not_affect_each_other_or_later_code(folder: Path, tmp_path: Path) -> None:
    before, state = torch.get_num_threads(), torch.get_rng_state()
    environment = dict(os.environ)

    def changed(environment: dict[str, str]) -> set[str]:
        names = {name for name, _ in environment.items() ^ os.environ.items()}
        return {name for name in names if not name.startswith("KMP_")}  # set by numba when it is imported

    torch.set_num_threads(2)
    try:
        settings = {"kernels": "compiled", "threads": 1, "model": "gru"}
        first = short(tmp_path, "first", folder / "data", **settings)
        assert torch.get_num_threads() == 2 and backend.threads() == 0
        assert torch.equal(torch.get_rng_state(), state) and changed(environment) == set()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        torch.rand(3)
        second = short(tmp_path, "second", folder / "data", **settings)
        assert same(first.best, second.best)
        with pytest.raises(UserError):
            short(tmp_path, "third", folder / "data", "gru", learning_rate=1e30, grad_clip=0, threads=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_text_can_be_a_folder_a_file_or_several(folder: Path, tmp_path: Path) -> None:
    song = (folder / "data" / "input.txt").read_text()
    half = song.index("\n", len(song) // 2) + 1
    for name, text in (("all", song), ("b", song[:half]), ("c", song[half:])):
        (tmp_path / f"{name}.txt").write_text(text)
    runs = [
        short(tmp_path, str(number), text)
        for number, text in enumerate(
            [
                str(folder / "data"),
                tmp_path / "all.txt",
                [tmp_path / "b.txt", str(tmp_path / "c.txt")],
                str(tmp_path / "[bc].txt"),
            ]
        )
    ]
    assert len({trained.val_loss for trained in runs}) == 1
    assert short(tmp_path, "named", data_dir=folder / "data").val_loss == runs[0].val_loss


def test_a_training_run_can_be_resumed(folder: Path, tmp_path: Path) -> None:
    whole = short(tmp_path, "whole", folder / "data", "gru")
    begun = short(tmp_path, "begun", folder / "data", "gru", max_epochs=1)
    rest = charrnn.train(resume=begun.newest, max_epochs=3, progress=False)
    assert same(whole.newest, rest.newest)
    assert begun.records[-1].iteration + 1 == rest.records[0].iteration
    losses = [[record.loss for record in trained.records] for trained in (whole, begun, rest)]
    assert losses[0] == losses[1] + losses[2]
    again = charrnn.train(resume=tmp_path / "begun", progress=False)
    assert again.newest == rest.newest and again.records == () and again.val_loss == rest.val_loss


def test_without_a_validation_split_the_best_checkpoint_is_the_newest(folder: Path, tmp_path: Path) -> None:
    trained = short(tmp_path, "cv", folder / "data", val_frac=0, max_epochs=0.1)
    assert trained.best == trained.newest == tmp_path / "cv" / "lm_lstm_last.pt" and trained.val_loss is None
    assert Checkpoint.load(trained.best).training["iteration"] == len(trained.records)


def test_settings_can_be_read_from_a_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('model = "rnn"\nmax_epochs = 1\n')
    given = {name: value for name, value in SHORT.items() if name != "max_epochs"}
    trained = charrnn.train(
        folder / "data", config=tmp_path / "mine.toml", checkpoint_dir=tmp_path, progress=False, **given
    )
    saved = Checkpoint.load(trained.best).options
    assert (saved.model, saved.max_epochs) == ("rnn", 1.0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rnn_size": 0}, ["-rnn_size", 0]),
        ({"dropout": "much"}, ["-dropout", "much"]),
        ({"optimizer": "adm"}, ["-optimizer", "adm"]),
        ({"model": "lsmt"}, ["-model", "lsmt"]),
        ({"data_dir": "nowhere"}, ["-data_dir", "nowhere"]),
        ({"text_or_folder": "nowhere"}, ["-data_dir", "nowhere"]),
        ({"config": "shakespear_fast"}, ["-config", "shakespear_fast"]),
        ({"resume": "nowhere"}, ["-resume", "nowhere"]),
        ({"input": "a", "data_dir": "b"}, ["-input", "a", "-data_dir", "b"]),
        ({"model": "rhn", "depth": 0, "data_dir": "data"}, ["-model", "rhn", "-depth", 0, "-data_dir", "data"]),
        ({"early_stop": 1, "val_frac": 0, "data_dir": "data"},
         ["-early_stop", 1, "-val_frac", 0, "-data_dir", "data"]),
        ({"learning_rate": 1e30, "grad_clip": 0, "data_dir": "data"},
         ["-learning_rate", 1e30, "-grad_clip", 0, "-data_dir", "data"]),
    ],
)  # fmt: skip
def test_training_raises_the_errors_that_the_command_prints(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], words: list[object]
) -> None:
    write_text(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    rest = {"gpuid": -1, "threads": 1, "kernels": "torch"}
    with pytest.raises(UserError) as raised:
        charrnn.train(**rest, **settings)
    done = run(tmp_path, "train", *flags(rest), *words, code=None)
    assert done.code in (1, 2)
    assert done.errors[-1].split(": ", 1)[1] == str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rnn_sise": 4}, "the model lstm has no setting rnn_sise (did you mean rnn_size?)"),
        ({"model": "gru", "depth": 4}, "the model gru has no setting depth"),
        ({"text_or_folder": "To be,\nor not"}, "not the text itself: write the text to a file"),
        ({"text_or_folder": []}, "no text file given"),
        ({"text_or_folder": "x", "input": "y"}, "the text is given twice"),
    ],
)
def test_training_reports_wrong_arguments(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        charrnn.train(progress=False, **settings)


def test_a_second_run_on_the_same_files_is_refused(folder: Path, tmp_path: Path) -> None:
    def another(record: Any) -> None:
        with pytest.raises(UserError, match="another training is saving"):
            short(tmp_path, "cv", folder / "data")

    assert short(tmp_path, "cv", folder / "data", max_epochs=0.02, on_record=another).records


def test_a_run_that_rolled_back_has_one_record_per_iteration(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(training: Training, record: Any) -> None:
        if record.iteration == 8 and not training.rollbacks:
            raise Diverged("the loss breaks")

    monkeypatch.setattr(Training, "_check", check)
    seen: list[Any] = []
    settings = {"on_nan": "rollback", "save_every": 5, "max_epochs": 0.2}
    trained = short(tmp_path, "cv", folder / "data", on_record=seen.append, **settings)
    last = trained.records[-1].iterations
    assert [record.iteration for record in seen] == [*range(1, 8), *range(6, last + 1)]
    assert trained.records == (*seen[:5], *seen[7:])


def test_the_first_interrupt_saves_and_returns_and_the_second_raises(folder: Path, tmp_path: Path) -> None:
    def interrupt(record: Any) -> None:
        if record.iteration == 30:
            signal.raise_signal(signal.SIGINT)

    trained = short(tmp_path, "cv", folder / "data", on_record=interrupt)
    assert trained.interrupted and len(trained.records) == 30
    assert trained.newest == tmp_path / "cv" / "lm_lstm_last.pt" == trained.best and trained.val_loss is None
    whole = short(tmp_path, "whole", folder / "data")
    assert same(charrnn.train(resume=trained.newest, progress=False).newest, whole.newest)

    def insist(record: Any) -> None:
        interrupt(record)
        interrupt(record)

    with pytest.raises(KeyboardInterrupt):
        short(tmp_path, "again", folder / "data", on_record=insist)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_in_on_record_ends_the_run(folder: Path, tmp_path: Path) -> None:
    def fail(record: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        short(tmp_path, "cv", folder / "data", on_record=fail)
    assert short(tmp_path, "cv", folder / "data", max_epochs=0.1).records, "the folder is no longer locked"


def test_training_works_in_a_thread(folder: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(short, tmp_path, "cv", folder / "data", max_epochs=0.1).result().records


def test_without_a_terminal_progress_is_printed_as_plain_lines(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**SHORT, "checkpoint_dir": tmp_path / "cv", "print_every": 80}
    trained = charrnn.train(folder / "data", **settings)
    lines, notes = (text.splitlines() for text in capsys.readouterr())
    printed = run(tmp_path, "train", "-data_dir", folder / "data", *flags(settings))
    assert [untimed(line) for line in lines] == [untimed(line) for line in printed.lines[:-1]]
    assert notes == printed.errors and str(trained.best) in lines[-1]
    short(tmp_path, "cv", folder / "data")
    assert capsys.readouterr() == ("", "")


def untimed(line: str) -> str:
    return re.sub(r"time/batch = .*|in \d:\d\d:\d\d", "", line)
