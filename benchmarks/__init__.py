"""How fast charrnn is, and how close to what the machine can do: ``python -m benchmarks``."""
