"""Functions that format values in messages, and a test for every message."""

from __future__ import annotations

from charrnn.errors import listed, printable, size
from tests.helpers.messages import Message, messages, strings_of_tests, untested


def test_a_long_list_ends_with_a_count() -> None:
    assert listed([]) == ""
    assert listed("abc", 3) == "a, b, c"
    assert listed("abcde", 3) == "a, b, c and 2 more"
    assert listed(map(str, range(1021))).endswith("19 and 1,001 more")


def test_control_characters_are_escaped() -> None:
    assert printable("ü汉🌸 \u00a0\n\t") == "ü汉🌸 \u00a0\n\t"
    assert printable("\x1b[31m\u2028\udcff\u200d") == r"\x1b[31m\u2028\udcff\u200d"
    assert printable("a\nb\tc", keep="") == r"a\nb\tc"


def test_sizes_are_shown_in_a_suitable_unit() -> None:
    assert [size(count) for count in (0, 1_250_000, 3_000_000_000)] == ["0.0 MB", "1.2 MB", "3.0 GB"]


def test_every_error_message_occurs_in_a_test() -> None:
    """A message counts if a string in the tests has twelve consecutive characters of it. Add tests for missing ones."""
    found = list(messages())
    assert len(found) > 150
    missing = untested(found, list(strings_of_tests()))
    assert not missing, "\n".join(f"{message.place}: {'...'.join(message.parts)}" for message in missing)


def test_a_message_that_occurs_in_no_test_is_detected() -> None:
    known = [Message("a.py:1", ("cannot read the file ", ": ")), Message("a.py:2", ("no ", " here"))]
    assert untested(known, ["read the file x", "not here"]) == []
    assert untested(known, ["the file x", "nothing he re"]) == known
