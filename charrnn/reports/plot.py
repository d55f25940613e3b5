"""Learning curves as a picture, drawn with matplotlib, and as text."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from string import ascii_letters, ascii_lowercase
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from charrnn.data.vocabulary import bits
from charrnn.errors import UserError
from charrnn.files import replacing
from charrnn.reports import curve, histories
from charrnn.reports.histories import Axis, History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Unit = Literal["nats", "bpc"]
FORMATS = ("png", "svg", "pdf")
LABELS = {"iterations": "iteration", "epochs": "epoch", "minutes": "minutes of training, without validations"}
POINTS = 1000  # points drawn for a training curve; more would look the same and make the file large
MARKERS_PER_CURVE = 12
TRAINING: dict[str, Any] = {"lw": 0.9}
VALIDATION: dict[str, Any] = {"lw": 1.8}
MARKER: dict[str, Any] = {"ms": 5, "mec": "white", "mew": 0.6}

# Okabe and Ito's colours, which colour-blind people can tell apart; dashes and markers for print in black and white.
# Cycles of 7, 5 and 8 have no common factor, so the first 280 runs all look different.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (2.5, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")


def check_output(output: str) -> str:
    """Return the format that a file's suffix names. Raises UserError if it is unknown or matplotlib is missing."""
    suffix = Path(output).suffix.removeprefix(".").lower()
    if suffix not in FORMATS:
        raise UserError(f"-output {output}: the name of a picture must end in .png, .svg or .pdf")
    if not find_spec("matplotlib"):
        raise UserError("pictures need matplotlib: pip install matplotlib, or draw in the terminal with -text")
    return suffix


def save(runs: Sequence[History], output: str, x: Axis = "iterations", y: Unit = "nats", smooth: int = 0) -> None:
    """Draw the training and validation curves of all runs into a picture file.

    Each point of a training curve is the mean of ``smooth`` iterations; 0 means a hundredth of the run. An existing
    file is replaced once the new one is complete. The same runs give the same bytes. Raises UserError if the file
    cannot be written.
    """
    suffix = check_output(output)
    no_date = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[suffix]
    import matplotlib

    # a fixed salt, since SVG element ids are random without one
    with matplotlib.rc_context({"svg.hashsalt": "charrnn", "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # names may have characters that the font lacks
        figure = picture(runs, x, y, smooth)
        try:
            with replacing(Path(output)) as file:
                figure.savefig(file, format=suffix, metadata=no_date, bbox_inches="tight", dpi=160)
        except OSError as error:
            raise UserError(f"cannot write {output}: {error.strerror}; choose another -output") from None


def picture(runs: Sequence[History], x: Axis, y: Unit, smooth: int) -> Figure:
    """Draw a thin curve of each run's training loss, and a thick one of its validation loss if it has any."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    scale, label = loss_axis(runs, y)
    curves = [add(axes, run, style, x, scale, smooth) for run, style in zip(runs, styles(), strict=False)]
    fit(axes, runs, scale, smooth)
    axes.set_xlabel(LABELS[x])
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 5, 10], integer=x == "iterations"))
    axes.grid(color="0.9", lw=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    add_legend_of_kinds(axes, runs, smooth)
    add_legend_of_runs(figure, runs, curves)
    return figure


def loss_axis(runs: Sequence[History], y: Unit) -> tuple[float, str]:
    """Return the factor that converts nats to this unit, and the label of the axis."""
    scale, name = (bits(1.0), "bits") if y == "bpc" else (1.0, "nats")
    return scale, f"loss in {name} per {histories.unit(runs)}"


def styles() -> Iterator[dict[str, Any]]:
    for colour, dashes, marker in zip(cycle(COLOURS), cycle(DASHES), cycle(MARKERS), strict=True):
        yield {"color": colour, "ls": dashes, "marker": marker, **MARKER}


def add(axes: Axes, run: History, style: dict[str, Any], x: Axis, scale: float, smooth: int) -> Line2D:
    """Draw the curves of a run. Return the one in the run's style: validation, or training if there is no other."""
    along = run.along(x)
    loss = scale * run.smoothed(smooth)[0]
    shown = np.append(np.arange(0, len(loss) - 1, max(1, len(loss) // POINTS)), len(loss) - 1)
    known = np.isfinite(run.val_loss)
    if not known.any():
        (line,) = axes.plot(along[shown], loss[shown], markevery=marker_step(len(shown)), zorder=2, **style, **TRAINING)
        return line
    axes.plot(along[shown], loss[shown], color=style["color"], alpha=0.5, zorder=2, **TRAINING)
    places, losses = along[run.validated[known] - 1], scale * run.val_loss[known]
    (line,) = axes.plot(places, losses, markevery=marker_step(len(places)), zorder=3, **style, **VALIDATION)
    return line


def marker_step(points: int) -> int:
    """Return the distance between markers, in points, that leaves the dashes between them visible."""
    return -(-points // MARKERS_PER_CURVE)


def fit(axes: Axes, runs: Sequence[History], scale: float, smooth: int) -> None:
    """Limit the loss axis so that the steep beginning does not flatten the rest."""
    values = np.concatenate([part for run in runs for part in (run.smoothed(smooth)[0], run.val_loss)])
    low, high = np.nanmin(values), histories.top(runs, smooth)
    margin = 0.04 * (high - low) or 0.1
    axes.set_ylim(scale * (low - margin), scale * (high + margin))
    axes.margins(x=0.015)


def add_legend_of_kinds(axes: Axes, runs: Sequence[History], smooth: int) -> None:
    """Add a legend of training and validation curves above the picture."""
    from matplotlib.lines import Line2D

    grey: dict[str, Any] = {"color": "0.25"}
    kinds = [Line2D([], [], alpha=0.6, label=f"training, {smoothing(runs, smooth)}", **grey, **TRAINING)]
    if any(np.isfinite(run.val_loss).any() for run in runs):
        kinds.insert(0, Line2D([], [], marker="o", label="validation", **grey, **VALIDATION, **MARKER))
    axes.legend(handles=kinds, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(kinds))


def add_legend_of_runs(figure: Figure, runs: Sequence[History], curves: Sequence[Line2D]) -> None:
    """Name the runs to the right of the picture."""
    legend = figure.legend(
        curves, list(map(str, range(len(runs)))), loc="outside right center", frameon=False, handlelength=4
    )
    for text, run in zip(legend.get_texts(), runs, strict=True):  # a label would be dropped if it began with "_"
        text.set(text=fill(run.name, 30), parse_math=False)


def smoothing(runs: Sequence[History], smooth: int) -> str:
    """Return in words how the training curves are smoothed."""
    windows = {run.smoothed(smooth)[1] for run in runs}
    low, high = min(windows), max(windows)
    if high == 1:
        return "each iteration"
    return f"mean of {high} iterations" if low == high else f"mean of {low} to {high} iterations"


def text(
    runs: Sequence[History], width: int, height: int, x: Axis = "iterations", y: Unit = "nats", smooth: int = 0
) -> list[str]:
    """Draw the same curves as lines of text, with a letter for each run. Raises UserError for more than 26 runs."""
    if len(runs) > len(ascii_lowercase):
        raise UserError(f"{len(runs)} runs: -text has only {len(ascii_lowercase)} letters; plot fewer, or use -output")
    scale, label = loss_axis(runs, y)
    marks = [(".", "o")] if len(runs) == 1 else list(zip(ascii_letters[:26], ascii_letters[26:], strict=True))
    series: dict[str, list[curve.Point]] = {}
    for run, (mark, _) in zip(runs, marks, strict=False):
        losses = scale * run.smoothed(smooth)[0]
        series[mark] = list(zip(run.along(x).tolist(), losses.tolist(), strict=True))
    for run, (_, mark) in zip(runs, marks, strict=False):
        places = run.along(x)[run.validated - 1]
        series[mark] = list(zip(places.tolist(), (scale * run.val_loss).tolist(), strict=True))
    legend = [f"{a} training, {b} validation: {run.name}" for run, (a, b) in zip(runs, marks, strict=False)]
    drawn = curve.draw(series, width, height, top=scale * histories.top(runs, smooth))
    return [f"{label} by {LABELS[x]}; training: {smoothing(runs, smooth)}", *legend, *drawn]
