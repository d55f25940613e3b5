"""The contents of a checkpoint. Builds no model and reads no model file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import inf, isfinite
from pathlib import Path
from typing import Any

from torch import Tensor

from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.errors import UserError


@dataclass(frozen=True)
class Token:
    # code point, byte value, or word
    code: Any
    # printable
    name: str
    # occurrences in the training text, if recorded
    count: int | None


@dataclass(frozen=True)
class Parameters:
    """Sizes of the weights. Tensors that share memory count once."""

    total: int
    bytes: int
    # number of parameters in each part of the model, by the first word of the tensors' names
    parts: dict[str, int]
    # name, shape and type of each tensor
    tensors: list[dict[str, Any]]


@dataclass(frozen=True)
class Inspection:
    path: Path
    saved: Checkpoint
    # None if not recorded, as in imported checkpoints
    iteration: int | None
    # nats per token; None if there was no validation or it was not finite
    val_loss: float | None
    parameters: Parameters
    # in the order of their ids
    tokens: list[Token]
    # training loss of each iteration, None where not finite; None if not recorded
    losses: list[float | None] | None
    # by iteration
    val_losses: dict[int, float | None]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, with None for values that JSON cannot express."""
        saved, vocabulary = self.saved, self.saved.vocabulary
        figure = vocabulary.figure(inf if self.val_loss is None else self.val_loss)
        return {
            "checkpoint": str(self.path),
            "model": saved.options.model,
            "model_options": saved.model_options,
            "epoch": saved.epoch,
            "iteration": self.iteration,
            "val_loss": self.val_loss,
            figure.key: finite(figure.value),
            "parameters": asdict(self.parameters),
            "vocabulary": {
                "level": vocabulary.level,
                "encoding": vocabulary.encoding,
                "size": len(vocabulary),
                vocabulary.units: [
                    {"code": token.code, vocabulary.unit: token.name, "count": token.count} for token in self.tokens
                ],
            },
            "losses": {"train": self.losses, "validation": self.val_losses},
            "settings": asdict(saved.options),
            "software": saved.software,
        }


def inspect(path: Path) -> Inspection:
    """Read a checkpoint file. Raises UserError if it cannot be read or is damaged."""
    saved = Checkpoint.load(path)
    training, vocabulary = saved.training, saved.vocabulary
    try:
        losses = [finite(loss) for loss in training["losses"].tolist()] if "losses" in training else None
        val_losses = {int(iteration): finite(loss) for iteration, loss in training.get("val_losses", {}).items()}
        if not all(0 <= iteration < 2**53 for iteration in val_losses):
            raise ValueError("its validations do not have an iteration each")
        counts = token_counts(saved)
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    return Inspection(
        path=path,
        saved=saved,
        iteration=training.get("iteration"),
        val_loss=finite(saved.val_loss),
        parameters=count_parameters(saved.weights),
        tokens=[Token(code, vocabulary.name(code), counts.get(code)) for code in vocabulary.codes],
        losses=losses,
        val_losses=val_losses,
    )


def token_counts(saved: Checkpoint) -> dict[Any, int]:
    """Return how often each code occurs in the training text; empty if not recorded."""
    match saved.training.get("counts", {}):
        case Tensor() as counts:
            return dict(zip(saved.vocabulary.codes, map(int, counts.tolist()), strict=True))
        case counts:  # older checkpoints keep a dictionary by code
            return {int(code): int(count) for code, count in counts.items()}


def count_parameters(weights: dict[str, Tensor]) -> Parameters:
    size, seen = 0, set()
    parts: dict[str, int] = {}
    for name, tensor in weights.items():
        memory = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape))
        if memory not in seen:
            seen.add(memory)
            part = name.partition(".")[0]
            parts[part] = parts.get(part, 0) + tensor.numel()
            size += tensor.numel() * tensor.element_size()
    tensors = [
        {"name": name, "shape": list(tensor.shape), "type": str(tensor.dtype).removeprefix("torch.")}
        for name, tensor in weights.items()
    ]
    return Parameters(sum(parts.values()), size, parts, tensors)


def finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None
