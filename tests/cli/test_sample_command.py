"""``charrnn sample`` as a user runs it: every flag, with real processes, files, pipes and a terminal."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import charrnn as package
from tests.helpers.command import SMALL, charrnn, environment, one_line, run, write_text

CPU = ("-gpuid", -1, "-verbose", 0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text in data and a model trained on it in cv."""
    folder = tmp_path_factory.mktemp("trained")
    write_text(folder / "data")
    run(folder, "train", "-data_dir", "data", *SMALL, "-max_epochs", 2, "-sample_length", 0)
    return folder


@pytest.fixture
def sampled(
    trained: Path,
) -> Callable[..., str]:
    """Run the command in this process, which is faster than starting one, and return what it prints."""
    return lambda *args: run(trained, "sample", "cv", *CPU, *args).out.decode()


Sampled = Callable[..., str]


@contextmanager
def endless(trained: Path, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process writing a text that would take hours to finish."""
    words = [sys.executable, "-m", "charrnn", "sample", "cv", *map(str, CPU), "-length", "100000000", *flags]
    with subprocess.Popen(words, cwd=trained, env=environment(), stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def test_each_of_several_texts_equals_the_text_of_its_own_seed(trained: Path, sampled: Sampled) -> None:
    together = sampled("-primetext", "The", "-length", 40, "-num_samples", 3, "-seed", 9, "-temperature", 2)
    texts = together.removesuffix("\n").split("\n----\n")
    assert len(set(texts)) == 3
    for k in (0, 2):
        alone = sampled("-primetext", "The", "-length", 40, "-seed", 9 + k, "-temperature", 2)
        assert texts[k] == alone.removesuffix("\n")


def test_the_thread_count_changes_nothing(trained: Path, sampled: Sampled) -> None:
    flags = ("-length", 200, "-temperature", 2)
    for threads in "12":
        done = charrnn("sample", "cv", *CPU, *flags, cwd=trained, OMP_NUM_THREADS=threads)
        assert done.stdout.decode() == sampled(*flags)


def test_json_prints_a_line_for_each_text(trained: Path, sampled: Sampled) -> None:
    flags = ("-primetext", "The", "-length", 12, "-temperature", 2, "-top_k", 9, "-num_samples", 2)
    lines = [json.loads(line) for line in sampled(*flags, "-json").splitlines()]
    assert [(line["sample"], line["seed"], line["prime"]) for line in lines] == [(0, 123, "The"), (1, 124, "The")]
    plain = "".join(f"----\nThe{line['text']}\n" for line in lines).removeprefix("----\n")
    assert plain == sampled(*flags)
    # the model's own probabilities, from its forward pass
    model, vocabulary = package.load(trained / "cv")
    for line in lines:
        tokens = torch.tensor(vocabulary.encode("The" + line["text"]))
        with torch.no_grad():
            logits, _ = model.double()(tokens[:-1, None], None)
        expected = logits[:, 0].log_softmax(-1).gather(-1, tokens[1:, None])[2:, 0]
        assert line["log_probabilities"] == pytest.approx(expected.tolist(), abs=1e-9)


def test_the_smallest_top_k_and_top_p_give_the_greedy_text(trained: Path, sampled: Sampled) -> None:
    flags = ("-primetext", "The", "-length", 30, "-temperature", 3)
    greedy = sampled(*flags, "-sample", 0)
    assert greedy == sampled(*flags, "-top_k", 1) == sampled(*flags, "-top_p", 1e-6)
    assert greedy != sampled(*flags)


def test_stop_and_until_newline_end_the_text(trained: Path, sampled: Sampled) -> None:
    whole = sampled("-primetext", "The", "-length", 400)
    first_line = whole[: whole.index("\n") + 1]
    assert sampled("-primetext", "The", "-length", 400, "-until_newline") == first_line
    end = whole.index("dog", 3) + 3
    assert sampled("-primetext", "The", "-length", 400, "-stop", "dog") == whole[:end] + "\n"
    message = one_line(charrnn("sample", "cv", *CPU, "-stop", "Ω", cwd=trained, code=1))
    assert "the text of -stop has 'Ω'" in message


def test_the_prime_text_comes_from_a_file_or_stdin(trained: Path, sampled: Sampled) -> None:
    (trained / "prime.txt").write_text("The quick\nbrown")
    by_flag = sampled("-primetext", "The quick\nbrown", "-length", 20)
    assert sampled("-primefile", "prime.txt", "-length", 20) == by_flag
    done = charrnn("sample", "cv", *CPU, "-primefile", "-", "-length", 20, cwd=trained, stdin=b"The quick\nbrown")
    assert done.stdout.decode() == by_flag
    assert "no.txt" in one_line(charrnn("sample", "cv", *CPU, "-primefile", "no.txt", cwd=trained, code=1))


def test_unknown_characters_are_an_error_or_are_skipped(trained: Path, sampled: Sampled) -> None:
    message = one_line(charrnn("sample", "cv", *CPU, "-primetext", "The Ω 7", cwd=trained, code=1))
    assert "'7', 'Ω'" in message and "-unknown skip" in message
    done = charrnn("sample", "cv", "-gpuid", -1, "-primetext", "Th7eΩ", "-unknown", "skip", "-length", 9, cwd=trained)
    assert done.stdout.decode() == sampled("-primetext", "The", "-length", 9)
    assert "skipped in the prime text" in done.stderr.decode() and "'7', 'Ω'" in done.stderr.decode()


def test_a_beam_finds_a_text_at_least_as_probable_as_the_greedy_one(trained: Path, sampled: Sampled) -> None:
    flags = ("-primetext", "T", "-length", 40, "-json")
    greedy, beam = (json.loads(sampled(*flags, *way)) for way in (("-sample", 0), ("-beam", 20)))
    assert len(beam["text"]) == 40 and beam["seed"] is None
    assert sum(beam["log_probabilities"]) >= sum(greedy["log_probabilities"]) - 1e-9
    assert sampled(*flags[:-1], "-beam", 20) == f"T{beam['text']}\n"


def test_an_output_file_is_replaced_once_it_is_complete(trained: Path, sampled: Sampled) -> None:
    flags = ("-primetext", "The", "-length", 30)
    assert sampled(*flags, "-output", "out.txt") == ""
    assert (trained / "out.txt").read_text() == sampled(*flags)
    # after an interrupt the old file is still there, and no new one
    before = sorted(trained.iterdir())
    with endless(trained, "-output", "out.txt") as process:
        deadline = time.monotonic() + 60
        while sorted(trained.iterdir()) == before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert sorted(trained.iterdir()) != before
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert sorted(trained.iterdir()) == before
    assert (trained / "out.txt").read_text() == sampled(*flags)
    assert "no/such" in one_line(charrnn("sample", "cv", *CPU, "-output", "no/such/file", cwd=trained, code=1))


def test_text_is_written_as_it_is_generated(trained: Path) -> None:
    with endless(trained) as process:
        assert process.stdout is not None
        text = b""
        while len(text) < 2000:
            text += os.read(process.stdout.fileno(), 1000)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(60) == 130


def test_a_conversation_works_through_a_pipe(trained: Path, sampled: Sampled) -> None:
    asked = b"The\n\n/temperature 3\n/length 7\nThe\n/seed 123\n/length 20\n/temperature 1\nThe\n/lenth 3\n/top_p 2\n" \
        b"/temperature 0\nThe 7\n//\n/help\n/seed\n"  # fmt: skip
    done = charrnn("sample", "cv", "-gpuid", -1, "-interactive", "-length", 20, cwd=trained, stdin=asked)
    single = [sampled("-primetext", "The", "-length", 20, "-seed", seed) for seed in (123, 124)]
    third = sampled("-primetext", "The", "-length", 7, "-seed", 125, "-temperature", 3)
    assert done.stdout.decode() == single[0] + single[1] + third + single[0]
    said = done.stderr.decode()
    for words in (
        "temperature 3\nlength 7\nseed 123\n",
        "unknown command /lenth (did you mean length?)",
        "-top_p 2: must be above 0 and at most 1",
        "-temperature 0: must be positive",
        "'7'",
        "the prime text has '/'",
        "Ctrl-D ends",
        "seed 124",
    ):
        assert words in said, (words, said)


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="this system has no pseudo-terminals")
def test_a_conversation_works_on_a_terminal(trained: Path, sampled: Sampled) -> None:
    ours, theirs = os.openpty()
    words = [sys.executable, "-m", "charrnn", "sample", "cv", "-gpuid", "-1", "-interactive", "-length", "30"]
    env = environment(TERM="xterm")
    with subprocess.Popen(words, cwd=trained, env=env, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)

        def seen(until: str) -> str:
            text = b""
            while until.encode() not in text:
                if not select.select([ours], [], [], 60)[0]:
                    process.kill()
                    raise AssertionError(text)
                text += os.read(ours, 1000)
            return text.decode()

        assert "/help" in seen("> ")
        os.write(ours, b"The\n")
        text = seen("> ").replace("\r\n", "\n")
        assert sampled("-primetext", "The", "-length", 30) in text
        os.write(ours, b"\x04")
        assert process.wait(60) == 0
    os.close(ours)


@pytest.mark.parametrize(
    "flags",
    [
        "-primetext a -primefile b",
        "-stop a -until_newline",
        "-beam 3 -temperature 1",
        "-beam 3 -top_k 1",
        "-beam 3 -num_samples 2",
        "-interactive -json",
        "-interactive -output x",
        "-primefile a -primetext",
    ],
)
def test_flags_that_cannot_be_combined_are_refused(flags: str) -> None:
    message = run(Path(), "sample", "cv", *flags.split(), code=2).err.decode()
    assert "cannot be combined" in message
    assert all(word in message for word in flags.split() if word.startswith("-") and word != "-primetext")
