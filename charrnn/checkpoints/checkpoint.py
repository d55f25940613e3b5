"""Checkpoints: either written completely or not at all, and read without running code from the file."""

from __future__ import annotations

import platform
import secrets
import time
from dataclasses import asdict, dataclass, field
from io import BytesIO
from math import inf, nan
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

import charrnn
from charrnn import registry
from charrnn.checkpoints import archive
from charrnn.checkpoints.folder import find_best, validated_name
from charrnn.compute import same_random_numbers, weights_dtype
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError
from charrnn.files import UNWRITABLE, replacing, temporary
from charrnn.registry import ModelFile
from charrnn.settings.training import TrainingOptions, training_options

FORMAT = 1

# types of a model's own options
PLAIN = (bool, int, float, str)


def software() -> dict[str, str]:
    """Return the versions of charrnn, the libraries that it computes with, and the system."""
    versions = {"charrnn": charrnn.__version__, "torch": str(torch.__version__), "numpy": np.__version__}
    return versions | {"python": platform.python_version(), "system": platform.platform()}


def new_run_id() -> str:
    """Return a random identity for a new run."""
    return secrets.token_hex(16)


@dataclass
class Checkpoint:
    """A model and the training run that it comes from."""

    # the settings of the run, and the model's own
    options: TrainingOptions
    model_options: dict[str, Any]
    vocabulary: Vocabulary
    # by name, on the CPU
    weights: dict[str, Tensor]
    epoch: float = 0.0
    # mean nats per token; None if the checkpoint was not validated
    val_loss: float | None = None
    # everything that is needed to resume; empty if that is not possible
    training: dict[str, Any] = field(default_factory=dict)
    # versions of the software that wrote it
    software: dict[str, str] = field(default_factory=software)
    # identity of the run, kept on resuming: tells its checkpoints from those of other runs in the same folder
    run_id: str = field(default_factory=new_run_id)

    @property
    def iteration(self) -> int:
        """Iterations trained; 0 if it was not recorded, as in imported checkpoints."""
        iteration: int = self.training.get("iteration", 0)
        return iteration

    @property
    def name(self) -> str:
        """char-rnn's file name, with the epoch and the validation loss."""
        return validated_name(self.options.run_name, self.epoch, nan if self.val_loss is None else self.val_loss)

    def save(self, path: Path) -> Path:
        """Write to ``path``, completely or not at all. Raises UserError if it cannot be written."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                _write(self._content(), file)
        except (OSError, RuntimeError) as error:
            raise UserError(f"cannot save {path}: {_reason(error)}; earlier checkpoints are unchanged") from None
        return path

    def read_back(self) -> Checkpoint:
        """Return the checkpoint as it would be after saving and loading it, without writing a file.

        Raises UserError if it can be saved but not loaded.
        """
        file = BytesIO()
        _write(self._content(), file)
        try:
            return self._from_content(archive.read(file))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(str(error)) from None

    def _content(self) -> dict[str, Any]:
        """Return what is written to the file."""
        return {
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
            "software": self.software,
            "run_id": self.run_id,
            # nanoseconds since 1970: tells which run saved last, even in a copied folder
            "written": time.time_ns(),
        }

    @classmethod
    def load(cls, path: str | Path) -> Checkpoint:
        """Read a checkpoint; from a folder, the one with the best validation loss.

        Raises UserError if the file is not a complete checkpoint of charrnn. Does not run code from the file, and takes
        memory at most in proportion to its size.
        """
        path = find_best(Path(path))
        content = _read(path)
        if not isinstance(content, dict) or content.get("program") != "charrnn":
            raise UserError(f"{path} is not a checkpoint of charrnn")
        if content.get("format") != FORMAT:
            theirs = f"{content.get('format')!r:.20}"
            raise UserError(
                f"{path} has the checkpoint format {theirs}, but charrnn {charrnn.__version__} reads format {FORMAT}: "
                "use the version that wrote it"
            )
        try:
            return cls._from_content(content)
        except (KeyError, TypeError, ValueError, UserError) as error:
            raise UserError(f"{path} is damaged: {error}") from None

    @classmethod
    def _from_content(cls, content: dict[str, Any]) -> Checkpoint:
        known = training_options()
        for part in ("options", "model_options", "weights", "training"):
            if not isinstance(content[part], dict) or not all(isinstance(name, str) for name in content[part]):
                raise UserError(f"its {part} are not a table with names")
        if unknown := content["options"].keys() - known.keys():
            raise UserError(f"this version does not know its settings {', '.join(sorted(unknown))}")
        if not all(isinstance(tensor, Tensor) for tensor in content["weights"].values()):
            raise UserError("its weights are not tensors")
        if not all(value is None or type(value) in PLAIN for value in content["model_options"].values()):
            raise UserError("its model's options are not plain values")
        if taken := content["model_options"].keys() & known.keys() - {"dropout"}:
            raise UserError(f"its model's options have the names of settings: {', '.join(sorted(taken))}")
        decay = content["options"].get("learning_rate_decay")
        if type(decay) is float and decay > 1:  # earlier versions treated it as 1
            content["options"]["learning_rate_decay"] = 1.0
        epoch, val_loss = content["epoch"], content["val_loss"]
        if type(epoch) is not float or not 0 <= epoch < inf:
            raise UserError(f"its epoch is {epoch}")
        if val_loss is not None and type(val_loss) is not float:
            raise UserError("its validation loss is not a number")
        versions = content.get("software", {})
        if not isinstance(versions, dict) or not all(type(word) is str for pair in versions.items() for word in pair):
            raise UserError("its software versions are not strings")
        run_id = content.get("run_id", "")
        if not isinstance(run_id, str):
            raise UserError("the identity of its run is not a string")
        iteration = content["training"].get("iteration", 0)
        if type(iteration) is not int or not 0 <= iteration < 2**53:
            raise UserError("its iteration is not a whole number")
        return cls(
            options=TrainingOptions(**{name: known[name].convert(value) for name, value in content["options"].items()}),
            model_options=content["model_options"],
            vocabulary=Vocabulary.from_dict(content["vocabulary"]),
            weights=content["weights"],
            epoch=epoch,
            val_loss=val_loss,
            training=content["training"],
            software=versions,
            run_id=run_id,
        )

    def model_file(self) -> ModelFile:
        """Find the model's file. Raises UserError if there is none."""
        return registry.find(self.options.model)

    def build(self, model_file: ModelFile, **options: Any) -> nn.Module:
        """Return the model with its weights, on the CPU, in the precision it was trained in.

        ``options`` replace saved settings: ``dropout`` and the model's own. Raises UserError if the weights do
        not fit the model, before taking memory for it. Changes no global random generator.
        """
        with same_random_numbers(torch.device("cpu")):  # building draws initial weights, which the saved ones replace
            self.check(model_file, **options)
            model = model_file.create(*self._sizes(options), **self._own(options))
        model.to(weights_dtype(self.options.precision))
        self.restore(model)
        return model

    def check(self, model_file: ModelFile, **options: Any) -> None:
        """Raise UserError if the weights do not fit the model that the settings describe.

        Takes no memory, since it builds only the model's skeleton. A model without one is checked by ``restore``.
        """
        skeleton = model_file.skeleton(*self._sizes(options), **self._own(options))
        if skeleton is None:
            return
        skeleton.to(weights_dtype(self.options.precision))
        self._load_into(skeleton, {name: tensor.to("meta") for name, tensor in self.weights.items()})
        for name, tensor in skeleton.state_dict().items():
            if self.weights[name].dtype != tensor.dtype:
                raise misfit(self.options.model, f"{name} is {self.weights[name].dtype}, not {tensor.dtype}")
        # names and shapes may fit even if many weights share the bytes of one
        in_file = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in self.weights.values()}
        if sum(p.numel() * p.element_size() for p in skeleton.parameters()) > sum(in_file.values()):
            raise misfit(self.options.model, "the file has fewer numbers than the model")

    def restore(self, model: nn.Module) -> None:
        """Copy the weights into a model. Raises UserError if they do not fit."""
        self._load_into(model, self.weights)

    def _load_into(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise misfit(self.options.model, str(error).splitlines()[-1].strip()) from None

    def _sizes(self, options: dict[str, Any]) -> tuple[int, int, int, float]:
        saved = self.options
        return len(self.vocabulary), saved.rnn_size, saved.num_layers, options.get("dropout", saved.dropout)

    def _own(self, options: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in (self.model_options | options).items() if name != "dropout"}


def try_saving(path: Path) -> None:
    """Create a file next to ``path``, as each save does, and remove it.

    Raises UserError if that fails for a lasting reason. A full disk does not count as one.
    """
    try:
        with temporary(path):
            _write({}, BytesIO())  # torch's writer loads modules, which are files too
    except OSError as error:
        if error.errno not in UNWRITABLE:  # after these, the next save may succeed
            raise UserError(f"cannot save to {path.parent}: {_reason(error)}; name another -checkpoint_dir") from None


def misfit(model: str, detail: str) -> UserError:
    return UserError(f"the checkpoint's weights do not fit the model {model}: {detail}")


def _read(path: Path) -> Any:
    """Return the file's content: tensors and plain values. Raises UserError."""
    try:
        return archive.read(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {_reason(error)}") from None
    except archive.Malformed as error:
        raise UserError(
            f"{path} is not a checkpoint of charrnn, or is damaged ({_reason(error)}): use another one, or train again"
        ) from None


def _write(content: dict[str, Any], file: IO[bytes]) -> None:
    """Write with torch.save, which hides a full disk or Ctrl-C behind a RuntimeError; raise the original error."""
    try:
        torch.save(content, file)
    except RuntimeError as error:
        if isinstance(error.__context__, (OSError, KeyboardInterrupt)):
            raise error.__context__ from None
        raise


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or next(iter(str(error).splitlines()), "unreadable")
