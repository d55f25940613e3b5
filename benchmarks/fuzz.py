"""Broken and hostile files, by the thousand, through the commands: clean results or clean errors, nothing else.

    python -m benchmarks.fuzz -n 10000

Attempts are numbered; one that fails is printed with its number and can be run again by ``-first NUMBER -n 1``.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory


def main() -> int:
    import torch

    from tests.helpers.fuzz import Wrong, attempt, prepare

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-n", type=int, default=10_000, metavar="ATTEMPTS", help="how many [10000]")
    parser.add_argument("-first", type=int, default=0, metavar="NUMBER", help="number of the first [0]")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    began = time.monotonic()
    outcomes: Counter[tuple[str, int]] = Counter()
    wrong = 0
    with TemporaryDirectory() as place:
        folder = Path(place) / "fuzz"
        os.environ["XDG_CACHE_HOME"] = str(Path(place) / "cache")
        prepare(folder)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(arguments.first, arguments.first + arguments.n):
            try:
                found = attempt(number, folder)
            except Wrong as error:
                wrong += 1
                print(str(error)[:2000], flush=True)
            else:
                outcomes[found.kind, found.code] += 1
            if (number + 1 - arguments.first) % 1000 == 0:
                print(f"{number + 1 - arguments.first} attempts", flush=True)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{'what was broken':28} {'worked':>8} {'refused':>8}")
    for kind in sorted({kind for kind, _ in outcomes}):
        worked = outcomes[kind, 0]
        refused = sum(count for (other, code), count in outcomes.items() if other == kind and code)
        print(f"{kind:28} {worked:8} {refused:8}")
    print(
        f"{arguments.n} attempts in {time.monotonic() - began:.0f} s: {wrong} ended otherwise; "
        f"the memory's peak rose by {grown:.0f} MB"
    )
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
