"""The tests of test_faults and test_fuzz, run for hours instead of seconds. Run by hand: pytest leaves out tests
marked ``soak``.

    pytest -n 0 -s -m soak -k kills --kills 100
    pytest -n 0 -s -m soak -k broken_files --attempts 10000 --first 20000

Attempts on broken files are numbered. A failed one is printed with its number, and ``--first NUMBER --attempts 1``
repeats it.
"""

from __future__ import annotations

import resource
from collections import Counter
from pathlib import Path

import pytest

from tests.helpers import fuzz
from tests.helpers.kills import survive

pytestmark = pytest.mark.soak

KILLS_PER_RUN = 20  # few enough for a run to finish


def test_runs_survive_many_kills(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """After SIGKILLs on a slow disk, every checkpoint loads and every run ends like an undisturbed one."""
    wanted = pytestconfig.getoption("--kills")
    kills = inside = runs = 0
    while kills < wanted:
        result = survive(tmp_path / str(runs), min(KILLS_PER_RUN, wanted - kills), seed=runs + 1)
        runs, kills, inside = runs + 1, kills + result.kills, inside + result.inside
        print(f"run {runs}: {result.kills} kills, {result.inside} during a save; resumed at {result.iterations}")
    print(f"{kills} kills survived in {runs} runs, {inside} of them during a save")


def test_commands_survive_many_broken_files(
    tmp_path: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands on broken and hostile files either succeed or end with a single clean error message."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first, attempts = pytestconfig.getoption("--first"), pytestconfig.getoption("--attempts")
    worked: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    wrong = []
    fuzz.prepare(tmp_path / "fuzz")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(first, first + attempts):
        try:
            found = fuzz.attempt(number, tmp_path / "fuzz")
        except fuzz.Wrong as error:
            wrong.append(number)
            print(str(error)[:2000], flush=True)
        else:
            (refused if found.code else worked)[found.kind] += 1
        if (number + 1 - first) % 1000 == 0:
            print(f"{number + 1 - first} attempts", flush=True)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{'broken':28} {'worked':>8} {'refused':>8}")
    for kind in sorted(fuzz.KINDS):
        print(f"{kind:28} {worked[kind]:8} {refused[kind]:8}")
    print(f"peak memory grew by {grown:.0f} MB")
    assert not wrong, f"these attempts ended neither in a result nor in a clean error: {wrong}"
