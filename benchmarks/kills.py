"""Kill a training again and again, half of the times inside a save, and see that nothing is lost.

    python -m benchmarks.kills -n 100

Each kill is a SIGKILL at a random moment after the first iteration, on a disk made slow for the purpose. After each,
every checkpoint must load; at the end the run must equal one that was left alone: every tensor, every number.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

PER_RUN = 20  # kills in one run's life: it must come to its end under them


def main() -> None:
    from tests.helpers.kills import survive

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-n", type=int, default=100, metavar="KILLS", help="how many in all [100]")
    parser.add_argument("-seed", type=int, default=1, help="of the first run's moments; the next has the next [1]")
    arguments = parser.parse_args()

    began = time.monotonic()
    kills = inside = runs = 0
    while kills < arguments.n:
        with TemporaryDirectory() as folder:
            result = survive(Path(folder), min(PER_RUN, arguments.n - kills), arguments.seed + runs)
        runs, kills, inside = runs + 1, kills + result.kills, inside + result.inside
        print(f"run {runs}: {result.kills} kills, {result.inside} inside a save; resumed at {result.iterations}")
    print(
        f"{kills} kills survived in {runs} runs, {inside} of them inside a save; every run ended equal to the one "
        f"left alone ({time.monotonic() - began:.0f} s)"
    )


if __name__ == "__main__":
    main()
