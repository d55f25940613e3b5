"""Which n-grams of a text occur in another, however long that is, and the longest passage that does.

An n-gram is a stretch of n characters. Those of the long text stream past in chunks and are looked up among those of
the other by a 64-bit hash, after Karp and Rabin; one that is not there is out of the race for n + 1, so that the work
falls off quickly. That two n-grams of one hash make a share wrong has, for 100 MB, a chance of less than one in a
hundred thousand; the longest passage is compared character by character.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from charrnn.data.encode import Tokens

NGRAMS = range(4, 51)


CHUNK = 1 << 18  # characters of training text at a time: what is made of them stays in the cache


BASE = 0x9E3779B97F4A7C15  # of the hash: odd, as it needs an inverse, with its bits well mixed


Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Passage:
    """A passage that two texts share: ``length`` characters, from ``place`` in the one and ``source`` in the other."""

    length: int
    place: int
    source: int


@dataclass(frozen=True)
class Figures:
    """How much of a text occurs in the training text.

    characters: of the text; shares: n -> share of its n-grams, for each n in NGRAMS of which it has any; longest: the
    first of the longest passages in the training text, None where not even one character occurs there.
    """

    characters: int
    shares: dict[int, float]
    longest: Passage | None


def measure(text: Tokens, training: Tokens, separator: int) -> Figures:
    """Compare a text with the training text, each (N,) unsigned integers.

    What contains the separator is no n-gram: it stands between pieces of text that did not follow on each other.
    """
    wanted = [grams for n in NGRAMS if (grams := Wanted(text, n, separator)).keys.size]
    depths = {start: _pass_by(training, start, wanted) for start in range(0, len(training), CHUNK)}
    shares = {grams.n: grams.share for grams in wanted}
    return Figures(int((text != separator).sum()), shares, _longest(text, training, separator, depths))


class Wanted:
    """The n-grams of a text, by their hashes, and which of them have been met."""

    POSSIBLE, MISSING = 1, 2

    def __init__(self, text: Tokens, n: int, separator: int) -> None:
        self.n = n
        hashes = ngram_hashes(text, n)[_whole(text, n, separator)]
        self.keys, self.counts = np.unique(hashes, return_counts=True)
        self.met = np.zeros(len(self.keys), bool)
        # a table of the hashes' leading bits, so large that most other n-grams miss it, within reason
        bits = min(max(16, len(self.keys).bit_length() + 4), 24)
        self.shift = np.uint64(64 - bits)
        self.table = np.zeros(1 << bits, np.uint8)
        self._mark()

    def _mark(self) -> None:
        self.missing = len(self.met) - np.count_nonzero(self.met)
        self.table[self.keys >> self.shift] = self.POSSIBLE
        self.table[self.keys[~self.met] >> self.shift] = self.POSSIBLE | self.MISSING

    def meet(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Mark the n-grams with these hashes as met. Returns which of the hashes can be the text's at all."""
        marks: NDArray[np.uint8] = self.table[hashes >> self.shift]
        if len(new := hashes[marks > self.POSSIBLE]):
            self.met[self.index(new)[self.among(new)]] = True
            # marks that are out of date cost time alone, and so does every marking
            if len(self.met) - np.count_nonzero(self.met) <= self.missing // 2:
                self._mark()
        return np.not_equal(marks, 0)

    def among(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Which of the hashes are the text's."""
        return np.equal(self.keys[self.index(hashes)], hashes)

    def index(self, hashes: Hashes) -> NDArray[np.intp]:
        """For each hash the place of the only key that it can equal."""
        return np.searchsorted(self.keys, hashes).clip(max=len(self.keys) - 1)

    @property
    def share(self) -> float:
        return float(self.counts[self.met].sum() / self.counts.sum())


def ngram_hashes(tokens: Tokens, n: int) -> Hashes:
    """The hash of every n-gram, (N - n + 1,): the sum over k of tokens[i + k] * BASE**(k + 1), modulo 2**64."""
    if n > len(tokens):
        return np.empty(0, np.uint64)
    sums = np.zeros(len(tokens) + 1, np.uint64)
    np.cumsum(tokens * _powers(BASE, len(tokens)), out=sums[1:])
    inverse = pow(BASE, -1, 1 << 64)
    return (sums[n:] - sums[:-n]) * (_powers(inverse, len(sums) - n) * np.uint64(BASE))


def _powers(base: int, n: int) -> Hashes:
    """base**1 to base**n, modulo 2**64."""
    return np.cumprod(np.full(n, base, np.uint64), dtype=np.uint64)


def _whole(text: Tokens, n: int, separator: int) -> NDArray[np.bool_]:
    """Which n-grams contain no separator, (N - n + 1,)."""
    if n > len(text):
        return np.empty(0, bool)
    separators: NDArray[np.intp] = np.concatenate([[0], np.cumsum(text == separator)])
    return np.equal(separators[n:], separators[:-n])


def _pass_by(training: Tokens, start: int, wanted: Sequence[Wanted]) -> int:
    """Meet the n-grams that begin in one chunk of the training text. Returns the largest n, of NGRAMS or the one below,
    of which the chunk can have any of the text's."""
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
        possible = grams.meet(hashes)
        places, hashes = places[possible], hashes[possible]
        if not len(places):
            return n - 1
    return NGRAMS.stop - 1


def _longest(text: Tokens, training: Tokens, separator: int, depths: dict[int, int]) -> Passage | None:
    """The longest passage, by doubling a step and then halving it: parts of a passage are passages."""
    longest, n, step, growing = None, 0, 1, True
    while step:
        found = _find(text, training, separator, depths, n + step)
        if found:
            longest, n = found, n + step
        growing = growing and found is not None
        step = step * 2 if growing else step // 2
    return longest


def _find(text: Tokens, training: Tokens, separator: int, depths: dict[int, int], n: int) -> Passage | None:
    """The first passage of n characters in the training text that the text has, too."""
    wanted = Wanted(text, n, separator)
    if not wanted.keys.size:
        return None
    for start in (start for start, depth in depths.items() if depth >= min(n, NGRAMS.stop - 1)):
        hashes = ngram_hashes(training[start : start + CHUNK + n - 1], n)
        possible = np.flatnonzero(wanted.table[hashes >> wanted.shift])
        for i in possible[wanted.among(hashes[possible])].tolist():
            place = int(np.flatnonzero(ngram_hashes(text, n) == hashes[i])[0])
            if np.array_equal(text[place : place + n], training[start + i : start + i + n]):
                return Passage(n, place, start + i)
    return None
