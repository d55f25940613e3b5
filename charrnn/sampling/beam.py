"""Beam search: the most probable text, as far as keeping a few candidates at a time can find it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from charrnn.sampling.choice import Floats, Numbers
from charrnn.sampling.sampler import Sampler, State, Written, concatenated, select, surprises

STEP = 256  # candidates that take a time step side by side: without a prime text there are as many as tokens


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
        rows, numbers = np.unravel_index(least(totals.ravel(), size), totals.shape)
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


def least(totals: Floats, size: int) -> Numbers:
    """The places of the ``size`` least of them (N,), in ascending order; of equal ones the first come first."""
    if size < len(totals):
        near = np.flatnonzero(totals <= np.partition(totals, size - 1)[size - 1])
    else:
        near = np.arange(len(totals))
    found: Numbers = near[totals[near].argsort(kind="stable")[:size]]
    return found


def beam_search(sampler: Sampler, prime: str, length: int, size: int, stop: str = "") -> Iterator[Written]:
    """Continue the prime text with the most probable text that a beam of ``size`` candidates finds.

    The text has ``length`` tokens, or ends with the text ``stop``: the probability of the whole decides between a
    candidate that has ended and one that goes on. A token is yielded as soon as all candidates agree on it. Without
    a prime text all first tokens are equally probable, as in sampling. Raises UserError, before anything is
    yielded, for tokens that the vocabulary lacks.
    """
    return _search(sampler, sampler.encode(prime), length, size, sampler.encode(stop, "the text of -stop"))


def _search(sampler: Sampler, prime: list[int], length: int, size: int, end: list[int]) -> Iterator[Written]:
    live = Candidates(np.zeros((1, 0), np.int64), np.zeros((1, 0)), np.zeros(1))
    ended: Candidates | None = None
    said = 0
    state: State | None = None
    for step in range(length):
        live, state = _extend(sampler, live, state, size) if step else _begin(sampler, live, prime, size)
        done = live.end_with(end)
        if done.any() and (ended is None or live.totals[done][0] < ended.totals[0]):
            ended = live[np.flatnonzero(done)[:1]]
        # a text only gets less probable as it grows: one that an ended text beats already can be let go
        going = np.flatnonzero(~done & (live.totals < ended.totals[0])) if ended else np.arange(len(live))
        if not len(going):
            break
        live, state = live[going], state and select(state, going.tolist())
        if ended is None:
            agreed = live.common()
            yield from _written(sampler, prime, live, said, agreed)
            said = agreed
    else:
        ended = live if length else None
    if ended:
        yield from _written(sampler, prime, ended, said, ended.numbers.shape[1])


def _begin(sampler: Sampler, live: Candidates, prime: list[int], size: int) -> tuple[Candidates, State | None]:
    """The first token of each candidate, and the state before it: none without a prime text."""
    logits, state = sampler.read(prime, 1)
    if logits is None:
        V = len(sampler.vocabulary)
        return live.extended(np.full((1, V), np.log(V)), V)[0], None
    live, rows = live.extended(surprises(logits), size)
    return live, state and select(state, rows.tolist())


def _extend(sampler: Sampler, live: Candidates, state: State | None, size: int) -> tuple[Candidates, State]:
    """One time step: the best ``size`` texts of one more token, and the state before it."""
    parts: list[tuple[Candidates, State]] = []
    for start in range(0, len(live), STEP):
        some = np.arange(start, min(start + STEP, len(live)))
        logits, after = sampler.advance(live.numbers[some, -1], state and select(state, some.tolist()))
        best, rows = live[some].extended(surprises(logits), size)
        parts.append((best, select(after, rows.tolist())))
    if len(parts) == 1:
        return parts[0]
    candidates, states = zip(*parts, strict=True)
    together = Candidates(*(np.concatenate([getattr(c, f.name) for c in candidates]) for f in fields(Candidates)))
    best_of_all = least(together.totals, size)
    return together[best_of_all], select(concatenated(states), best_of_all.tolist())


def _written(sampler: Sampler, prime: list[int], candidates: Candidates, start: int, stop: int) -> Iterator[Written]:
    """Those tokens of the first candidate, which is the most probable."""
    best: list[int] = candidates.numbers[0, :stop].tolist()
    before = [prime[-1] if prime else None, *best]
    for k in range(start, stop):
        yield Written(0, sampler.vocabulary.piece(best[k], before[k]), -float(candidates.costs[0, k]))
