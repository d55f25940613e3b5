"""Learning curves as a picture, drawn with matplotlib, and as text."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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

Unit = Literal["nats", "bpc"]


Style = tuple[str, Any, str]  # colour, dashes, marker


FORMATS = ("png", "svg", "pdf")


LABELS = {"iterations": "iteration", "epochs": "epoch", "minutes": "minutes of training, validations aside"}


POINTS = 1000  # of a training curve: more cannot be told apart, and make a large file


MARKED = 12  # points of a curve, at most


TRAINING: dict[str, Any] = {"lw": 0.9}


VALIDATION: dict[str, Any] = {"lw": 1.8}


MARKS: dict[str, Any] = {"ms": 5, "mec": "white", "mew": 0.6}


# colours that the colour-blind can tell apart (Okabe and Ito), and for all who see none of them dashes and markers.
# There are as many of each as differ well; their numbers have no common factor, so it takes 280 runs to see one twice
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#CC79A7", "#E69F00", "#56B4E9")


DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (2.5, 1)))


MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")


def check_output(output: str) -> str:
    """The format that a file's suffix asks for. Raises UserError for an unknown one, or without matplotlib."""
    suffix = Path(output).suffix.removeprefix(".").lower()
    if suffix not in FORMATS:
        raise UserError(f"-output {output}: a picture's name ends in .png, .svg or .pdf")
    if not find_spec("matplotlib"):
        raise UserError(
            "a picture needs matplotlib, which is not installed: pip install 'char-rnn-torch[plot]', "
            "or -text draws the curves here"
        )
    return suffix


def save(runs: Sequence[History], output: str, x: Axis = "iterations", y: Unit = "nats", smooth: int = 0) -> None:
    """Draw the training and validation curves of all runs into one picture file, which is replaced once it is whole.

    smooth: of how many iterations a point of a training curve is the mean; 0 means a hundredth of the run. The
    same runs give the same bytes. Raises UserError.
    """
    suffix = check_output(output)
    # without a date, and with names of its parts that are not drawn at random
    metadata = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[suffix]
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "charrnn", "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name may have characters that the font has not
        figure = picture(runs, x, y, smooth)
        try:
            with replacing(Path(output)) as file:
                figure.savefig(file, format=suffix, metadata=metadata, bbox_inches="tight", dpi=160)
        except OSError as error:
            raise UserError(f"cannot write {output}: {error.strerror}; name another -output") from None


@dataclass(frozen=True)
class End:
    """Where a curve ends, and how it is drawn: what its name is to be put at, and shown with."""

    name: str
    x: float
    y: float
    look: dict[str, Any]


def picture(runs: Sequence[History], x: Axis, y: Unit, smooth: int) -> Figure:
    """The picture: for each run a thin curve of the training loss, and a thick one of the validation loss, if any."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    scale = bits(1.0) if y == "bpc" else 1.0
    ends = [add(axes, run, style, x, scale, smooth) for run, style in zip(runs, styles(), strict=False)]
    fit(axes, runs, scale, smooth)
    axes.set_xlabel(LABELS[x])
    axes.set_ylabel(f"loss in {'bits' if y == 'bpc' else 'nats'} per {histories.unit(runs)}")
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 5, 10], integer=x == "iterations"))
    axes.grid(color="0.9", lw=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    add_legend(axes, runs, smooth)
    name_curves(axes, ends)
    return figure


def styles() -> Iterator[Style]:
    return zip(cycle(COLOURS), cycle(DASHES), cycle(MARKERS), strict=True)


def add(axes: Axes, history: History, style: Style, x: Axis, scale: float, smooth: int) -> End:
    """Draw the curves of one run."""
    colour, dashes, marker = style
    along = history.along(x)
    loss = history.smoothed(smooth)[0]
    known = np.isfinite(history.val_loss)
    step = max(1, len(loss) // POINTS)
    shown = np.append(np.arange(0, len(loss) - 1, step), len(loss) - 1)
    look: dict[str, Any] = {"color": colour, "ls": dashes, "marker": marker}
    if not known.any():  # the training curve is all there is to tell the run by
        look |= TRAINING | MARKS
        axes.plot(along[shown], scale * loss[shown], markevery=every(len(shown)), zorder=2, **look)
        last = np.flatnonzero(np.isfinite(loss))[-1]
        return End(history.name, along[last], scale * loss[last], look)
    axes.plot(along[shown], scale * loss[shown], color=colour, alpha=0.5, zorder=2, **TRAINING)
    look |= VALIDATION | MARKS
    places, losses = along[history.validated[known] - 1], scale * history.val_loss[known]
    axes.plot(places, losses, markevery=every(len(places)), zorder=3, **look)
    return End(history.name, places[-1], losses[-1], look)


def every(points: int) -> int:
    """Which points of a curve have markers: so many at most that its dashes are seen between them."""
    return -(-points // MARKED)


def fit(axes: Axes, runs: Sequence[History], scale: float, smooth: int) -> None:
    """Limits under which the steep beginning, which enters from above, does not flatten all that follows."""
    values = np.concatenate([part for run in runs for part in (run.smoothed(smooth)[0], run.val_loss)])
    low, high = np.nanmin(values), histories.top(runs, smooth)
    margin = 0.04 * (high - low) or 0.1
    axes.set_ylim(scale * (low - margin), scale * (high + margin))
    axes.margins(x=0.015)


def add_legend(axes: Axes, runs: Sequence[History], smooth: int) -> None:
    """What the two kinds of curves are, above them all; which run is which stands at their ends."""
    from matplotlib.lines import Line2D

    grey: dict[str, Any] = {"color": "0.25"}
    kinds = [Line2D([], [], alpha=0.6, label=f"training, {spelled(runs, smooth)}", **grey, **TRAINING)]
    if any(np.isfinite(run.val_loss).any() for run in runs):
        kinds.insert(0, Line2D([], [], marker="o", label="validation", **grey, **VALIDATION, **MARKS))
    axes.legend(handles=kinds, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(kinds))


def spelled(runs: Sequence[History], smooth: int) -> str:
    """How the training curves are smoothed, in words."""
    windows = {run.smoothed(smooth)[1] for run in runs}
    low, high = min(windows), max(windows)
    if high == 1:
        return "each iteration"
    return f"mean of {high} iterations" if low == high else f"mean of {low} to {high} iterations"


def name_curves(axes: Axes, ends: Sequence[End]) -> None:
    """The runs' names at the right, each as near to the end of its curve as the others leave room for."""
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    ends = sorted(ends, key=lambda end: end.y)
    names = [fill(end.name, 30) for end in ends]
    wanted = [(end.y - low) / (high - low) for end in ends]
    places = spread(wanted, [0.055 * (name.count("\n") + 1) for name in names])
    for end, name, height, place in zip(ends, names, wanted, places, strict=True):
        x = (end.x - left) / (right - left)
        if x < 0.97 or abs(place - height) > 0.03:
            thread = {"color": end.look["color"], "ls": ":", "lw": 0.7, "alpha": 0.7}
            axes.plot([x, 1.02], [height, place], transform=axes.transAxes, clip_on=False, zorder=1, **thread)
        sample = {name: value for name, value in end.look.items() if name != "marker"}
        axes.plot([1.02, 1.08], [place, place], transform=axes.transAxes, clip_on=False, **sample)
        axes.plot([1.05], [place], transform=axes.transAxes, clip_on=False, **end.look)
        axes.text(1.095, place, name, transform=axes.transAxes, color=end.look["color"], va="center", parse_math=False)


def spread(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Places in ascending order, as near to the wanted ones as can be without one label on another.

    Labels that would overlap form a block around the mean of what its members want.
    """
    blocks: list[tuple[list[float], list[float]]] = []  # wanted places, and heights, of each block's labels
    for place, height in zip(wanted, heights, strict=True):
        blocks.append(([place], [height]))
        while len(blocks) > 1 and bottom(*blocks[-1]) < bottom(*blocks[-2]) + sum(blocks[-2][1]):
            places, sizes = blocks.pop()
            blocks[-1][0].extend(places)
            blocks[-1][1].extend(sizes)
    found = []
    for places, sizes in blocks:
        edge = bottom(places, sizes)
        for size in sizes:
            found.append(edge + size / 2)
            edge += size
    return found


def bottom(places: Sequence[float], sizes: Sequence[float]) -> float:
    return sum(places) / len(places) - sum(sizes) / 2


def text(
    runs: Sequence[History], width: int, height: int, x: Axis = "iterations", y: Unit = "nats", smooth: int = 0
) -> list[str]:
    """The same curves as lines of text, with a letter for each run. Raises UserError for more runs than letters."""
    if len(runs) > len(ascii_lowercase):
        raise UserError(f"{len(runs)} runs are more than there are letters for: name fewer, or -output a picture")
    scale = bits(1.0) if y == "bpc" else 1.0
    marks = [(".", "o")] if len(runs) == 1 else list(zip(ascii_letters[:26], ascii_letters[26:], strict=True))
    series: dict[str, list[curve.Point]] = {}
    for history, (mark, _) in zip(runs, marks, strict=False):
        losses = scale * history.smoothed(smooth)[0]
        series[mark] = list(zip(history.along(x).tolist(), losses.tolist(), strict=True))
    for history, (_, mark) in zip(runs, marks, strict=False):
        places = history.along(x)[history.validated - 1]
        series[mark] = list(zip(places.tolist(), (scale * history.val_loss).tolist(), strict=True))
    what = f"loss in {'bits' if y == 'bpc' else 'nats'} per {histories.unit(runs)} by {LABELS[x]}"
    legend = [f"{a} training, {b} validation: {run.name}" for run, (a, b) in zip(runs, marks, strict=False)]
    drawn = curve.draw(series, width, height, top=scale * histories.top(runs, smooth))
    return [f"{what}; training: {spelled(runs, smooth)}", *legend, *drawn]
