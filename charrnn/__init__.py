"""charrnn: train, sample and evaluate recurrent character-level language models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from charrnn.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from charrnn.checkpoints.checkpoint import Checkpoint
    from charrnn.data.vocabulary import Vocabulary
    from charrnn.evaluation.scoring import Evaluation

__version__ = "0.1.0"
__all__ = ["UserError", "__version__", "evaluate", "load", "sample"]


def load(path: str | Path, **options: Any) -> tuple[nn.Module, Vocabulary]:
    """Load the model of a checkpoint, on the CPU and in evaluation mode, and its vocabulary.

    Args:
        path: a checkpoint, or a folder of which the checkpoint with the lowest validation loss is used
        options: settings of the model that do not change its weights, such as ``dropout``, in place of the saved ones

    Raises UserError if the file is not a whole checkpoint of charrnn. Runs no code from the checkpoint, only the
    model's own file.
    """
    from charrnn.checkpoints.checkpoint import Checkpoint

    checkpoint = Checkpoint.load(path)
    return checkpoint.build(checkpoint.model_file(), **options).eval(), checkpoint.vocabulary


def sample(
    checkpoint: str | Path | Checkpoint,
    primetext: str = "",
    length: int = 2000,
    *,
    temperature: float = 1.0,
    sample: bool = True,
    top_k: int = 0,
    top_p: float = 1.0,
    beam: int = 0,
    seed: int = 123,
    stop: str = "",
    unknown: Literal["error", "skip"] = "error",
    precision: Literal["float64", "float32"] = "float64",
    gpuid: int = 0,
) -> Iterator[str]:
    """Write text with a trained model, yielding each piece as soon as it is made.

    The pieces are what follows the prime text; the same settings and seed always write the same text. ::

        for piece in charrnn.sample("cv", "ROMEO:", length=200):
            print(piece, end="")

    Args:
        checkpoint: a checkpoint, loaded or not, or a folder: its checkpoint with the lowest validation loss is used
        primetext: text to start from; without one, the first token is drawn uniformly
        length: characters or words to write
        temperature: below 1: safer text; above 1: wilder text
        sample: True = draw each token at random; False = take the most probable
        top_k: draw among this many of the most probable tokens; 0 = all
        top_p: draw among the most probable tokens that together have this share of the probability
        beam: search for the most probable text with this many candidates, drawing nothing; 0 = off
        seed: seed of the random draws
        stop: end the text once it has written this
        unknown: if the prime text has unknown characters or words: "error" = raise UserError, "skip" = skip them
        precision: "float64", or "float32", which is faster but may write another text on another machine
        gpuid: number of the GPU; -1 = CPU

    Raises UserError, before anything is yielded, if a setting is impossible or the checkpoint cannot be used.
    """
    settings = dict(locals())  # every other parameter is a setting of the command, under its name
    from charrnn.sampling.generate import continuation

    return continuation(settings.pop("checkpoint"), settings.pop("primetext"), settings)


def evaluate(
    checkpoint: str | Path | Checkpoint,
    text: str | None = None,
    *,
    split: Literal["train", "val", "test"] = "val",
    data_dir: str | Path | None = None,
    batch_size: int | None = None,
    unk: str = "",
    ensemble: Sequence[str | Path | Checkpoint] = (),
    mc_samples: int = 0,
    seed: int = 123,
    dynamic: float | None = None,
    gpuid: int = 0,
) -> Evaluation:
    """Score a text with a trained model.

    Returns an ``Evaluation`` with ``loss`` (mean, in nats per token), ``bits_per_character`` (None for a model of
    words), ``perplexity`` (per token), ``tokens`` (how many were predicted), ``measures`` and ``dynamic``.

    Args:
        checkpoint: a checkpoint, loaded or not, or a folder: its checkpoint with the lowest validation loss is used
        text: the text to score; None = a split of the data
        split: split of the data to score
        data_dir: folder of the data; None = as in training
        batch_size: rows read side by side; 1 = a split file as one stream; None = as in training
        unk: word that stands for unknown words, for a model of words; "" = as in training
        ensemble: average the probabilities with those of these checkpoints
        mc_samples: average this many passes with dropout on (Monte Carlo); 0 = off
        seed: seed of the Monte Carlo samples
        dynamic: evaluate dynamically too: after each seq_length of training, learn from the text just scored, at this
            learning rate; the result is in ``dynamic``
        gpuid: number of the GPU; -1 = CPU

    Raises UserError if a setting is impossible, the checkpoint cannot be used, or the text has unknown tokens.
    """
    settings = dict(locals())  # every other parameter is a setting of the command, under its name
    from charrnn.evaluation.scoring import evaluation

    sources = [settings.pop("checkpoint"), *settings.pop("ensemble")]
    settings["data_dir"] = data_dir and str(data_dir)
    return evaluation(sources, settings.pop("text"), settings)
