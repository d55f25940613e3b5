"""Hot loops that models share, in torch, numpy and numba."""
