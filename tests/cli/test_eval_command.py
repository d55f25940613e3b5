"""``charrnn eval``: every figure is compared with a loop that reads one character at a time."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import charrnn as package
from charrnn import registry
from charrnn.errors import UserError
from charrnn.evaluation.dynamic import dynamic_losses
from charrnn.evaluation.loss import losses
from charrnn.evaluation.scoring import averaged
from tests.helpers.command import SMALL, SONG, charrnn, one_line, run, write_text
from tests.helpers.recorded import pairs, stream_score

TEXT = "The lazy fox sleeps.\n\nThe dog, and over\nthe brown fox, a quick fox jumps on and on\nand"
Scores = Callable[..., Any]
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text in data, an LSTM trained on it in cv, an RHN in other, and a text to score."""
    folder = tmp_path_factory.mktemp("trained")
    write_text(folder / "data")
    flags = ("-data_dir", "data", *SMALL, "-max_epochs", 1, "-sample_length", 0, "-dropout", 0.1)
    run(folder, "train", *flags)
    run(folder, "train", *flags, "-model", "rhn", "-checkpoint_dir", "other")
    (folder / "text.txt").write_text(TEXT)
    return folder


@pytest.fixture
def scores(trained: Path) -> Scores:
    """Run the command in this process and return what it prints; with -json, the object."""

    def evaluated(*args: object) -> Any:
        out = run(trained, "eval", "cv", "-gpuid", -1, *args).out.decode()
        return json.loads(out) if "-json" in args else out

    return evaluated


@torch.no_grad()
def naive(model: nn.Module, tokens: list[int]) -> list[float]:
    """The loss in nats of each token but the first, from reading one token at a time."""
    found, state = [], None
    for x, y in pairwise(tokens):
        logits, state = model(torch.tensor([[x]]), state)
        found.append(-logits[0, 0].double().log_softmax(-1)[y].item())
    return found


def of_text(folder: Path, name: str = "cv") -> list[float]:
    model, vocabulary = package.load(folder / name)
    return naive(model, vocabulary.encode(TEXT))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_every_character_has_its_own_loss(trained: Path, scores: Scores) -> None:
    result = scores("-text", "text.txt", "-per_char", "-json")
    assert "".join(item["character"] for item in result["per_char"]) == TEXT
    first, *rest = [item["loss"] for item in result["per_char"]]
    assert first is None
    assert rest == pytest.approx(of_text(trained), abs=1e-5)
    assert result["loss"] == pytest.approx(mean(rest))
    lines = [json.loads(line) for line in scores("-text", "text.txt", "-per_char").splitlines()]
    assert lines == result["per_char"]


def test_every_line_has_its_own_loss_and_the_worst_is_first(trained: Path, scores: Scores) -> None:
    nats = of_text(trained)
    expected, start = [], 0
    for number, line in enumerate(TEXT.splitlines(keepends=True), 1):
        end = start + len(line)
        each = nats[max(0, start - 1) : end - 1]
        expected.append([mean(each), number, len(each), line.removesuffix("\n")])
        start = end
    expected.sort(reverse=True)
    found = scores("-text", "text.txt", "-per_line", "-json")["per_line"]
    assert [[line["line"], line["characters"], line["text"]] for line in found] == [row[1:] for row in expected]
    assert [line["loss"] for line in found] == pytest.approx([loss for loss, *_ in expected], abs=1e-5)
    assert found[0]["bpc"] == pytest.approx(found[0]["loss"] / math.log(2))
    rows = [row.split("\t") for row in scores("-text", "text.txt", "-per_line").splitlines()]
    assert rows == [
        [str(line["line"]), f"{line['loss']:.4f}", f"{line['bpc']:.4f}", str(line["characters"]), line["text"]]
        for line in found
    ]


def test_losses_per_line_work_on_a_split(trained: Path, scores: Scores) -> None:
    plain = scores("-json")
    result = scores("-per_line", "-json")
    assert result["loss"] == pytest.approx(plain["loss"], abs=1e-6)
    assert result["characters"] == plain["characters"] == sum(line["characters"] for line in result["per_line"])
    total = sum(line["characters"] * line["loss"] for line in result["per_line"])
    assert total / plain["characters"] == pytest.approx(plain["loss"], abs=1e-6)
    assert {line["text"] for line in result["per_line"]} & set(SONG.splitlines())


def test_dynamic_evaluation_at_rate_0_changes_nothing_and_a_good_rate_lowers_the_loss(
    trained: Path, scores: Scores
) -> None:
    before = (trained / "cv" / os.listdir(trained / "cv")[0]).read_bytes()
    for what in (("-text", "data/input.txt"), ()):
        still = scores(*what, "-dynamic", 0, "-json")
        assert still["dynamic"]["loss"] == pytest.approx(still["loss"], abs=1e-6)
        adapted = scores(*what, "-dynamic", 0.02, "-json")
        assert adapted["loss"] == still["loss"]
        assert adapted["dynamic"]["loss"] < still["loss"]
        assert adapted["characters"] == adapted["dynamic"]["characters"]
    assert "dynamic evaluation at learning rate 0.02" in scores("-text", "text.txt", "-dynamic", 0.02)
    assert (trained / "cv" / os.listdir(trained / "cv")[0]).read_bytes() == before


def test_with_batch_size_1_a_split_file_is_read_as_one_stream(trained: Path, scores: Scores) -> None:
    (trained / "files").mkdir()
    (trained / "files" / "train.txt").write_text(SONG * 40)
    (trained / "files" / "val.txt").write_text(TEXT)
    result = scores("-data_dir", "files", "-batch_size", 1, "-per_char", "-json")
    assert "".join(item["character"] for item in result["per_char"]) == TEXT
    assert [item["loss"] for item in result["per_char"][1:]] == pytest.approx(of_text(trained), abs=1e-5)
    assert scores("-data_dir", "files", "-batch_size", 1, "-json")["loss"] == pytest.approx(result["loss"])


@torch.no_grad()
def test_dynamic_losses_belong_to_their_own_characters(trained: Path, scores: Scores) -> None:
    still, adapted = (scores(*way, "-per_char", "-json")["per_char"] for way in ((), ("-dynamic", 0)))
    assert [item["character"] for item in still] == [item["character"] for item in adapted]
    model, vocabulary = package.load(trained / "cv")
    # the rows are read one after another, carrying the state; the first character of a row has no loss
    expected: list[Any] = []
    state, before = None, [-1]
    for item in adapted:
        token = vocabulary.encode(item["character"])
        if item["loss"] is None:
            expected.append(None)
        else:
            logits, state = model(torch.tensor([before]), state)
            expected.append(pytest.approx(-logits[0, 0].double().log_softmax(-1)[token].item(), abs=1e-5))
        before = token
    assert [item["loss"] for item in adapted] == expected
    assert expected.count(None) == 4


def test_lines_have_the_losses_of_dynamic_evaluation(scores: Scores) -> None:
    result = scores("-dynamic", 0.02, "-per_line", "-json")
    total = sum(line["characters"] * line["loss"] for line in result["per_line"])
    assert total / result["characters"] == pytest.approx(result["dynamic"]["loss"])


def learned_losses(model: nn.Module, tokens: Tensor, rate: float, segment: int) -> list[float]:
    """The losses of a loop that reads one token at a time and learns from each segment."""
    model.eval()
    found: list[float] = []
    state: Any = None
    for start in range(0, len(tokens) - 1, segment):
        nats = []
        for x, y in pairwise(tokens[start : start + segment + 1]):
            logits, state = model(x[None, None], state)
            nats.append(-logits[0, 0].log_softmax(-1)[y])
        model.zero_grad()
        sum(nats, torch.zeros(())).backward()
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p -= rate * p.grad
        state = tuple(part.detach() for part in state)
        found += [loss.item() for loss in nats]
    return found


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", registry.models())
def test_dynamic_losses_are_those_of_a_loop_that_learns(name: str, frozen: bool) -> None:
    torch.manual_seed(2)
    model = registry.find(name).create(6, 8, 2, 0.4).double()
    next(model.parameters()).requires_grad_(not frozen)
    tokens = torch.randint(6, (24,))
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    found = dynamic_losses(model, tokens[:-1], tokens[1:], 0.3, 5)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert model.training
    assert found.tolist() == pytest.approx(learned_losses(model, tokens, 0.3, 5), rel=1e-9)
    assert found.tolist()[5:] != pytest.approx(losses_of(model, weights, tokens)[5:], rel=1e-3)


@torch.no_grad()
def losses_of(model: nn.Module, weights: dict[str, Tensor], tokens: Tensor) -> list[float]:
    model.load_state_dict(weights)
    return losses(model, tokens[:-1, None], tokens[1:, None]).flatten().tolist()


def test_a_rate_at_which_the_weights_diverge_is_an_error() -> None:
    torch.manual_seed(2)
    model = registry.find("rnn").create(6, 8, 1, 0.0)
    tokens = torch.randint(6, (40,))
    with pytest.raises(UserError, match="lower the learning rate"):
        dynamic_losses(model, tokens[:-1], tokens[1:], 1e38, 5)


def test_an_ensemble_averages_the_probabilities(trained: Path, scores: Scores) -> None:
    one, other = of_text(trained), of_text(trained, "other")
    expected = [-math.log((math.exp(-a) + math.exp(-b)) / 2) for a, b in zip(one, other, strict=True)]
    result = scores("-text", "text.txt", "-ensemble", "other", "-per_char", "-json")
    assert [item["loss"] for item in result["per_char"][1:]] == pytest.approx(expected, abs=1e-5)
    assert result["loss"] == pytest.approx(mean(expected), abs=1e-5)
    assert [Path(path).parent.name for path in result["ensemble"]] == ["other"]
    three = scores("-text", "text.txt", "-ensemble", "other", "-ensemble", "cv", "-json")
    expected = [-math.log((2 * math.exp(-a) + math.exp(-b)) / 3) for a, b in zip(one, other, strict=True)]
    assert three["loss"] == pytest.approx(mean(expected), abs=1e-5)


def test_an_ensemble_of_identical_models_equals_the_model(scores: Scores) -> None:
    for what in (("-text", "text.txt"), (), ("-dynamic", 0.01)):
        alone, twice = scores(*what, "-json"), scores(*what, "-ensemble", "cv", "-json")
        assert twice["loss"] == pytest.approx(alone["loss"], abs=1e-6)
        assert twice.get("dynamic", {}).get("loss") == pytest.approx(alone.get("dynamic", {}).get("loss"), abs=1e-9)


def test_very_small_probabilities_are_averaged_without_underflow() -> None:
    nats = [torch.tensor([800.0, 1.0], dtype=torch.float64), torch.tensor([900.0, 2.0], dtype=torch.float64)]
    expected = [800 + math.log(2), -math.log((math.exp(-1) + math.exp(-2)) / 2)]
    assert averaged(nats).tolist() == pytest.approx(expected)


def test_models_of_an_ensemble_must_have_the_same_characters(trained: Path, tmp_path: Path) -> None:
    write_text(tmp_path / "data", SONG.replace("fox", "f0x") * 80)
    charrnn("train", "-data_dir", "data", *SMALL, "-max_epochs", 0.1, "-sample_length", 0, cwd=tmp_path)
    done = charrnn("eval", "cv", "-gpuid", -1, "-ensemble", tmp_path / "cv", "-text", "text.txt", cwd=trained, code=1)
    message = one_line(done)
    assert "cannot be averaged: only " in message
    assert message.endswith(" has '0'")


def test_monte_carlo_evaluation_combines_with_the_other_flags(scores: Scores) -> None:
    flags = ("-text", "text.txt", "-mc_samples", 3, "-json")
    result = scores(*flags, "-per_char")
    assert result["loss"] == scores(*flags)["loss"] == pytest.approx(mean([i["loss"] for i in result["per_char"][1:]]))
    assert result["loss"] != pytest.approx(scores("-text", "text.txt", "-json")["loss"], abs=1e-6)
    assert scores(*flags, "-ensemble", "cv")["loss"] == pytest.approx(result["loss"])


@torch.no_grad()
def test_a_text_read_in_blocks_has_the_same_losses_as_one_read_token_by_token(trained: Path) -> None:
    model, vocabulary = package.load(trained / "cv")
    tokens = torch.tensor(vocabulary.encode(TEXT))
    assert losses(model, *pairs(tokens), block=7)[:, 0].tolist() == pytest.approx(of_text(trained), abs=1e-5)
    score = stream_score(model, tokens, block=7)
    assert score.loss == pytest.approx(mean(of_text(trained)), abs=1e-5)
    assert score.tokens == len(TEXT) - 1


@pytest.mark.parametrize(
    "flags",
    [
        "-text a -split val",
        "-text a -data_dir b",
        "-text a -batch_size 1",
        "-mc_samples 2 -dynamic 1",
        "-per_line -per_char",
    ],
)
def test_flags_that_cannot_be_combined_are_refused(flags: str) -> None:
    message = run(Path(), "eval", "cv", *flags.split(), code=2).err.decode()
    assert "cannot be combined" in message
    assert all(word in message for word in flags.split() if word.startswith("-"))


def shown(trained: Path, monkeypatch: pytest.MonkeyPatch, *args: object, **env: str) -> str:
    """Return the output of eval on a terminal of 60 columns and 12 lines."""
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "60", "LINES": "12"}.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return run(trained, "eval", "cv", "-gpuid", -1, *args, terminal=True).out.decode()


def test_a_terminal_shows_as_many_lines_as_fit(trained: Path, scores: Scores, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = scores("-per_line").splitlines()
    lines = ESCAPES.sub("", shown(trained, monkeypatch, "-per_line", NO_COLOR="1")).splitlines()
    assert len(lines) <= 12 and all(len(line) <= 60 for line in lines)
    assert lines[0].split() == ["line", "loss", "bpc", "characters", "text"]
    assert lines[1].split()[:4] == everything[0].split("\t")[:4]
    assert lines[-1].startswith(f"{len(everything) - 6} more;")
    for count in (6, 7):
        (trained / "lines.txt").write_text(SONG * count)
        output = ESCAPES.sub("", shown(trained, monkeypatch, "-per_line", "-text", "lines.txt", NO_COLOR="1"))
        assert (" more;" in output) == (count > 6)


def test_a_terminal_shows_the_loss_of_each_character_as_colour(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    colours = shown(trained, monkeypatch, "-text", "text.txt", "-per_char")
    text, legend, _ = colours.partition("bits of surprise")
    assert legend and "\x1b[33m" in text and "\x1b[2m" in text
    assert ESCAPES.sub("", colours).replace("↵", "").startswith(TEXT)
    without = shown(trained, monkeypatch, "-text", "text.txt", "-per_char", NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", without)
