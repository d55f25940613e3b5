"""``charrnn.sample`` and ``charrnn.evaluate`` against the commands, setting by setting."""

from __future__ import annotations

import inspect
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import charrnn
from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.errors import UserError
from charrnn.settings.evaluation import evaluation_options
from charrnn.settings.option import Option
from charrnn.settings.sampling import sampling_options
from tests.helpers.command import SMALL, run, write_text

TEXT = "The lazy fox sleeps.\nThe dog, and over the brown fox."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, models of its characters in cv and other, of its words in words, of its bytes in bytes."""
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
        (charrnn.sample, sampling_options(), {"num_samples"}, {"checkpoint", "primetext"}),
        (charrnn.evaluate, evaluation_options(), set(), {"checkpoint", "text", "ensemble"}),
    ],
)
def test_settings_and_defaults_are_those_of_the_command(
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
def test_a_sample_is_the_commands(folder: Path, name: str, primetext: str, settings: dict[str, Any]) -> None:
    pieces = list(charrnn.sample(folder / name, primetext, 60, gpuid=-1, **settings))
    flags = [word for key, value in settings.items() for word in (f"-{key}", int(value) if value is False else value)]
    printed = run(folder, "sample", name, "-gpuid", -1, "-json", "-length", 60, "-primetext", primetext, *flags)
    assert "".join(pieces) == json.loads(printed.out)["text"]
    assert len(pieces) > 1 and all(pieces)
    if name == "bytes":
        assert "ö" in pieces or "ü" in pieces, "a character of two bytes comes whole"


def test_a_checkpoint_is_a_file_a_folder_or_loaded(folder: Path) -> None:
    file = next((folder / "cv").glob("*epoch*.pt"))
    texts = [
        "".join(charrnn.sample(source, "The", 30))
        for source in (folder / "cv", str(folder / "cv"), file, Checkpoint.load(file))
    ]
    assert len(set(texts)) == 1 and len(texts[0]) == 30
    scores = [charrnn.evaluate(source, TEXT) for source in (folder / "cv", file, Checkpoint.load(file))]
    assert scores[0] == scores[1] == scores[2]


def test_random_numbers_and_threads_are_left_alone(folder: Path) -> None:
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
        ({"beam": 3, "top_k": 2}, "-beam and -top_k exclude each other"),
        ({"checkpoint": "nowhere"}, "nowhere"),
    ],
)
def test_sampling_says_what_is_wrong_when_it_is_called(folder: Path, settings: dict[str, Any], message: str) -> None:
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
def test_an_evaluation_is_the_commands(
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


def test_an_evaluation_is_plain_figures(folder: Path) -> None:
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
        ({"text": "The dog", "split": "train"}, "-text and -split exclude each other"),
        ({"mc_samples": 2, "dynamic": 0.1}, "-mc_samples and -dynamic exclude each other"),
        ({"dynamic": -1}, "-dynamic -1: must be at least 0"),
        ({"split": "all"}, "-split all: must be one of train, val, test"),
        ({"unk": "the"}, "-unk the"),
        ({"text": "The dog", "ensemble": ["words"]}, "cannot be averaged"),
    ],
)
def test_evaluating_says_what_is_wrong(
    folder: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(UserError) as raised:
        charrnn.evaluate("cv", **settings)
    assert message in str(raised.value)
