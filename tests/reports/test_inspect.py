"""``charrnn inspect`` shows the run behind a checkpoint, and text curves have their points in the right places."""

from __future__ import annotations

import json
import math
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.checkpoints.folder import find_newest
from charrnn.reports import curve
from tests.helpers.command import QUICK, SONG, on_a_terminal, run, write_text

MODEL = '''"""A model."""
import pathlib
import torch
from torch import nn

pathlib.Path("executed").touch()

class Tiny(nn.Module):
    def __init__(self, V):
        super().__init__()
        self.table = nn.Embedding(V, V)
        self.tied = nn.Linear(V, V, bias=False)
        self.tied.weight = self.table.weight
        self.decoder = nn.Linear(V, V)
    def forward(self, x, state):
        return self.decoder(self.tied(self.table(x))), (torch.zeros(1, x.shape[1], 1),)

def create(input_size, rnn_size, n_layers, dropout, *, shade: int = 3):
    return Tiny(input_size)
'''


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspected")
    write_text(folder / "data", "\x1b[31m" + SONG * 80)
    (folder / "models").mkdir()
    (folder / "models/tiny.py").write_text(MODEL)
    run(folder, "train", "-data_dir", "data", *QUICK, "-model", "tiny", "-shade", 7, "-max_epochs", 2,
        "-eval_val_every", 30)  # fmt: skip
    (folder / "executed").unlink()
    return folder


def as_json(folder: Path) -> Any:
    (line,) = run(folder, "inspect", "cv", "-json").lines
    return json.loads(line)


def test_json_prints_the_contents_of_the_checkpoint(trained: Path) -> None:
    found = as_json(trained)
    assert not (trained / "executed").exists(), "no model file is executed"
    saved = Checkpoint.load(trained / "cv")
    text = (trained / "data/input.txt").read_text()
    assert found["model"] == "tiny" and found["model_options"] == {"shade": 7}
    assert {c["character"]: c["count"] for c in found["vocabulary"]["characters"]} == {
        repr(c): text.count(c) for c in set(text)
    }
    V = len(set(text))
    assert found["parameters"]["parts"] == {"table": V * V, "decoder": V * V + V}, "tied weights count once"
    assert found["parameters"]["total"] == 2 * V * V + V
    assert found["parameters"]["bytes"] == 4 * found["parameters"]["total"]
    assert found["losses"]["train"] == saved.training["losses"].tolist()
    assert {int(i): loss for i, loss in found["losses"]["validation"].items()} == saved.training["val_losses"]
    assert found["bpc"] == pytest.approx(found["val_loss"] / math.log(2))
    assert found["settings"]["eval_val_every"] == 30
    software = {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()}
    assert found["software"].items() >= software.items()


def test_the_output_is_lines_in_a_pipe_and_fits_a_terminal(trained: Path) -> None:
    (trained / "executed").unlink(missing_ok=True)
    lines = run(trained, "inspect", "cv").lines
    assert "batch_size\t4\t50" in lines
    assert f"'{SONG[0]}' 80" in lines
    assert any(line.lstrip().startswith("+---") for line in lines), "the curve"
    for columns in (60, 140):
        code, output = on_a_terminal(trained, "inspect", "cv", columns=columns)
        assert code == 0 and "'\\x1b' 1" in output
        assert "\x1b[31m" not in output, "escape sequences in the text do not reach the terminal"
    assert not (trained / "executed").exists()


def test_values_that_older_checkpoints_lack_are_reported(trained: Path, tmp_path: Path) -> None:
    saved = Checkpoint.load(find_newest(trained / "cv"))
    saved.training, saved.software, saved.val_loss = {}, {}, None
    (tmp_path / "cv").mkdir()
    saved.save(tmp_path / "cv/lm_old.pt")
    found = as_json(tmp_path)
    assert found["losses"] == {"train": None, "validation": {}} and found["val_loss"] is None
    assert found["vocabulary"]["characters"][0]["count"] is None
    said = "\n".join(run(tmp_path, "inspect", "cv").lines)
    assert "counts were not recorded" in said and "not validated" in said and "not recorded" in said


def test_a_file_that_is_not_a_checkpoint_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"nothing")
    assert len(run(tmp_path, "inspect", "x.pt", code=1).errors) == 1


@pytest.mark.parametrize("damage", [{"losses": "1.5"}, {"val_losses": {"x": 1.0}}, {"counts": torch.ones(3)}])
def test_a_checkpoint_with_a_damaged_training_state_is_refused(
    trained: Path, tmp_path: Path, damage: dict[str, Any]
) -> None:
    saved = Checkpoint.load(find_newest(trained / "cv"))
    saved.training |= damage
    saved.save(tmp_path / "lm_x.pt")
    (said,) = run(tmp_path, "inspect", "lm_x.pt", code=1).errors
    assert "lm_x.pt is damaged: " in said


def test_a_curve_has_points_at_the_right_places() -> None:
    drawn = curve.draw({".": [(0, 4.0), (9, 0.0)], "o": [(9, 2.0), (5, math.nan)]}, width=17, height=5)
    assert drawn == [
        "4.000 |.",
        "      |",
        "      |         o",
        "      |",
        "0.000 |         .",
        "      +----------",
        "       0        9",
    ]


def test_a_curve_shows_means_and_fits_its_width() -> None:
    points = [(i, float(i % 2)) for i in range(1000)]
    drawn = curve.draw({".": points}, width=40, height=3)
    assert {line.strip()[-1] for line in drawn[:3] if "." in line.split("|")[-1]} == {"."}
    assert max(map(len, drawn)) <= 40
    assert drawn[-1].endswith(" 999")
    assert curve.draw({".": [(1, math.inf)]}, 40, 3) == []
    assert curve.draw({".": [(1, 2.0)]}, 20, 3)[0].startswith("2.000 |.")
