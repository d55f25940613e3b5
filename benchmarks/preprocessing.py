"""Preprocessing: how fast a text becomes token ids, and how much memory that takes beyond the interpreter's own."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Row, summary

MB = 1_000_000
ALPHABETS = {
    "ASCII": "".join(map(chr, range(32, 127))) + "\n",
    "mixed UTF-8": "".join(map(chr, range(32, 127))) + "äöüßéèñ¿αβγδабвгдежз日本語漢字山川🌸🚀\n",
}
# runs in a separate process; prints the seconds and the growth of the peak memory after the imports, in bytes
PREPARE = """
import resource, sys, time
from charrnn.compute import keep_freed_memory
from charrnn.data.text import open_text
keep_freed_memory()  # as charrnn train does before it opens the text
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
before = peak()
started = time.perf_counter()
open_text(sys.argv[1], report=lambda line: None)
print(time.perf_counter() - started, peak() - before)
"""


def run(quick: bool) -> list[Row]:
    rows = []
    for size in (10,) if quick else (100, 1000):
        for name, alphabet in ALPHABETS.items():
            with tempfile.TemporaryDirectory() as folder:
                write_text(Path(folder) / "input.txt", alphabet, size * MB)
                runs = [prepare(Path(folder)) for _ in range(1 if size > 100 else 3)]
            timing = summary([seconds for seconds, _ in runs])
            rows.append(
                {
                    "text": f"{size} MB of {name}",
                    "MB/s": size / timing.median,
                    "spread": timing.spread,
                    "peak memory above the interpreter's, MB": max(memory for _, memory in runs) / MB,
                }
            )
    return rows


def write_text(path: Path, alphabet: str, size: int) -> None:
    """Write about ``size`` bytes: one block of random characters, repeated."""
    block = "".join(random.Random(0).choices(alphabet, k=MB // 2)).encode()
    with path.open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)


def prepare(folder: Path) -> tuple[float, float]:
    """Turn the text in a folder into token ids without a cache. Return the seconds and the bytes of memory."""
    for cached in (*folder.glob("*.npy"), *folder.glob("vocab.json")):
        cached.unlink()
    done = subprocess.run([sys.executable, "-c", PREPARE, str(folder)], capture_output=True, text=True, check=True)
    seconds, memory = map(float, done.stdout.split())
    return seconds, memory
