"""The device that a command computes on."""

from __future__ import annotations

from collections.abc import Callable

import torch

from charrnn.errors import UserError


def choose_device(gpuid: int, report: Callable[[str], None], precision: str = "float32") -> torch.device:
    """The GPU of that number (Apple's MPS counts as number 0), or the CPU for -1.

    With the default number 0 and no GPU, says so and returns the CPU. Raises UserError for a GPU that is
    not there, and for float64 on MPS, which lacks it.
    """
    if gpuid < 0:
        return torch.device("cpu")
    mps = torch.backends.mps.is_available()
    count = torch.cuda.device_count() or int(mps)
    if gpuid >= max(count, 1):
        there = f"GPUs 0 to {count - 1}" if count > 1 else "GPU 0 alone" if count else "no GPU"
        raise UserError(f"-gpuid {gpuid}: this machine has {there}; -gpuid -1 computes on the CPU")
    if not count:
        report("no GPU here: computing on the CPU (-gpuid -1 says so without this line)")
        return torch.device("cpu")
    if torch.cuda.device_count():
        torch.backends.cudnn.allow_tf32 = False  # or its recurrent layers would round float32's factors unasked
        return torch.device("cuda", gpuid)
    if precision == "float64":
        raise UserError("Apple's MPS has no float64: use -precision float32, or -gpuid -1 for the CPU")
    return torch.device("mps")
