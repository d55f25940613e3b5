"""The kernels compiled by numba: the same equations, with the rows of a minibatch divided among threads ([fast])."""
