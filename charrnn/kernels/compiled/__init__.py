"""The kernels as numba compiles them: the same equations, with a part of the minibatch's rows to each thread.

A thread takes its rows through all time steps without waiting for another one; the parts meet at the gradients of the
weights. What is not a product is one pass over a row of numbers in the cache. Needs the extra ``[fast]``.
"""
