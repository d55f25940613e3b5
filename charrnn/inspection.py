"""What a checkpoint holds, in plain values. Nothing is built, and no model file is read."""

from __future__ import annotations

from dataclasses import asdict
from math import isfinite, log
from pathlib import Path
from typing import Any

from torch import Tensor

from charrnn.checkpoint import Checkpoint
from charrnn.errors import UserError


def inspect(path: Path) -> dict[str, Any]:
    """All there is to know about a checkpoint, as JSON takes it. Raises UserError where it cannot be read.

    Numbers that JSON has not are None; so are counts, losses and software versions that an older checkpoint,
    or an imported one, has not recorded.
    """
    saved = Checkpoint.load(path)
    training = saved.training
    try:
        losses = [number(loss) for loss in training["losses"].tolist()] if "losses" in training else None
        validated = {int(i): number(loss) for i, loss in training.get("val_losses", {}).items()}
        counts = {int(code): int(count) for code, count in training.get("counts", {}).items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    return {
        "checkpoint": str(path),
        "model": saved.options.model,
        "model_options": saved.model_options,
        "epoch": saved.epoch,
        "iteration": training.get("iteration"),
        "val_loss": number(saved.val_loss),
        "bpc": number(None if saved.val_loss is None else saved.val_loss / log(2)),
        "parameters": parameters(saved.weights),
        "vocabulary": {
            "encoding": saved.vocabulary.encoding,
            "size": len(saved.vocabulary),
            "characters": [
                {"code": code, "character": saved.vocabulary.name(code), "count": counts.get(code)}
                for code in saved.vocabulary.codes
            ],
        },
        "losses": {"train": losses, "validation": validated},
        "settings": asdict(saved.options),
        "software": saved.software,
    }


def parameters(weights: dict[str, Tensor]) -> dict[str, Any]:
    """How many numbers there are, in bytes too, and by part of the model; tensors that share memory count once."""
    tensors, parts, seen = [], dict[str, int](), set()
    size = 0
    for name, tensor in weights.items():
        part = name.partition(".")[0]
        tensors.append({"name": name, "shape": list(tensor.shape), "type": str(tensor.dtype).removeprefix("torch.")})
        where = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape))
        if where not in seen:
            seen.add(where)
            parts[part] = parts.get(part, 0) + tensor.numel()
            size += tensor.numel() * tensor.element_size()
    return {"total": sum(parts.values()), "bytes": size, "parts": parts, "tensors": tensors}


def number(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None
