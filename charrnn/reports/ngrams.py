"""Find the n-grams of a short text that occur in a training text of any length, and the longest passage in both.

An n-gram is a sequence of n tokens. The training text is read in chunks, and its n-grams are looked up among those of
the short text by a 64-bit hash (Karp and Rabin). A place whose n-gram is not in the short text is not tried for n + 1,
so the work shrinks quickly. For 100 MB of text, the chance that a hash collision makes a share wrong is less than one
in a hundred thousand. The longest passage is compared token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from charrnn.data.encode import IdArray, TokenIds

NGRAMS = range(4, 51)

CHUNK = 1 << 18  # tokens of training text at a time, so that intermediate arrays stay in the processor's cache

BASE = 0x9E3779B97F4A7C15  # base of the hash: odd, so that it has an inverse, and with well-mixed bits

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Passage:
    """A passage that occurs in both texts."""

    # in tokens
    length: int
    # index of its first token in the text
    place: int
    # index of its first token in the training text
    source: int


@dataclass(frozen=True)
class Figures:
    """How much of a text occurs in the training text."""

    # number of tokens in the text, without separators
    characters: int
    # by n: the share of the text's n-grams that occur in the training text, for each n in NGRAMS if it has any
    shares: dict[int, float]
    # the longest passage; of several, the one that comes first in the training text
    longest: Passage | None


def measure(text: IdArray, training: TokenIds, separator: int) -> Figures:
    """Compare a text with the training text, both (N,) unsigned integers.

    Sequences that contain the separator do not count as n-grams, since it joins pieces that need not be adjacent.
    """
    wanted = [grams for n in NGRAMS if (grams := Ngrams(text, n, separator)).keys.size]
    longest_match = {start: _scan_chunk(training, start, wanted) for start in range(0, len(training), CHUNK)}
    shares = {grams.n: grams.share for grams in wanted}
    return Figures(int((text != separator).sum()), shares, _longest(text, training, separator, longest_match))


class Ngrams:
    """The n-grams of a text, by hash, and which of them have been found in the training text."""

    # bits of a table entry: the text has n-grams whose hash begins with the entry's index; some are not found yet
    PRESENT, MISSING = 1, 2

    def __init__(self, text: IdArray, n: int, separator: int) -> None:
        self.n = n
        hashes = ngram_hashes(text, n)[_without_separator(text, n, separator)]
        self.keys, self.counts = np.unique(hashes, return_counts=True)
        self.found = np.zeros(len(self.keys), bool)
        # indexed by the leading bits of a hash, and so large that most n-grams of the training text hit an empty entry
        bits = min(max(16, len(self.keys).bit_length() + 4), 24)
        self.shift = np.uint64(64 - bits)
        self.table = np.zeros(1 << bits, np.uint8)
        self._fill_table()

    def _fill_table(self) -> None:
        self.missing = len(self.found) - np.count_nonzero(self.found)
        self.table[self.keys >> self.shift] = self.PRESENT
        self.table[self.keys[~self.found] >> self.shift] = self.PRESENT | self.MISSING

    def find(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Record that n-grams with these hashes were found. Return which of the hashes may occur in the text."""
        marks: NDArray[np.uint8] = self.table[hashes >> self.shift]
        if len(new := hashes[marks > self.PRESENT]):
            self.found[self.index(new)[self.has(new)]] = True
            # a stale table only costs time, but so does filling it: wait until half of the missing n-grams are found
            if len(self.found) - np.count_nonzero(self.found) <= self.missing // 2:
                self._fill_table()
        return np.not_equal(marks, 0)

    def has(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Return which of the hashes occur in the text."""
        return np.equal(self.keys[self.index(hashes)], hashes)

    def index(self, hashes: Hashes) -> NDArray[np.intp]:
        """Return for each hash the index of the only key that can equal it."""
        return np.searchsorted(self.keys, hashes).clip(max=len(self.keys) - 1)

    @property
    def share(self) -> float:
        return float(self.counts[self.found].sum() / self.counts.sum())


def ngram_hashes(tokens: IdArray, n: int) -> Hashes:
    """Return the hash of every n-gram, (N - n + 1,): the sum over k of tokens[i + k] * BASE**(k + 1), modulo 2**64."""
    if n > len(tokens):
        return np.empty(0, np.uint64)
    sums = np.zeros(len(tokens) + 1, np.uint64)
    np.cumsum(tokens * _powers(BASE, len(tokens)), out=sums[1:])
    inverse = pow(BASE, -1, 1 << 64)
    return (sums[n:] - sums[:-n]) * (_powers(inverse, len(sums) - n) * np.uint64(BASE))


def _powers(base: int, n: int) -> Hashes:
    """Return base**1 to base**n, modulo 2**64."""
    return np.cumprod(np.full(n, base, np.uint64), dtype=np.uint64)


def _without_separator(text: IdArray, n: int, separator: int) -> NDArray[np.bool_]:
    """Return which n-grams contain no separator, (N - n + 1,)."""
    if n > len(text):
        return np.empty(0, bool)
    separators: NDArray[np.intp] = np.concatenate([[0], np.cumsum(text == separator)])
    return np.equal(separators[n:], separators[:-n])


def _scan_chunk(training: TokenIds, start: int, wanted: Sequence[Ngrams]) -> int:
    """Look for the n-grams that begin in one chunk of the training text.

    Return the largest n in NGRAMS such that the chunk may contain one of the n-grams, or NGRAMS.start - 1.
    """
    n = NGRAMS.start
    tokens = training[start : start + CHUNK + NGRAMS.stop].astype(np.uint64)
    powers = _powers(BASE, NGRAMS.stop)
    hashes = ngram_hashes(tokens, n)[:CHUNK]
    places = np.arange(len(hashes))
    for grams in wanted:
        if grams.n > n:
            n = grams.n
            places = places[: np.searchsorted(places, len(tokens) - n, side="right")]
            hashes = hashes[: len(places)] + tokens[places + n - 1] * powers[n - 1]
        possible = grams.find(hashes)
        places, hashes = places[possible], hashes[possible]
        if not len(places):
            return n - 1
    return NGRAMS.stop - 1


def _longest(text: IdArray, training: TokenIds, separator: int, longest_match: dict[int, int]) -> Passage | None:
    """Return the longest passage, by a binary search for its length: every part of a passage is a passage, too."""
    longest, n, step, growing = None, 0, 1, True
    while step:
        found = _find_passage(text, training, separator, longest_match, n + step)
        if found:
            longest, n = found, n + step
        growing = growing and found is not None
        step = step * 2 if growing else step // 2
    return longest


def _find_passage(
    text: IdArray, training: TokenIds, separator: int, longest_match: dict[int, int], n: int
) -> Passage | None:
    """Return the first passage of n tokens in the training text that also occurs in the text."""
    wanted = Ngrams(text, n, separator)
    if not wanted.keys.size:
        return None
    for start, match in longest_match.items():
        if match < min(n, NGRAMS.stop - 1):
            continue
        hashes = ngram_hashes(training[start : start + CHUNK + n - 1], n)
        possible = np.flatnonzero(wanted.table[hashes >> wanted.shift])
        for i in possible[wanted.has(hashes[possible])].tolist():
            place = int(np.flatnonzero(ngram_hashes(text, n) == hashes[i])[0])
            if np.array_equal(text[place : place + n], training[start + i : start + i + n]):
                return Passage(n, place, start + i)
    return None
