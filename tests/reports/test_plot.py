"""Loss curves: reading their values from files, and drawing them as pictures and text."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import colors

from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.errors import UserError
from charrnn.reports import curve, histories, plot
from charrnn.reports.histories import History
from tests.helpers.command import QUICK, charrnn, one_line, run, write_text

METRICS = "cv/lm_lstm_metrics.jsonl"
NAMES = ["val_frac 0.05, rnn_size 16", "val_frac 0.0, rnn_size 16", "val_frac 0.05, rnn_size 8"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three runs: one in cv, and two in cv8, with 8 units and without validations."""
    folder = tmp_path_factory.mktemp("plotted")
    write_text(folder / "data")
    train = ("train", "-data_dir", "data", *QUICK)
    run(folder, *train, "-max_epochs", 2, "-eval_val_every", 30)
    run(folder, *train, "-max_epochs", 1, "-eval_val_every", 20, "-rnn_size", 8, "-checkpoint_dir", "cv8")
    run(folder, *train, "-max_epochs", 0.5, "-val_frac", 0, "-checkpoint_dir", "cv8", "-savefile", "blind")
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def history(loss: Any, validated: Any = (), val_loss: Any = (), name: str = "run", **settings: Any) -> History:
    """A run with one iteration per minute and ten iterations per epoch."""
    steps = np.arange(1.0, len(loss) + 1)
    return History(name, Path(f"{name}/lm_x.pt"), np.array(loss, float), np.array(validated, np.int64),
                   np.array(val_loss, float), steps / 10, steps, settings)  # fmt: skip


FALLING = history(4.0 - 2.5 * np.linspace(0, 1, 200) ** 0.25, [50, 100, 150, 200], [2.6, 2.2, 1.9, 1.8], "falling")
SHORT = history(4.0 - 2 * np.linspace(0, 1, 90) ** 0.25, [30, 60, 90], [3.0, 2.5, 2.4], "short")


# Reading.


def test_a_checkpoint_and_its_metrics_give_the_same_curves(trained: Path) -> None:
    (one,) = histories.read([trained / "cv"])
    (two,) = histories.read([trained / METRICS])
    rows = lines(trained / METRICS)
    for found in (one, two):
        assert found.loss.tolist() == [row["loss"] for row in rows]
        assert found.along("iterations").tolist() == [row["iteration"] for row in rows]
        assert found.along("epochs") == pytest.approx([row["epoch"] for row in rows])
        seconds = [row["seconds"] for row in rows]
        assert found.along("minutes") == pytest.approx([sum(seconds[: i + 1]) / 60 for i in range(len(rows))])
        validated = {row["iteration"]: row["val_loss"] for row in rows if "val_loss" in row}
        assert dict(zip(found.validated.tolist(), found.val_loss.tolist(), strict=True)) == validated
        assert len(validated) > 2


def test_a_folder_stands_for_the_newest_checkpoint_of_each_of_its_runs(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "cv8", tmp_path / "cv")
    for path in (tmp_path / "cv").glob("lm_lstm_*.pt"):
        path.unlink()
    for folder in (trained / "cv8", tmp_path / "cv"):  # the copy has only the metrics of one run
        blind, lstm = histories.read([folder])
        assert (len(blind.loss), len(blind.validated)) == (len(lines(folder / "lm_blind_metrics.jsonl")), 0)
        assert len(lstm.loss) == len(lines(folder / "lm_lstm_metrics.jsonl"))


def test_minutes_need_the_time_of_every_iteration(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "cv", tmp_path / "cv")
    path = tmp_path / METRICS
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole) + whole[-1][:20])
    assert histories.read([tmp_path / "cv"])[0].minutes is not None, "a truncated line is ignored"
    path.write_bytes(b"".join(whole[:5] + whole[6:]))
    (found,) = histories.read([tmp_path / "cv"])
    with pytest.raises(UserError, match=r"-x minutes: .*lm_NAME_metrics.jsonl"):
        found.along("minutes")
    assert len(found.along("epochs")) == len(whole)
    with pytest.raises(UserError, match="does not have the metrics of every iteration"):
        histories.read([path])


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        '{"iteration": -9, "epoch": 1, "loss": 1, "seconds": 1}',
        '{"iteration": "1"}',
        '{"iteration": 1, "epoch": 1, "loss": [], "seconds": 1}',
        "1",
        "\xff",
        "",
    ],
)
def test_a_file_that_is_not_metrics_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "lm_x_metrics.jsonl").write_text(line + "\n", encoding="latin-1")
    with pytest.raises(UserError, match="does not have the metrics"):
        histories.read([tmp_path / "lm_x_metrics.jsonl"])


def test_lines_of_other_iterations_and_null_losses_are_ignored(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "cv", tmp_path / "cv")
    strays = [{"iteration": i, "epoch": 1, "loss": 1.0, "seconds": None} for i in (-(10**9), 0, 10**9)]
    with (tmp_path / METRICS).open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in strays)
    assert histories.read([tmp_path / "cv"])[0].minutes is not None
    none = {"iteration": 1, "epoch": 1, "loss": None, "seconds": None, "val_loss": None}
    (tmp_path / "lm_none_metrics.jsonl").write_text(json.dumps(none))
    with pytest.raises(UserError, match="no finite loss"):
        histories.read([tmp_path / "lm_none_metrics.jsonl"])
    assert histories.top([history([5.0, *[math.nan] * 99])], 1) == 5.0


def test_an_imported_checkpoint_has_no_curve(trained: Path, tmp_path: Path) -> None:
    saved = Checkpoint.load(trained / "cv")
    saved.training = {}
    saved.save(tmp_path / "lm_old.pt")
    with pytest.raises(UserError, match="contains no losses"):
        histories.read([tmp_path / "lm_old.pt"])


def test_the_running_mean_equals_a_plain_loop() -> None:
    values = [3.0, math.nan, 2.0, 7.0, 1.0, 0.5, math.nan, math.nan, math.nan, 4.0]
    for window in (1, 2, 3, 5, 30):
        smooth, used = history(values).smoothed(window)
        assert used == window
        for i, mean in enumerate(smooth):
            near = [values[j] for j in range(len(values)) if -((window - 1) // 2) <= j - i <= window // 2]
            known = [value for value in near if value == value]
            assert mean == pytest.approx(sum(known) / len(known) if known else math.nan, nan_ok=True)
    assert history(np.zeros(1234)).smoothed()[1] == 12
    assert history(np.zeros(5)).smoothed()[1] == 1


A = {"model": "lstm", "rnn_size": 8, "savefile": "", "seed": 1, "checkpoint_dir": "cv", "threads": 1}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([{"savefile": "one"}, {"savefile": "two", "rnn_size": 9}], ["one", "two"]),
        ([{}, {"rnn_size": 9}], ["rnn_size 8", "rnn_size 9"]),
        ([{}, {"model": "gru", "leak": 3}], ["lstm", "gru"]),
        ([{}, {"model": "gru"}, {"seed": 2}], ["lstm, seed 1", "gru, seed 1", "lstm, seed 2"]),
        ([{"threads": 2, "checkpoint_dir": "cv2"}, {}], ["f0", "f1"]),
        ([{"model": f"m{i}", "rnn_size": i, "seed": i, "own": i} for i in (1, 2)], ["f0", "f1"]),  # too long for a name
        ([{}], ["x"]),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_runs_are_named_by_what_distinguishes_them(changes: list[dict[str, Any]], expected: list[str]) -> None:
    runs = [
        replace(history([1.0], name="x", **(A | change)), source=Path(f"f{i}/lm_x.pt"))
        for i, change in enumerate(changes)
    ]
    assert histories.names(runs) == expected


def test_runs_with_equal_settings_are_named_by_their_files() -> None:
    runs = [replace(history([1.0]), source=Path(f"{folder}/cv/lm_x.pt")) for folder in "ab"]
    assert histories.names(runs) == ["a/cv/lm_x.pt", "b/cv/lm_x.pt"]
    runs = [
        replace(history([1.0], name=name), source=Path(f"{folder}/lm.pt"))
        for name, folder in zip("xxy", "aba", strict=True)
    ]
    assert histories.names(runs) == ["a/x", "b/x", "a/y"]


# Pictures.


def drawn(runs: list[History], *args: Any) -> Any:
    return plot.picture(runs, *args).axes[0]


def named(axes: Any) -> list[str]:
    """Return the names in the legend of runs."""
    (legend,) = axes.figure.legends
    return [text.get_text() for text in legend.get_texts()]


def kinds(axes: Any) -> list[str]:
    """Return the texts in the legend of training and validation curves."""
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_a_picture_shows_the_losses_of_the_runs() -> None:
    axes = drawn([FALLING, SHORT], "epochs", "bpc", 1)
    for found, (training, validation) in zip((FALLING, SHORT), np.reshape(axes.lines, (2, 2)), strict=True):
        assert training.get_xdata() == pytest.approx(found.epochs)
        assert training.get_ydata() == pytest.approx(found.loss / math.log(2))
        assert validation.get_xdata() == pytest.approx(found.validated / 10)
        assert validation.get_ydata() == pytest.approx(found.val_loss / math.log(2))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "loss in bits per character")
    low, high = axes.get_ylim()
    assert low < 1.5 / math.log(2) and high > 3.0 / math.log(2), "everything after the beginning is visible"
    assert high < 3.4 / math.log(2), "the first losses do not flatten the rest"
    assert named(axes) == ["falling", "short"]
    assert kinds(axes) == ["validation", "training, each iteration"]
    smoothed = drawn([FALLING, SHORT], "minutes", "nats", 0)
    assert kinds(smoothed) == ["validation", "training, mean of 1 to 2 iterations"]


def test_a_run_without_validations_and_one_with_gaps_are_drawn() -> None:
    blind = history([3.0, 2.0, math.nan], name="blind")
    gaps = history([3.0, math.nan, 1.0], [1, 3], [2.0, math.nan], "gaps")
    axes = drawn([blind, gaps], "iterations", "nats", 1)
    assert [list(line.get_ydata()) for line in axes.lines][2] == [2.0]
    assert named(axes) == ["blind", "gaps"]
    assert kinds(drawn([blind], "epochs", "nats", 1)) == ["training, each iteration"]


def test_a_constant_loss_is_inside_the_picture() -> None:
    low, high = drawn([history([2.0] * 50, [50], [2.0])], "iterations", "nats", 0).get_ylim()
    assert low < 2.0 < high


def test_the_axis_names_the_unit() -> None:
    words = history([2.0], level="word")
    assert drawn([words], "epochs", "bpc", 0).get_ylabel() == "loss in bits per word"
    assert drawn([words, SHORT], "epochs", "nats", 0).get_ylabel() == "loss in nats per token"


def test_styles_differ_even_without_colours() -> None:
    styles = list(islice(plot.styles(), 280))
    assert len({str(style) for style in styles}) == 280
    assert len({f"{style['ls']} {style['marker']}" for style in styles[:40]}) == 40
    grey = [np.dot(colors.to_rgb(colour), (0.299, 0.587, 0.114)) for colour in plot.COLOURS]
    assert max(grey) < 0.75, "dark enough on white paper"


def looks(picture: Path) -> set[tuple[str, str]]:
    """Return the dashes and the marker of every line in an SVG picture that has both."""
    svg = "{http://www.w3.org/2000/svg}"
    found = set()
    for group in ElementTree.parse(picture).iter(f"{svg}g"):
        line, marker = group.find(f"{svg}path"), group.find(f"{svg}defs/{svg}path")
        if group.get("id", "").startswith("line2d") and line is not None and marker is not None:
            dashes = re.search(r"stroke-dasharray: ([^;]*)", line.get("style", ""))
            found.add((dashes[1] if dashes else "", marker.get("d", "")))
    return found


def test_curves_differ_even_without_colours(tmp_path: Path) -> None:
    blind = [history(np.linspace(3, 2, 1000 + i), name=f"{i}") for i in range(40)]
    for runs in (blind, [replace(one, validated=np.arange(1, 900), val_loss=one.loss[:899]) for one in blind]):
        curves = list(drawn(runs, "iterations", "nats", 0).lines)
        marked = [line for line in curves if line.get_marker() != "None"]
        assert len(marked) == 40
        plot.save(runs, str(tmp_path / "a.svg"))
        assert len(looks(tmp_path / "a.svg")) == 40
        assert all(5 <= len(line.get_xdata()[:: line.get_markevery()]) <= 12 for line in marked), "dashes are visible"
        others = [line for line in curves if line not in marked]
        assert all(line.get_linestyle() == "-" and line.get_linewidth() < 1 for line in others)
        assert len(others) == (0 if runs is blind else 40)


def test_the_legend_shows_each_run_in_the_style_of_its_curve() -> None:
    axes = drawn([FALLING, history([3.0, 2.0], name="blind")], "iterations", "nats", 0)
    validation, blind = axes.lines[1:]
    shown = axes.figure.legends[0].get_lines()
    for curve_, sample in zip((validation, blind), shown, strict=True):
        for look in ("get_color", "get_marker", "get_linestyle", "get_linewidth"):
            assert getattr(curve_, look)() == getattr(sample, look)()
    assert shown[0].get_color() != shown[1].get_color()


def test_the_legend_shows_names_as_they_are() -> None:
    names = ["_hidden", "$x_1$", "a very long name that does not fit into one line"]
    axes = drawn([replace(SHORT, name=name) for name in names], "iterations", "nats", 0)
    assert [name.replace("\n", " ") for name in named(axes)] == names
    assert "\n" in named(axes)[2]
    assert not any(text.get_parse_math() for text in axes.figure.legends[0].get_texts())


def test_no_curve_runs_through_a_legend() -> None:
    flat = [history([3.53] * 200, name="flat"), FALLING, SHORT]
    for runs in (flat, flat[:1]):
        picture = plot.picture(runs, "iterations", "nats", 0)
        picture.draw_without_rendering()
        axes = picture.axes[0]
        above, beside = axes.get_legend().get_window_extent(), picture.legends[0].get_window_extent()
        assert above.y0 >= axes.get_window_extent().y1
        assert 0 <= above.x0 < above.x1 <= picture.bbox.x1 and above.y1 <= picture.bbox.y1
        assert axes.get_window_extent().x1 <= beside.x0 < beside.x1 <= picture.bbox.x1


# Files.


def test_the_suffix_sets_the_format_and_the_same_runs_give_the_same_file(tmp_path: Path) -> None:
    strange = [replace(FALLING, name="$x_1^2$ <b> & 𝄞"), SHORT]
    for name, start in (("a.png", b"\x89PNG\r\n\x1a\n"), ("a.PDF", b"%PDF-"), ("a.svg", b"<?xml")):
        plot.save(strange, str(tmp_path / name))
        first = (tmp_path / name).read_bytes()
        assert first.startswith(start)
        plot.save(strange, str(tmp_path / name))
        assert (tmp_path / name).read_bytes() == first
    assert len(list(tmp_path.iterdir())) == 3
    words = [
        "".join(text.itertext()) for text in ElementTree.parse(tmp_path / "a.svg").iter() if text.tag.endswith("}text")
    ]
    assert "$x_1^2$ <b> & 𝄞" in words and "short" in words


def test_a_failed_write_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"old")
    with pytest.raises(UserError, match=r"no/a\.png: No such file or directory"):
        plot.save([SHORT], str(tmp_path / "no/a.png"))

    def half(file: io.BytesIO, **rest: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    picture = plot.picture([SHORT], "epochs", "nats", 0)
    picture.savefig = half
    monkeypatch.setattr(plot, "picture", lambda *args: picture)
    with pytest.raises(UserError, match="No space left on device"):
        plot.save([SHORT], str(tmp_path / "a.png"))
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_plot_draws_the_axes_and_names_the_runs(trained: Path, tmp_path: Path) -> None:
    done = charrnn("plot", "cv", "cv8", "-output", tmp_path / "a.svg", "-x", "minutes", "-y", "bpc", cwd=trained)
    assert done.stdout == b"" and done.stderr.decode() == f"wrote {tmp_path}/a.svg\n"
    words = re.findall(r">([^<>\n]+)</text>", (tmp_path / "a.svg").read_text())
    assert {"loss in bits per character", "minutes of training, without validations", "validation"} <= set(words)
    assert {*NAMES} <= set(words)
    run(trained, "plot", "cv", "cv8", "-output", tmp_path / "b.svg", "-label", "A", "-label", "B", "-label", "C")
    assert {"A", "B", "C"} <= set(re.findall(r">([^<>\n]+)</text>", (tmp_path / "b.svg").read_text()))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["cv", "-output", "a.gif"], "-output a.gif: the name of a picture must end in .png, .svg or .pdf"),
        (["cv", "-output", "png"], "-output png"),
        (["cv", "cv8", "-label", "one"], "-label: 1 names for 3 runs; give one for each of val_frac 0.05"),
        (["cv", "-label", ""], "-label: a name is empty"),
        (["cv", "-label", " "], "-label: a name is empty"),
        (["nothing"], "nothing"),
        (["nothing.jsonl"], "nothing.jsonl"),
        (["data"], "data has no checkpoints"),
    ],
)
def test_a_mistake_is_reported_in_one_line(trained: Path, args: list[str], said: str) -> None:
    errors = run(trained, "plot", *args, code=1).errors
    assert len(errors) == 1 and said in errors[0]
    assert not list(trained.glob("*.png"))


def test_wrong_flags_are_refused(trained: Path) -> None:
    assert "-x miles: must be one of" in one_line(charrnn("plot", "cv", "-x", "miles", cwd=trained, code=2))
    assert "-text and -output cannot be combined" in one_line(
        charrnn("plot", "cv", "-text", "-output", "a.png", cwd=trained, code=2)
    )


def test_without_matplotlib_the_message_says_what_to_install(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("charrnn.reports.plot.find_spec", lambda name: None)
    said = run(trained, "plot", "cv", code=1).errors
    assert "pip install matplotlib" in said[0] and "-text" in said[0]
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert run(trained, "plot", "cv", "--text").lines, "-text works without it"


# Text.


def test_text_shows_one_run_or_several(trained: Path) -> None:
    output = run(trained, "plot", "cv", "-text", "-x", "epochs", "-y", "bpc", "-smooth", 3).lines
    assert output[0] == "loss in bits per character by epoch; training: mean of 3 iterations"
    assert output[1] == ". training, o validation: lstm"
    assert sum("o" in line.partition("|")[2] for line in output) > 1 and output[-1].endswith(" 2")
    output = run(trained, "plot", "cv", "cv8", "-text").lines
    names = [f"{a} training, {a.upper()} validation: {name}" for a, name in zip("abc", NAMES, strict=True)]
    assert output[1:4] == names
    marks = "".join(line.partition("|")[2] for line in output)
    assert {"a", "A", "b", "c", "C"} <= set(marks) and "B" not in marks, "one run has no validations"


def test_escape_sequences_in_names_do_not_reach_the_terminal(trained: Path, tmp_path: Path) -> None:
    evil = "\x1b[31mred\x07"
    shutil.copy(trained / METRICS, tmp_path / f"lm_{evil}_metrics.jsonl")
    output = run(tmp_path, "plot", ".", "-text").lines
    assert output[1] == r". training, o validation: \x1b[31mred\x07"
    output = run(trained, "plot", "cv", "-text", "-label", f"{evil}\n\tand 山").lines
    assert output[1] == r". training, o validation: \x1b[31mred\x07 and 山"
    assert histories.names([replace(history([1.0]), source=Path(evil))] * 2) == [r"\x1b[31mred\x07"] * 2
    run(trained, "plot", "cv", "-label", evil, "-output", tmp_path / "a.svg")
    ElementTree.parse(tmp_path / "a.svg")


def test_text_has_points_at_the_right_places() -> None:
    steep = history([9.0, *[2.0] * 30, *[1.0] * 9], [20, 40], [2.0, 1.0], "steep")
    (_, _, *rows) = plot.text([steep], 48, 5, smooth=1)
    assert rows[0].startswith("2.000 | ..") and rows[4].startswith("1.000 |")
    assert rows[0].index("o") == len("2.000 |") + int(19 / 39 * 41) and rows[4].endswith("o")
    assert "9" not in "".join(rows[:5]), "the steep beginning is left out"


def test_more_runs_than_letters_are_refused() -> None:
    assert len(plot.text([SHORT] * 26, 80, 10)) == 1 + 26 + 12
    with pytest.raises(UserError, match="27 runs: -text has only 26 letters; plot fewer"):
        plot.text([SHORT] * 27, 80, 10)


def test_a_curve_above_the_top_is_not_drawn() -> None:
    assert curve.draw({".": [(0, 5.0), (9, 1.0)]}, 17, 3, top=2.0)[0].startswith("1.000 |         .")
    assert curve.draw({".": [(0, 5.0)]}, 17, 3, top=2.0) == []
