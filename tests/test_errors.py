"""Functions that format values in messages."""

from __future__ import annotations

from charrnn.errors import listed, printable, size


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
