"""Freed memory is kept, and found again without the system's help; the environment's own choice stands."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or "malloc" in os.environ.get("LD_PRELOAD", ""), reason="glibc's malloc alone"
)

COUNT = """
import resource, sys
from charrnn.compute import keep_freed_memory
size = 40 << 20  # more than glibc ever takes from the heap by itself
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
for round_ in range(8):
    if round_ == 3:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * size
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def count(how: str, **env: str) -> tuple[str, int]:
    """What keep_freed_memory said, and the page faults of 40 MB taken and given back five times."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    words = [sys.executable, "-c", COUNT, how]
    said, faults = subprocess.run(words, env=clean | env, check=True, capture_output=True, text=True).stdout.split()
    return said, int(faults)


def test_freed_memory_is_taken_again_without_page_faults() -> None:
    assert count("keep")[0] == "True"
    assert count("keep")[1] * 5 < count("leave")[1]


@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_TRIM_THRESHOLD_", "100000"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=100000")]
)
def test_the_environments_own_settings_stand(name: str, value: str) -> None:
    said, faults = count("keep", **{name: value})
    assert said == "False"
    assert faults > 5 * count("keep")[1]
