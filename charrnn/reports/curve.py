"""Curves drawn with characters, for any terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import inf, isfinite
from statistics import fmean

Point = tuple[float, float]


def draw(series: Mapping[str, Iterable[Point]], width: int, height: int, unit: str = "", top: float = inf) -> list[str]:
    """Lines of text of at most ``width`` characters, ``height`` of them for the curves and two for the axis.

    series: by the character that marks its points, (x, y) in any order; later ones are drawn over earlier ones.
    Where several points of a series share a column, it shows their mean. unit: of x. Points that are not finite
    or above ``top`` are left out; nothing is drawn where none is left.
    """
    finite = {mark: [p for p in points if all(map(isfinite, p))] for mark, points in series.items()}
    everything = [point for points in finite.values() for point in points]
    if not everything:
        return []
    left, right = min(x for x, _ in everything), max(x for x, _ in everything)
    label = max(len(f"{y:.3f}") for _, y in everything)
    columns = max(1, width - label - 2)
    means = {
        mark: {x: y for x, y in by_column(points, left, right, columns).items() if y <= top}
        for mark, points in finite.items()
    }
    if not any(means.values()):
        return []
    low, high = (pick(y for column in means.values() for y in column.values()) for pick in (min, max))
    canvas = [[" "] * columns for _ in range(height)]
    for mark, column in means.items():
        for x, y in column.items():
            canvas[place(y, high, low, height)][x] = mark
    labels = {0: f"{high:.3f}", height - 1: f"{low:.3f}"}
    lines = [f"{labels.get(row, ''):>{label}} |{''.join(canvas[row])}".rstrip() for row in range(height)]
    ends = short(left), f"{short(right)} {unit}".rstrip()
    return [*lines, f"{'':{label}} +{'-' * columns}", f"{'':{label + 2}}{ends[0]:<{columns - len(ends[1])}}{ends[1]}"]


def by_column(points: Iterable[Point], left: float, right: float, columns: int) -> dict[int, float]:
    found = defaultdict(list)
    for x, y in points:
        found[place(x, left, right, columns)].append(y)
    return {column: fmean(values) for column, values in found.items()}


def short(x: float) -> str:
    return f"{x:.2f}".rstrip("0").rstrip(".")


def place(value: float, first: float, last: float, count: int) -> int:
    """Which of ``count`` equal steps from first to last a value is in."""
    return min(count - 1, int((value - first) / (last - first) * count)) if last != first else 0
