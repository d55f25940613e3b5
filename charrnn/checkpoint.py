"""Checkpoints: written whole or not at all, read without running anything from the file."""

from __future__ import annotations

import re
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import charrnn
from charrnn import registry
from charrnn.errors import UserError
from charrnn.files import replacing
from charrnn.options import TrainingOptions, training_options
from charrnn.vocabulary import Vocabulary

FORMAT = 1
NAME = re.compile(r"lm_.+_epoch\d+\.\d+_(\d+\.\d+)\.pt")


@dataclass
class Checkpoint:
    """A model and the training run it comes from.

    options: the settings of the run; model_options: the model's own. weights: name -> tensor, on the CPU.
    training: what Training.state_dict gave. val_loss: mean nats per character, None before a validation.
    """

    options: TrainingOptions
    model_options: dict[str, Any]
    vocabulary: Vocabulary
    weights: dict[str, Tensor]
    epoch: float = 0.0
    val_loss: float | None = None
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """char-rnn's file name, with the epoch and the validation loss."""
        loss = float("nan") if self.val_loss is None else self.val_loss
        return f"lm_{self.options.savefile or self.options.model}_epoch{self.epoch:.2f}_{loss:.4f}.pt"

    def save(self, path: Path) -> Path:
        """Write to ``path``, atomically. Raises UserError where the disk does not take it; an old file stays."""
        content = {
            "program": "charrnn",
            "format": FORMAT,
            "version": charrnn.__version__,
            "options": asdict(self.options),
            "model_options": self.model_options,
            "vocabulary": self.vocabulary.to_dict(),
            "weights": self.weights,
            "epoch": self.epoch,
            "val_loss": self.val_loss,
            "training": self.training,
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                torch.save(content, file)
        except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as a RuntimeError
            raise UserError(f"cannot save {path}: {_reason(error)}; checkpoints written before are untouched") from None
        return path

    @classmethod
    def load(cls, path: str | Path) -> Checkpoint:
        """Read a checkpoint, or the one with the best validation loss where ``path`` is a folder.

        Raises UserError where the file is not a whole checkpoint of charrnn. Runs no code from the file.
        """
        path = find(Path(path))
        content = _read(path)
        if not isinstance(content, dict) or content.get("program") != "charrnn":
            raise UserError(f"{path} is not a checkpoint of charrnn")
        if content.get("format") != FORMAT:
            raise UserError(
                f"{path} has the checkpoint format {content.get('format')}; this is charrnn {charrnn.__version__}, "
                f"which reads format {FORMAT}: use the version that wrote it"
            )
        try:
            return cls._from_content(content)
        except (KeyError, TypeError, ValueError, UserError) as error:
            raise UserError(f"{path} is damaged: {error}") from None

    @classmethod
    def _from_content(cls, content: dict[str, Any]) -> Checkpoint:
        known = training_options()
        options = {name: known[name].convert(value) for name, value in content["options"].items()}
        weights = content["weights"]
        if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in weights.items()):
            raise UserError("its weights are not named tensors")
        own, epoch, val_loss = content["model_options"], content["epoch"], content["val_loss"]
        if not isinstance(own, dict) or not isinstance(content["training"], dict):
            raise UserError("its settings are not tables")
        return cls(
            options=TrainingOptions(**options),
            model_options=own,
            vocabulary=Vocabulary.from_dict(content["vocabulary"]),
            weights=weights,
            epoch=float(epoch),
            val_loss=None if val_loss is None else float(val_loss),
            training=content["training"],
        )

    def build(self, **options: Any) -> nn.Module:
        """The model with its weights, on the CPU, in the precision it was trained in.

        options: settings to use in place of the saved ones; ``dropout`` and the model's own. Raises
        UserError where the weights do not fit the model.
        """
        saved = self.options
        own = self.model_options | options
        dropout = own.pop("dropout", saved.dropout)
        arguments = (saved.model, len(self.vocabulary), saved.rnn_size, saved.num_layers, dropout)
        model: nn.Module = registry.create(*arguments, **own).to(getattr(torch, saved.precision))
        try:
            model.load_state_dict(self.weights)
        except RuntimeError as error:
            detail = str(error).splitlines()[-1].strip()
            raise UserError(f"the checkpoint's weights do not fit the model {saved.model}: {detail}") from None
        return model


def find(path: Path) -> Path:
    """The file itself, or of a folder the checkpoint with the lowest validation loss.

    Where none was validated yet, the newest. Raises UserError where there is none at all.
    """
    if not path.is_dir():
        return _existing(path)
    scored = [(float(match[1]), file) for file in path.glob("*.pt") if (match := NAME.fullmatch(file.name))]
    if not scored:
        return find_newest(path)
    best = min(loss for loss, _ in scored)
    return max((file for loss, file in scored if loss == best), key=_written)


def find_newest(path: Path) -> Path:
    """The file itself, or of a folder the checkpoint that was written last. Raises UserError where there is none."""
    if not path.is_dir():
        return _existing(path)
    files = list(path.glob("lm_*.pt"))
    if not files:
        raise UserError(f"the folder {path} has no checkpoints (lm_....pt): charrnn train makes one")
    return max(files, key=_written)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"there is no checkpoint at {path}: charrnn train makes one")
    return path


def _written(file: Path) -> int:
    return file.stat().st_mtime_ns


def _read(path: Path) -> Any:
    """The file's plain content: tensors, numbers, strings, lists and dicts. Raises UserError."""
    broken = UserError(f"{path} is not a checkpoint of charrnn, or is damaged: use another, or train again")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            # torch.save stores without compression: a compressed member may hold far more than the file's size
            if any(m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size for m in members):
                raise broken
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {_reason(error)}") from None
    except Exception:  # a damaged file makes the unpickler and the zip reader raise almost anything
        raise broken from None


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error).splitlines()[0]
