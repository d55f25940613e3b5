"""What a checkpoint holds, in plain values. Nothing is built, and no model file is read."""

from __future__ import annotations

from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

from torch import Tensor

from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.data.vocabulary import bits, perplexity
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
        counts = counted(saved)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    measured, name = (perplexity, "ppl") if saved.vocabulary.level == "word" else (bits, "bpc")
    measure = {name: number(None if saved.val_loss is None else measured(saved.val_loss))}
    return {
        "checkpoint": str(path),
        "model": saved.options.model,
        "model_options": saved.model_options,
        "epoch": saved.epoch,
        "iteration": training.get("iteration"),
        "val_loss": number(saved.val_loss),
        **measure,
        "parameters": parameters(saved.weights),
        "vocabulary": {
            "level": saved.vocabulary.level,
            "encoding": saved.vocabulary.encoding,
            "size": len(saved.vocabulary),
            saved.vocabulary.units: [
                {"code": code, saved.vocabulary.unit: saved.vocabulary.name(code), "count": counts.get(code)}
                for code in saved.vocabulary.codes
            ],
        },
        "losses": {"train": losses, "validation": validated},
        "settings": asdict(saved.options),
        "software": saved.software,
    }


def counted(saved: Checkpoint) -> dict[Any, int]:
    """How often each code was in the text, where that was recorded; older checkpoints have it by code."""
    match saved.training.get("counts", {}):
        case Tensor() as counts:
            return dict(zip(saved.vocabulary.codes, map(int, counts.tolist()), strict=True))
        case counts:
            return {int(code): int(count) for code, count in counts.items()}


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
