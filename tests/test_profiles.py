"""Random tests have no deadline. In CI they try more examples, and different files in each run."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from hypothesis import settings

from tests.helpers.pages import ROOT


def shown(*options: str, ci: str = "") -> tuple[int, int]:
    """Return the number of examples and the first damaged file that pytest prints."""
    words = [sys.executable, "-m", "pytest", "-n", "0", "--co", "tests/test_errors.py", *options]
    env = {name: value for name, value in os.environ.items() if name not in ("CHARRNN_FIRST", "PYTEST_ADDOPTS")}
    env["CI"] = ci
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    examples, first = re.findall(r"Hypothesis: (\d+) examples; damaged files: --first (\d+)", done.stdout)[0]
    return int(examples), int(first)


def test_ci_tries_more_examples_and_different_files_in_each_run() -> None:
    examples, first = shown()
    assert first == 0
    (more, one), (_, two) = shown(ci="true"), shown(ci="true")
    assert more > examples
    assert len({0, one, two}) == 3


def test_a_ci_run_can_be_repeated() -> None:
    assert shown("--first", "17", ci="true")[1] == 17


def test_examples_have_no_deadline_and_are_new_in_each_run() -> None:
    assert settings().deadline is None
    assert not settings().derandomize
    files = [path for path in (ROOT / "tests").rglob("*.py") if path.name not in ("conftest.py", "test_profiles.py")]
    assert not [path.name for path in files if "deadline=" in path.read_text()]
