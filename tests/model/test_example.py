"""The example package with a model matches the tutorial, can be installed, and passes its own tests."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from charrnn.testing import CHECKS
from tests.helpers.pages import ROOT, blocks

EXAMPLE = ROOT / "examples" / "charrnn-mgu"


def test_the_tutorial_shows_the_files_of_the_example() -> None:
    shown = {block.path: block.text for block in blocks(ROOT / "docs" / "plugin_tutorial.md") if block.path}
    for path, file in (("models/mgu.py", "charrnn_mgu.py"), ("charrnn-mgu/pyproject.toml", "pyproject.toml")):
        assert shown[path].partition("\n")[2] == (EXAMPLE / file).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment that has this environment's packages, and the example installed by pip."""
    folder = tmp_path_factory.mktemp("example")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    packages = next((folder / "venv").glob("lib/python*/site-packages"))
    (packages / "these.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n")
    source = folder / "source"
    source.mkdir()
    for file in EXAMPLE.iterdir():
        if file.is_file():
            (source / file.name).write_bytes(file.read_bytes())
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
    # without an index, since its dependencies and build tools are already installed
    subprocess.run([*pip, "--no-index", "--no-deps", "--no-build-isolation", str(source)], check=True)
    return python


def run(python: Path, folder: Path, *words: str) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("CHARRNN", "PYTHON"))}
    env["OMP_NUM_THREADS"] = "1"
    done = subprocess.run([python, *words], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_installed_model_can_be_found_trained_and_sampled(python: Path, tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text("one two three four five six seven eight nine ten\n" * 40)
    settings = ["-data_dir", ".", "-gpuid", "-1", "-threads", "1", "-rnn_size", "8", "-batch_size", "4"]
    settings += ["-seq_length", "20", "-max_epochs", "1"]
    charrnn = ["-m", "charrnn"]
    listed = [line.split("\t") for line in run(python, tmp_path, *charrnn, "models").splitlines()]
    path = next(line[1] for line in listed if line[0] == "mgu")
    assert Path(path).is_relative_to(python.parent.parent)
    assert "-gate_bias" in run(python, tmp_path, *charrnn, "train", "-model", "mgu", "-help")
    run(python, tmp_path, *charrnn, "train", "-model", "mgu", "-gate_bias", "-0.5", *settings)
    assert len(run(python, tmp_path, *charrnn, "sample", "cv", "-length", "30", "-gpuid", "-1")) >= 30


def test_the_examples_own_tests_pass(python: Path, tmp_path: Path) -> None:
    test = tmp_path / "test_mgu.py"
    test.write_bytes((EXAMPLE / test.name).read_bytes())
    printed = run(python, tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", test.name)
    assert int(printed.split(" passed")[0].split()[-1]) > 3 * len(CHECKS)
