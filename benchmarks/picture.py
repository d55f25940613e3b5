"""The growth of an iteration's time as a picture: one panel for each size, both axes logarithmic, one line a model."""

from __future__ import annotations

from itertools import groupby
from math import log
from pathlib import Path

from benchmarks.measure import Row

WIDTH, HEIGHT, MARGIN = 260, 220, 46
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def draw(rows: list[Row], path: Path) -> None:
    """An SVG file of what ``growth`` measured."""
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    colours = dict(zip(models, COLOURS, strict=False))
    low, high = min(row["ms"] for row in rows), max(row["ms"] for row in rows)
    parts = []
    for n, size in enumerate(sizes):
        panel = [row for row in rows if row["size"] == size]
        parts.append(f'<g transform="translate({n * WIDTH},0)">{axes(panel, size, low, high)}')
        for model, points in groupby(panel, key=lambda row: str(row["model"])):
            parts.append(line(list(points), panel, low, high, colours[model]))
        parts.append("</g>")
    for n, model in enumerate(models):
        where = f'x="{MARGIN + n * 150}" y="{HEIGHT + 24}"'
        parts.append(f'<text {where} fill="{colours[model]}">{model}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{len(sizes) * WIDTH}" height="{HEIGHT + 36}"'
    style = 'font-family="sans-serif" font-size="12"'
    path.write_text(f'{head} {style}><rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n')


def axes(panel: list[Row], size: str, low: float, high: float) -> str:
    values = sorted({row["value"] for row in panel})
    frame = (
        f'<rect x="{MARGIN}" y="20" width="{WIDTH - MARGIN - 12}" height="{HEIGHT - 50}" fill="none" stroke="#999"/>'
    )
    title = f'<text x="{MARGIN}" y="14">ms against {size}</text>'
    below = "".join(
        f'<text x="{across(v, values):.0f}" y="{HEIGHT - 14}" text-anchor="middle">{v}</text>' for v in values
    )
    marks = [10**n for n in range(-1, 6) if low <= 10**n <= high]
    beside = "".join(
        f'<text x="{MARGIN - 4}" y="{up(m, low, high) + 4:.0f}" text-anchor="end">{m}</text>' for m in marks
    )
    return frame + title + below + beside


def line(points: list[Row], panel: list[Row], low: float, high: float, colour: str) -> str:
    values = sorted({row["value"] for row in panel})
    places = " ".join(f"{across(row['value'], values):.1f},{up(row['ms'], low, high):.1f}" for row in points)
    return f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2"/>'


def across(value: float, values: list[float]) -> float:
    share = log(value / values[0]) / log(values[-1] / values[0])
    return MARGIN + 12 + share * (WIDTH - MARGIN - 36)


def up(ms: float, low: float, high: float) -> float:
    return HEIGHT - 40 - log(ms / low) / log(high / low) * (HEIGHT - 70)
