"""Output of text: bytes to a file, whole characters to a terminal, both without delay."""

from __future__ import annotations

import json
import math
from io import BufferedWriter, BytesIO

import pytest

from charrnn.errors import printable
from charrnn.sampling.output import Stream, write_json, write_plain
from charrnn.sampling.sampler import Written


def test_a_file_gets_the_bytes_and_a_terminal_gets_whole_printable_characters() -> None:
    pieces = [*(bytes([byte]).decode("utf-8", "surrogateescape") for byte in "né \x1b[1m🌸\n".encode()), "\udcf0"]
    raw, shown = BytesIO(), BytesIO()
    for file, escape in ((raw, None), (shown, printable)):
        stream = Stream(file, escape)
        for piece in pieces:
            stream.write(piece)
        stream.flush()
    assert raw.getvalue() == "né \x1b[1m🌸\n".encode() + b"\xf0"
    assert shown.getvalue().decode() == "né \\x1b[1m🌸\n\\udcf0"


def test_text_appears_at_once_but_without_a_write_for_each_character(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("charrnn.sampling.output.time.monotonic", lambda: now)
    arrived = BytesIO()
    stream = Stream(BufferedWriter(arrived))
    seen = []
    for character, seconds in (("a", 1.0), ("b", 1.001), ("c", 1.002), ("d", 1.05), ("e", 1.051)):
        now = seconds
        stream.write(character)
        seen.append(arrived.getvalue().decode())
    assert seen == ["a", "a", "a", "abcd", "abcd"]
    stream.flush()
    assert arrived.getvalue() == b"abcde"


@pytest.mark.parametrize(
    ("stop", "expected"),
    [("", "pa\n\n----\npb\n\n"), ("\n", "pa\n----\npb\n"), ("c", "pa\n\n----\npb\n\n")],
)
def test_a_newline_follows_a_text_unless_the_text_stopped_at_one(stop: str, expected: str) -> None:
    file = BytesIO()
    written = [Written(1, "b", math.nan), Written(0, "a", math.nan), Written(1, "\n", math.nan), Written(0, "\n", 0.0)]
    write_plain(Stream(file), "p", 2, written, stop)
    assert file.getvalue().decode() == expected


def test_json_joins_the_bytes_of_a_character() -> None:
    file = BytesIO()
    write_json(
        Stream(file), "p", [None, 7], [Written(1, "\udcc3", -1.0), Written(0, "a", -2.0), Written(1, "\udca9", 0)]
    )
    assert [json.loads(line) for line in file.getvalue().decode().splitlines()] == [
        {"sample": 0, "seed": None, "prime": "p", "text": "a", "log_probabilities": [-2.0]},
        {"sample": 1, "seed": 7, "prime": "p", "text": "é", "log_probabilities": [-1.0, 0]},
    ]
