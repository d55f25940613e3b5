"""The inner loops of the models, in torch, numpy and numba."""
