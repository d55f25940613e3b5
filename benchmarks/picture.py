"""The growth of an iteration's time as a picture: a panel per size, a line per model, both axes logarithmic."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import Row
from charrnn.reports.plot import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(rows: list[Row], path: Path) -> None:
    """Write the rows of ``growth`` as a picture; the suffix sets the format."""
    picture(rows).savefig(path)


def picture(rows: list[Row]) -> Figure:
    from matplotlib.figure import Figure

    sizes, models = list(dict.fromkeys(row["size"] for row in rows)), list(dict.fromkeys(row["model"] for row in rows))
    figure = Figure(figsize=(3 * len(sizes), 3), layout="constrained")
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for panel, size in zip(panels, sizes, strict=True):
        for model, colour in zip(models, COLOURS, strict=False):
            points = [(row["value"], row["ms"]) for row in rows if (row["size"], row["model"]) == (size, model)]
            panel.loglog(*zip(*points, strict=True), color=colour, label=model)
        panel.set_title(f"ms against {size}", fontsize="medium")
        values = sorted({row["value"] for row in rows if row["size"] == size})
        panel.set_xticks(values, list(map(str, values)))
        panel.minorticks_off()
    figure.legend(handles=panels[0].lines, loc="outside lower center", ncols=len(models), frameon=False)
    return figure
