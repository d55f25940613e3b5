"""The addition task of the Grid LSTM paper (Kalchbrenner et al. 2015, arXiv 1507.01526, section 4.2) as a text.

A line is a problem: two numbers of N digits, their sum, and - before, between and after them, as in
``-123-899-1022-``. A sum of N digits is followed by another -, so that all lines have the same width. The most
significant digit comes first. No number begins with 0; all other numbers are equally likely.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random

from charrnn.compute import Report
from charrnn.data.datasets.download import Progress
from charrnn.data.datasets.splits import in_the_way, write_splits
from charrnn.errors import UserError
from charrnn.settings.option import FROM_ONE, Interval, Option

OPTIONS = (
    Option("digit_length", int, 2, "digits of the numbers to add", "addition", within=Interval(1, 1000)),
    Option("examples", int, 7000, "problems to train on", "addition", within=FROM_ONE),
    Option("val_examples", int, 500, "problems to validate on, kept out of training", "addition",
           within=FROM_ONE),
    Option("seed", int, 123, "seed of the random numbers", "addition", within=Interval(0, 2**63 - 1)),
)  # fmt: skip


def problem(a: int, b: int, digits: int) -> str:
    """Return the line for a + b, two numbers of ``digits`` digits, without a newline."""
    return f"-{a}-{b}-{a + b}-".ljust(width(digits), "-")


def width(digits: int) -> int:
    """Return the number of characters of a problem."""
    return question(digits) + answer(digits)


def question(digits: int) -> int:
    """Return the number of characters before the sum."""
    return 2 * digits + 3


def answer(digits: int) -> int:
    """Return the number of characters from the sum on: one digit more than each number has, and the final -."""
    return digits + 2


def digits_of(line: str) -> int:
    """Return the number of digits in a problem of this length, or 0 if no problem has this length."""
    digits, rest = divmod(len(line) - 5, 3)
    return 0 if rest else max(0, digits)


def fault(line: str, digits: int) -> str:
    """Return what is wrong with a line that should be a problem of that many digits, or ''."""
    number = f"([1-9][0-9]{{{digits - 1}}})"
    match = re.fullmatch(f"-{number}-{number}-([0-9]*)-+", line)
    if not match or len(line) != width(digits):
        example = problem(int("12345678910"[:digits].ljust(digits, "1")), int("9" * digits), digits)
        return f"{line[:60]!r} is not a problem of {digits} digit{'s' * (digits > 1)} like {example}"
    a, b = int(match[1]), int(match[2])
    return "" if line == problem(a, b, digits) else f"{a} + {b} is {a + b}, not {match[3] or 'nothing'}"


def problems(digits: int, examples: int, val_examples: int, seed: int) -> tuple[list[str], list[str]]:
    """Return distinct lines for training and for validation, the same for the same arguments on every machine.

    The two numbers of a validation problem are never added in training, in either order. Raises UserError if there are
    not that many problems.
    """
    numbers = 9 * 10 ** (digits - 1)
    pairs = numbers * (numbers + 1) // 2
    if val_examples >= pairs:
        raise UserError(f"-val_examples {val_examples}: there are only {pairs:,} pairs of {digits}-digit numbers")
    draws = drawn(digits, seed)
    held_out: set[tuple[int, int]] = set()
    val: list[str] = []
    while len(val) < val_examples:
        a, b = next(draws)
        if (a, b) not in held_out:
            held_out |= {(a, b), (b, a)}
            val.append(problem(a, b, digits))
    there = numbers**2 - len(held_out)
    if examples > there:
        raise UserError(
            f"-examples {examples}: {digits}-digit numbers make only {there:,} problems besides those for "
            "validation: ask for fewer, or for more digits"
        )
    train: dict[tuple[int, int], None] = {}
    while len(train) < examples:
        pair = next(draws)
        if pair not in held_out:
            train[pair] = None
    return [problem(a, b, digits) for a, b in train], val


def drawn(digits: int, seed: int) -> Iterator[tuple[int, int]]:
    """Yield random pairs of numbers without end. A seed gives the same pairs on every machine."""
    random = Random(seed).random  # the only method of Random whose sequence Python guarantees
    while True:
        a, b = (
            int("".join([str(int(1 + 9 * random())), *(str(int(10 * random())) for _ in range(digits - 1))]))
            for _ in range(2)
        )
        yield a, b


def prepare(
    folder: Path, report: Report, progress: Progress, *, digit_length: int, examples: int, val_examples: int, seed: int
) -> None:
    """Write ``train.txt`` and ``val.txt``. Shows no progress. Leaves files that are already correct.

    Raises UserError if different files have these names, if the folder cannot be written, and as ``problems`` does.
    """
    lines = problems(digit_length, examples, val_examples, seed)
    train, val = ("".join(f"{line}\n" for line in part).encode() for part in lines)
    if os.path.lexists(folder / "input.txt"):
        raise in_the_way(folder / "input.txt", "addition")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = write_splits(folder, "addition", [("train", train), ("val", val)])
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror or error}; choose another folder") from error
    what = f"{examples:,} problems of {digit_length} digit{'s' if digit_length > 1 else ''}"
    if written:
        report(f"wrote {what} to {folder / 'train.txt'}, {val_examples:,} to val.txt")
    else:
        report(f"{folder} already has these {what}: nothing to do")
