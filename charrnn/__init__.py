"""charrnn: train, sample and evaluate recurrent character-level language models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from charrnn.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from charrnn.checkpoints.checkpoint import Checkpoint
    from charrnn.data.vocabulary import Vocabulary
    from charrnn.evaluation.scoring import Evaluation
    from charrnn.training.loop import Record
    from charrnn.training.train import Trained

__version__ = "0.1.0"
__all__ = ["UserError", "__version__", "evaluate", "load", "sample", "train"]


def train(
    text_or_folder: str | Path | Sequence[str | Path] | None = None,
    model: str | None = None,
    *,
    config: str | Path | None = None,
    resume: str | Path | None = None,
    on_record: Callable[[Record], object] | None = None,
    progress: bool = True,
    **settings: Any,
) -> Trained:
    """Train a model on a text, as ``charrnn train`` does, and save checkpoints.

    Every flag of the command, and every flag of the model, is a keyword argument here, without its dash and with the
    same default: ``rnn_size=256``, ``checkpoint_dir="verse"``. ::

        trained = charrnn.train("verse.txt", "gru", max_epochs=5)
        print("".join(charrnn.sample(trained.best, length=200)))

    Returns a ``Trained`` with ``best`` and ``newest`` (paths of checkpoints), ``val_loss`` (of the best, in nats per
    token), ``records`` (one per iteration of this call, with ``iteration``, ``loss``, ``val_loss`` and more) and
    ``interrupted``. On Ctrl-C, or "interrupt" in a notebook, the call finishes the iteration, saves a checkpoint and
    returns; a second Ctrl-C raises KeyboardInterrupt at once. At the end, the number of threads, the kernels, the
    precision and torch's random state are restored.

    Args:
        text_or_folder: a folder, as for ``data_dir``; a text file or a list of them, as for ``input``; None = the text
            that ``config`` or ``resume`` gives, or else data/tinyshakespeare
        model: a built-in model, or the NAME of a file models/NAME.py; None = the model that ``config``, ``resume`` or
            ``init_from`` gives, or else lstm
        config: TOML file with any of these settings, or the name of a recipe; arguments override it
        resume: continue exactly the run of this checkpoint, or of the newest checkpoint in this folder
        on_record: called with the record of each iteration, after the iteration's checkpoint, if any, is saved; an
            exception in it ends the run without saving
        progress: show the progress of the run: live in a notebook or on a terminal, as plain lines elsewhere
        settings: any other setting

    Raises UserError if a setting is unknown or impossible, if a text or a checkpoint cannot be used, or if the loss
    becomes NaN or explodes.
    """
    from charrnn.training.train import train

    if not progress:
        return train(text_or_folder, {"model": model, **settings}, config, resume, on_record)
    from charrnn.cli.display import report, shown

    return train(text_or_folder, {"model": model, **settings}, config, resume, on_record, shown, report)


def load(path: str | Path, **options: Any) -> tuple[nn.Module, Vocabulary]:
    """Load the model of a checkpoint and its vocabulary. The model is on the CPU and in evaluation mode.

    Args:
        path: a checkpoint, or a folder, which means its checkpoint with the lowest validation loss
        options: replace saved settings of the model that do not change its weights, such as ``dropout``

    Raises UserError if the file is not a complete checkpoint of charrnn. Runs no code from the checkpoint, only the
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
    """Write text with a trained model, yielding each piece as soon as it is generated.

    The pieces make up the text after the prime text. The same settings and seed always give the same text. ::

        for piece in charrnn.sample("cv", "ROMEO:", length=200):
            print(piece, end="")

    Args:
        checkpoint: a checkpoint, loaded or not, or a folder, which means its checkpoint with the lowest validation loss
        primetext: text to start from; without one, the first token is drawn uniformly
        length: characters or words to write
        temperature: below 1: safer text; above 1: wilder text
        sample: True = draw each token at random; False = take the most probable
        top_k: draw from this many of the most probable tokens; 0 = all
        top_p: draw from the most probable tokens that together have this share of the probability
        beam: search for the most probable text with this many candidates, without random draws; 0 = off
        seed: seed of the random draws
        stop: end the text after writing this
        unknown: if the prime text has unknown characters or words: "error" = raise UserError, "skip" = skip them
        precision: "float64", or "float32", which is faster but may give a different text on a different machine
        gpuid: number of the GPU; -1 = CPU

    Raises UserError, before anything is yielded, if a setting is impossible or the checkpoint cannot be used.
    """
    settings = dict(locals())  # every other parameter has the name of a setting of the command
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

    Returns an ``Evaluation`` with ``loss`` (mean, in nats per token), ``bits_per_character`` (None for a
    word-level model), ``perplexity`` (per token), ``tokens`` (how many were predicted), ``measures`` and ``dynamic``.

    Args:
        checkpoint: a checkpoint, loaded or not, or a folder, which means its checkpoint with the lowest validation loss
        text: the text to score; None = a split of the data
        split: split of the data to score
        data_dir: folder with the text; None = as in training
        batch_size: rows of text to read at once; 1 = read a split file as one stream; None = as in training
        unk: for a word-level model, the word that stands for unknown words; "" = as in training
        ensemble: average the probabilities with those of these checkpoints
        mc_samples: average this many passes with dropout on (Monte Carlo); 0 = off
        seed: seed of the Monte Carlo samples
        dynamic: also evaluate dynamically: learn from the text as it is scored, in steps of the run's seq_length, at
            this learning rate; the result is in ``dynamic``
        gpuid: number of the GPU; -1 = CPU

    Raises UserError if a setting is impossible, the checkpoint cannot be used, or the text has unknown tokens.
    """
    settings = dict(locals())  # every other parameter has the name of a setting of the command
    from charrnn.evaluation.scoring import evaluation

    sources = [settings.pop("checkpoint"), *settings.pop("ensemble")]
    settings["data_dir"] = data_dir and str(data_dir)
    return evaluation(sources, settings.pop("text"), settings)
