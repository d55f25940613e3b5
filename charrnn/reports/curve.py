"""Curves drawn with characters, for any terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import inf, isfinite
from statistics import fmean

Point = tuple[float, float]


def draw(series: Mapping[str, Iterable[Point]], width: int, height: int, top: float = inf) -> list[str]:
    """Draw (x, y) points as ``height`` lines of text with an axis of two lines, all at most ``width`` wide.

    Each series is drawn with its key, a single character, on top of earlier series. Its points in one column are
    averaged. Points that are not finite and averages above ``top`` are left out. Returns [] if nothing is left to draw.
    """
    finite = {mark: [point for point in points if all(map(isfinite, point))] for mark, points in series.items()}
    points = [point for group in finite.values() for point in group]
    if not points:
        return []
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    margin = max(len(f"{y:.3f}") for _, y in points)
    columns = max(1, width - margin - 2)
    means = {mark: column_means(group, left, right, columns) for mark, group in finite.items()}
    dots = [(mark, column, y) for mark, group in means.items() for column, y in group.items() if y <= top]
    if not dots:
        return []
    low, high = min(y for _, _, y in dots), max(y for _, _, y in dots)
    canvas = [[" "] * columns for _ in range(height)]
    for mark, column, y in dots:
        canvas[step(y, high, low, height)][column] = mark
    return [*with_labels(canvas, low, high, margin), *axis(left, right, margin, columns)]


def column_means(points: Iterable[Point], left: float, right: float, columns: int) -> dict[int, float]:
    """Return the mean of the points in each column that has any."""
    found = defaultdict(list)
    for x, y in points:
        found[step(x, left, right, columns)].append(y)
    return {column: fmean(values) for column, values in found.items()}


def with_labels(canvas: Sequence[Sequence[str]], low: float, high: float, margin: int) -> list[str]:
    labels = {0: f"{high:.3f}", len(canvas) - 1: f"{low:.3f}"}
    return [f"{labels.get(row, ''):>{margin}} |{''.join(marks)}".rstrip() for row, marks in enumerate(canvas)]


def axis(left: float, right: float, margin: int, columns: int) -> list[str]:
    first, last = short(left), short(right)
    return [f"{'':{margin}} +{'-' * columns}", f"{'':{margin + 2}}{first:<{columns - len(last)}}{last}"]


def short(x: float) -> str:
    return f"{x:.2f}".rstrip("0").rstrip(".")


def step(value: float, first: float, last: float, count: int) -> int:
    """Return which of ``count`` equal steps from first to last contains the value."""
    return min(count - 1, int((value - first) / (last - first) * count)) if last != first else 0
