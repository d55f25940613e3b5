"""How fast charrnn is, and how near to what the machine can do: ``python -m benchmarks``."""

from charrnn.spinning import keep_short

keep_short()  # before torch is loaded, as `charrnn train` does
