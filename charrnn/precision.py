"""What the settings of -precision stand for: the type of the weights, and the arithmetic of training."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from charrnn.errors import UserError


def weights_dtype(precision: str) -> torch.dtype:
    """Of weights, optimizer and carried sums: float64, and float32 for all others, whose products alone are shorter."""
    return torch.float64 if precision == "float64" else torch.float32


def prepare(precision: str, device: torch.device, report: Callable[[str], None]) -> None:
    """Set up this process for training in that precision.

    tf32: float32 whose products on the GPU round their factors to 10 bits. Raises UserError for it elsewhere. On a CPU
    without instructions for bf16, says so.
    """
    if precision == "tf32":
        if device.type != "cuda":
            raise UserError("-precision tf32: only a CUDA GPU has it; use float32, or bf16 on a CPU that has that")
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    if precision == "bf16" and device.type == "cpu" and not has_bf16():
        report("this CPU has no instructions for bf16: training will be slower than with -precision float32")


def has_bf16() -> bool:
    """Whether the CPU computes in bf16 itself (AVX512_BF16, AMX_BF16 or Arm's BF16). True where torch cannot tell."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return not capabilities or any("bf16" in name and bool(there) for name, there in capabilities.items())


def arithmetic(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """What a training step's forward pass runs in. bf16: products of values rounded to 8 bits, the sums in float32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
