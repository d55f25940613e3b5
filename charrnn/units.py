"""What a loss means to a reader: bits per character, or perplexity per word."""

from __future__ import annotations

from math import exp, inf, log

from charrnn.vocabulary import Level


def perplexity(loss: float) -> float:
    """Of a loss in nats."""
    return exp(loss) if loss < 700 else inf


def bits(loss: float) -> float:
    """A loss in nats, in bits."""
    return loss / log(2)


def described(loss: float, level: Level) -> str:
    """The figure in which losses at this level are compared, from a loss in nats per token."""
    return f"perplexity {perplexity(loss):.2f} per word" if level == "word" else f"{bits(loss):.3f} bits per character"
