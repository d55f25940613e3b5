"""Measure how fast charrnn is, and how close to the limits of the machine: ``python -m benchmarks``."""
