"""Generating text from a checkpoint, for ``charrnn sample`` and ``charrnn.sample``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.compute import Report, choose_device, silent
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import listed
from charrnn.sampling.beam import beam_search
from charrnn.sampling.choice import Choice
from charrnn.sampling.output import whole_characters
from charrnn.sampling.sampler import Sampler, Written
from charrnn.settings.option import changed, checked, exclude
from charrnn.settings.sampling import EXCLUSIVE, SamplingOptions


def continuation(checkpoint: str | Path | Checkpoint, primetext: str, settings: Mapping[str, Any]) -> Iterator[str]:
    """Continue the prime text, yielding each piece of text as soon as it is generated.

    ``settings`` are those of SamplingOptions, by name. Raises UserError before anything is yielded.
    """
    options = checked(SamplingOptions, settings)
    exclude(EXCLUSIVE, changed(options))
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint.load(checkpoint)
    sampler = make_sampler(checkpoint, options, silent)
    prime = prime_text(primetext, checkpoint.vocabulary, options, silent)
    return whole_characters(token.text for token in generate(sampler, prime, options))


def make_sampler(checkpoint: Checkpoint, options: SamplingOptions, report: Report) -> Sampler:
    """Return a Sampler for the checkpoint's model, on the device that the settings choose. Raises UserError."""
    device = choose_device(options.gpuid, report, checkpoint.options.precision)
    model = checkpoint.build(checkpoint.model_file())
    return Sampler(model.to(device), checkpoint.vocabulary, getattr(torch, options.precision))


def generate(sampler: Sampler, prime: str, options: SamplingOptions, scored: bool = False) -> Iterator[Written]:
    """Continue the prime text by beam search, or in ``num_samples`` streams with consecutive seeds.

    Raises UserError for unknown tokens and for a temperature that is not positive, before anything is yielded.
    """
    choice = Choice.of(options)
    if options.beam:
        return beam_search(sampler, prime, options.length, options.beam, options.stop)
    return sampler.write(prime, options.length, choice, seeds(options), options.stop, scored)


def seeds(options: SamplingOptions) -> list[int]:
    """Return the seed of each text."""
    return [(options.seed + k) % 2**63 for k in range(options.num_samples)]


def prime_text(text: str, vocabulary: Vocabulary, options: SamplingOptions, report: Report) -> str:
    """Return the prime text in the form that the model writes, without unknown tokens if the options skip them."""
    if options.unknown == "skip":
        text = without_unknown(text, vocabulary, report)
    return vocabulary.normalize(text)


def without_unknown(text: str, vocabulary: Vocabulary, report: Report) -> str:
    """Return the text without its unknown tokens, and report them."""
    codes = vocabulary.split(text)
    unknown = vocabulary.unknown_codes(codes)
    if not unknown:
        return text
    report(f"skipped in the prime text, since the model does not know them: {listed(map(vocabulary.name, unknown))}")
    skipped = set(unknown)
    return vocabulary.decode(vocabulary.id_of(code) for code in codes if code not in skipped)
