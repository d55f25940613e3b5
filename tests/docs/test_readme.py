"""The README is short, its table has the program's defaults, and its picture shows the program's display."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click

from charrnn.cli.flags import Flag
from charrnn.cli.main import cli
from tests.helpers.command import environment

ROOT = Path(__file__).parent.parent.parent
README = ROOT / "README.md"


def test_the_table_of_flags_gives_the_programs_defaults() -> None:
    rows = re.findall(r"^\| `-(\w+)` \| `([^`]+)` \| \S", README.read_text(encoding="utf-8"), re.MULTILINE)
    train = cli.get_command(click.Context(cli), "train")
    assert train is not None
    defaults = {
        parameter.option.name: parameter.option.default for parameter in train.params if isinstance(parameter, Flag)
    }
    assert len(rows) == 10
    for flag, default in rows:
        value = defaults[flag]
        assert default == (f"{value:g}" if isinstance(value, float) else str(value)), flag


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) < 200


def test_the_picture_of_the_live_display_is_drawn_by_the_program(tmp_path: Path) -> None:
    """Draws a run of a few seconds with the script that drew the picture in the README."""
    (tmp_path / "input.txt").write_text("to be or not to be\n" * 100)
    settings = "-data_dir . -rnn_size 8 -batch_size 2 -seq_length 10 -eval_val_every 5 -sample_length 20 -gpuid -1"
    words = ["train", *settings.split(), "-threads", "1", "-kernels", "torch"]
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'docs')!r}); import pictures; "
    code += f"print(pictures.picture({words}, 7, '-data_dir', {str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    drawn = re.sub(r"<[^>]+>", "", done.stdout.decode()).replace("&#160;", " ")
    assert "$ charrnn train -data_dir ." in drawn
    assert "iteration 5, epoch" in drawn and "7/" in drawn and "iteration 10" not in drawn
    assert not list(tmp_path.rglob("*.pt")), "the script saved checkpoints in the current folder"
