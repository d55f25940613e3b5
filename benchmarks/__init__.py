"""How fast charrnn is, measured beside what it competes with: ``python -m benchmarks``."""
