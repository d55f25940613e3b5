"""``make`` sets up an environment once and reuses it, even in a folder whose name has spaces."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TARGETS = re.findall(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.M)[0].split()

# a substitute for Python that records its arguments and copies itself into the environments that it creates
PYTHON = """#!/bin/sh
echo "$*" >> calls
if [ "$2" = venv ]; then mkdir -p .venv/bin; cp "$0" .venv/bin/python; fi
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    folder = tmp_path / "a folder with spaces"
    folder.mkdir()
    for name in ("Makefile", "setup.cfg", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "python").write_text(PYTHON)
    (folder / "python").chmod(0o755)
    return folder


def make(folder: Path, *args: str) -> list[str]:
    """Run make. Return the arguments of each call of Python or, if there were none, the lines that make printed."""
    (folder / "calls").unlink(missing_ok=True)
    words = ["make", "PYTHON=./python", *args]
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return ((folder / "calls").read_text() if (folder / "calls").exists() else done.stdout).splitlines()


def test_make_without_a_target_lists_the_targets(checkout: Path) -> None:
    lines = make(checkout)
    assert [line.split()[1] for line in lines if line.startswith("make ")] == [
        name for name in TARGETS if name != "help"
    ]
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize(
    ("target", "package", "command"),
    [
        ("train", ".", "-m charrnn train"),
        ("test", ".[test]", "-m pytest"),
        ("lint", ".[test]", "-m mypy"),
        ("docs", ".[docs]", "-m sphinx"),
        ("bench", ".[fast]", "-m benchmarks"),
    ],
)
def test_each_target_installs_what_it_needs_only_once(checkout: Path, target: str, package: str, command: str) -> None:
    torch = re.findall(r"^torch==.*", (ROOT / "constraints.txt").read_text(), re.M)[0]
    first = make(checkout, target, "ARGS=-x")
    assert first[0] == "-m venv .venv"
    assert first[1].startswith("-m pip install") and first[1].endswith(f" {torch}")
    assert first[2].endswith(f"-c constraints.txt -e {package}")
    assert first[-1].startswith(command)
    assert make(checkout, target, "ARGS=-x") == first[3:], "the second call installs nothing"
    os.utime(checkout / "setup.cfg", (2**32, 2**32))
    assert make(checkout, target, "ARGS=-x")[:1] == [first[2]], "changed dependencies are installed"


def test_torch_is_installed_from_the_given_index(checkout: Path) -> None:
    assert (
        "--index-url https://example.org/cpu torch=="
        in make(checkout, "train", "TORCH_INDEX=https://example.org/cpu")[1]
    )


def test_make_finds_a_python_that_is_new_enough(checkout: Path) -> None:
    (checkout / "python3").write_text("#!/bin/sh\nexit 1\n")
    (checkout / "python3").chmod(0o755)
    (checkout / "python3.13").symlink_to(sys.executable)
    words = ["make", "-n", "train"]
    env = {"PATH": f"{checkout}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(words, cwd=checkout, env=env, capture_output=True, text=True, timeout=60)
    assert "'python3.13' -m venv .venv" in done.stdout
