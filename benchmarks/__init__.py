"""How fast charrnn is, and how near to what the machine can do: ``python -m benchmarks``."""
