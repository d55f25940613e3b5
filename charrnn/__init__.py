"""charrnn: train, sample and evaluate recurrent character-level language models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from charrnn.data.vocabulary import Vocabulary

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: str | Path, **options: Any) -> tuple[nn.Module, Vocabulary]:
    """The model of a checkpoint, on the CPU and in evaluation mode, and its vocabulary.

    options: settings of the model that leave its weights alone, such as ``dropout``, in place of the saved
    ones. Raises charrnn.errors.UserError where the file is not a whole checkpoint of charrnn. No code from
    the file is run; the model's own file is.
    """
    from charrnn.checkpoints.checkpoint import Checkpoint

    checkpoint = Checkpoint.load(path)
    return checkpoint.build(checkpoint.model_file(), **options).eval(), checkpoint.vocabulary
