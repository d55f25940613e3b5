"""Beam search: the most probable text found while keeping a limited number of candidates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from charrnn.sampling.choice import Floats, Ids
from charrnn.sampling.sampler import Sampler, State, Written, concatenated, select, surprises

STEP = 256  # candidates per batch of a time step; without a prime text there are as many candidates as tokens


@dataclass
class Candidates:
    """N texts of the same length L."""

    # token ids, int64 (N, L)
    ids: Ids
    # surprise at each token in nats, float64 (N, L)
    costs: Floats
    # the sum of each text's costs, float64 (N,)
    totals: Floats

    def extended(self, surprises: Floats, size: int) -> tuple[Candidates, Ids]:
        """Return the ``size`` most probable texts with one more token, and the row that each of them continues.

        ``surprises`` (N, V) are those at each possible next token.
        """
        totals = self.totals[:, None] + surprises
        rows, ids = np.unravel_index(smallest(totals.ravel(), size), totals.shape)
        return Candidates(
            np.column_stack([self.ids[rows], ids]),
            np.column_stack([self.costs[rows], surprises[rows, ids]]),
            totals[rows, ids],
        ), rows

    def __getitem__(self, rows: Ids) -> Candidates:
        return Candidates(self.ids[rows], self.costs[rows], self.totals[rows])

    def __len__(self) -> int:
        return len(self.totals)

    def end_with(self, stop: list[int]) -> NDArray[np.bool_]:
        """Return which texts end with these tokens, bool (N,). None does if ``stop`` is empty."""
        if not stop or self.ids.shape[1] < len(stop):
            return np.zeros(len(self), np.bool_)
        ended: NDArray[np.bool_] = (self.ids[:, -len(stop) :] == stop).all(-1)
        return ended

    def common(self) -> int:
        """Return the number of tokens at the beginning that all texts have in common."""
        differ = (self.ids != self.ids[0]).any(0)
        return int(differ.argmax()) if differ.any() else len(differ)


def smallest(totals: Floats, size: int) -> Ids:
    """Return the indices of the ``size`` smallest totals (N,), smallest first. Equal totals keep their order."""
    if size < len(totals):
        near = np.flatnonzero(totals <= np.partition(totals, size - 1)[size - 1])
    else:
        near = np.arange(len(totals))
    found: Ids = near[totals[near].argsort(kind="stable")[:size]]
    return found


def beam_search(sampler: Sampler, prime: str, length: int, size: int, stop: str = "") -> Iterator[Written]:
    """Continue the prime text with the most probable text that a beam of ``size`` candidates finds.

    The continuation ends after ``length`` tokens or with the text ``stop``. Finished and unfinished candidates are
    compared by the probability of their whole text. A token is yielded as soon as all candidates agree on it. Without a
    prime text, all first tokens are equally probable, as in sampling. Raises UserError for unknown tokens, before
    anything is yielded.
    """
    return _search(sampler, sampler.encode(prime), length, size, sampler.encode(stop, "the text of -stop"))


def _search(sampler: Sampler, prime: list[int], length: int, size: int, stop: list[int]) -> Iterator[Written]:
    live = Candidates(np.zeros((1, 0), np.int64), np.zeros((1, 0)), np.zeros(1))
    ended: Candidates | None = None
    agreed = 0
    state: State | None = None
    for step in range(length):
        live, state = _extend(sampler, live, state, size) if step else _begin(sampler, live, prime, size)
        done = live.end_with(stop)
        if done.any() and (ended is None or live.totals[done][0] < ended.totals[0]):
            ended = live[np.flatnonzero(done)[:1]]
        # a text only becomes less probable as it grows, so drop every text that an ended one already beats
        going = np.flatnonzero(~done & (live.totals < ended.totals[0])) if ended else np.arange(len(live))
        if not len(going):
            break
        live, state = live[going], state and select(state, going.tolist())
        if ended is None:
            before, agreed = agreed, live.common()
            yield from _written(sampler, prime, live, before, agreed)
    else:
        ended = live if length else None
    if ended:
        yield from _written(sampler, prime, ended, agreed, ended.ids.shape[1])


def _begin(sampler: Sampler, live: Candidates, prime: list[int], size: int) -> tuple[Candidates, State | None]:
    """Return candidates of one token, and the state before that token, which is None without a prime text."""
    logits, state = sampler.read(prime, 1)
    if logits is None:
        V = len(sampler.vocabulary)
        return live.extended(np.full((1, V), np.log(V)), V)[0], None
    live, rows = live.extended(surprises(logits), size)
    return live, state and select(state, rows.tolist())


def _extend(sampler: Sampler, live: Candidates, state: State | None, size: int) -> tuple[Candidates, State]:
    """Take one time step: return the best ``size`` texts with one more token, and the state before that token."""
    parts: list[tuple[Candidates, State]] = []
    for start in range(0, len(live), STEP):
        batch = np.arange(start, min(start + STEP, len(live)))
        logits, after = sampler.advance(live.ids[batch, -1], state and select(state, batch.tolist()))
        best, rows = live[batch].extended(surprises(logits), size)
        parts.append((best, select(after, rows.tolist())))
    if len(parts) == 1:
        return parts[0]
    candidates, states = zip(*parts, strict=True)
    together = Candidates(*(np.concatenate([getattr(c, f.name) for c in candidates]) for f in fields(Candidates)))
    best_of_all = smallest(together.totals, size)
    return together[best_of_all], select(concatenated(states), best_of_all.tolist())


def _written(sampler: Sampler, prime: list[int], candidates: Candidates, start: int, stop: int) -> Iterator[Written]:
    """Yield tokens ``start`` to ``stop`` of the first candidate, which is the most probable."""
    best: list[int] = candidates.ids[0, :stop].tolist()
    before = [prime[-1] if prime else None, *best]
    for k in range(start, stop):
        yield Written(0, sampler.vocabulary.token_text(best[k], before[k]), -float(candidates.costs[0, k]))
