"""The kernels compiled by numba (extra [fast]): the same equations, with a minibatch's rows divided among threads."""
