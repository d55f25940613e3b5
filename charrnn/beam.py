"""Beam search: the most probable text, as far as keeping a few candidates at a time can find it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from charrnn.sampling import Floats, Numbers, Sampler, Written, select, surprises


@dataclass
class Candidates:
    """Texts of one length, side by side.

    numbers: int64 (N, L), their characters; costs: float64 (N, L), the surprise at each in nats; totals: float64 (N,),
    its sum over the text.
    """

    numbers: Numbers
    costs: Floats
    totals: Floats

    def extended(self, surprises: Floats, size: int) -> tuple[Candidates, Numbers]:
        """The ``size`` most probable texts of one more character, from surprises (N, V), and the candidate each had."""
        totals = self.totals[:, None] + surprises
        # stable: equally probable texts come in the order of their candidates, then of the vocabulary
        best = totals.argsort(axis=None, kind="stable")[:size]
        rows, numbers = np.unravel_index(best, totals.shape)
        return Candidates(
            np.column_stack([self.numbers[rows], numbers]),
            np.column_stack([self.costs[rows], surprises[rows, numbers]]),
            totals[rows, numbers],
        ), rows

    def __getitem__(self, rows: Numbers) -> Candidates:
        return Candidates(self.numbers[rows], self.costs[rows], self.totals[rows])

    def __len__(self) -> int:
        return len(self.totals)

    def end_with(self, end: list[int]) -> NDArray[np.bool_]:
        """Which of them end with those characters, bool (N,)."""
        if not end or self.numbers.shape[1] < len(end):
            return np.zeros(len(self), np.bool_)
        done: NDArray[np.bool_] = (self.numbers[:, -len(end) :] == end).all(-1)
        return done

    def common(self) -> int:
        """How many characters they all begin with."""
        differ = (self.numbers != self.numbers[0]).any(0)
        return int(differ.argmax()) if differ.any() else len(differ)


def beam_search(sampler: Sampler, prime: str, length: int, size: int, stop: str = "") -> Iterator[Written]:
    """Continue the prime text with the most probable text that a beam of ``size`` candidates finds.

    The text has ``length`` characters, or ends with the text ``stop``: the probability of the whole decides between a
    candidate that has ended and one that goes on. A character is yielded as soon as all candidates agree on it. Without
    a prime text all first characters are equally probable, as in sampling. Raises UserError, before anything is
    yielded, for characters that the vocabulary lacks.
    """
    return _search(sampler, sampler.encode(prime), length, size, sampler.encode(stop, "the text of -stop"))


def _search(sampler: Sampler, prime: list[int], length: int, size: int, end: list[int]) -> Iterator[Written]:
    size_of_vocabulary = len(sampler.vocabulary)
    live = Candidates(np.zeros((1, 0), np.int64), np.zeros((1, 0)), np.zeros(1))
    ended: Candidates | None = None
    said = 0
    logits, state = sampler.read(prime, 1)
    for left in reversed(range(length)):
        if logits is None:
            live, rows = live.extended(np.full((1, size_of_vocabulary), np.log(size_of_vocabulary)), size_of_vocabulary)
        else:
            live, rows = live.extended(surprises(logits), size)
        done = live.end_with(end)
        if done.any() and (ended is None or live.totals[done][0] < ended.totals[0]):
            ended = live[np.flatnonzero(done)[:1]]
        # a text only gets less probable as it grows: one that an ended text beats already can be let go
        going = np.flatnonzero(~done & (live.totals < ended.totals[0])) if ended else np.arange(len(live))
        if not len(going):
            break
        live, rows = live[going], rows[going]
        if ended is None:
            agreed = live.common()
            yield from _written(sampler, live, said, agreed)
            said = agreed
        if left:
            logits, state = sampler.advance(live.numbers[:, -1], state and select(state, rows.tolist()))
    else:
        ended = live if length else None
    if ended:
        yield from _written(sampler, ended, said, ended.numbers.shape[1])


def _written(sampler: Sampler, candidates: Candidates, start: int, stop: int) -> Iterator[Written]:
    """Those characters of the first candidate, which is the most probable."""
    for number, cost in zip(candidates.numbers[0, start:stop], candidates.costs[0, start:stop], strict=True):
        yield Written(0, sampler.pieces[number], -float(cost))
