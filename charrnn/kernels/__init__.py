"""Hot loops that a model needs, each beside a plain version of the same numbers. They import torch and numpy alone."""
