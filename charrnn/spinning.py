"""How long the threads of torch keep a processor busy with waiting."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

# turns of the loop that a thread of GNU's OpenMP waits in, some tenths of a millisecond, before it sleeps
TURNS = "20000"
OWN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def keep_short(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have torch's threads wait for work less long; to be called before torch is loaded.

    By itself GNU's OpenMP waits 300,000 turns, some milliseconds, after each of torch's operations on several
    threads. All that time nobody else has that processor, not even the threads of the compiled kernels. Threads that
    sleep at once would wake up too slowly for torch's next operation. The user's own settings of OpenMP are left alone.
    """
    if not any(name in environment for name in OWN):
        environment["GOMP_SPINCOUNT"] = TURNS
