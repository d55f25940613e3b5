"""Activation functions in a form that compiles to vector instructions."""

from __future__ import annotations

from collections.abc import Callable
from math import factorial, log
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic, overload

from charrnn.kernels.compiled import code_cache

# error_model: division by zero gives infinity, as in numpy, since checking for it would rule out vector instructions.
# fastmath: a * b + c may round only once. The other options of fastmath are unsafe: NaN must stay NaN, or a diverging
# run would go unnoticed.
OPTIONS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract"}}

one, two = np.float32(1), np.float32(2)  # combined with a float64, they give a float64


def compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function when it is first called with given types, or load what an earlier process compiled."""
    with code_cache.in_use() as keep:
        compiled: Callable[..., Any] = numba.njit(nogil=True, cache=keep, **OPTIONS)(function)
    return compiled


@intrinsic  # type: ignore[untyped-decorator]
def from_bits(context: Any, bits: Any) -> Any:
    """Return the floating-point number that has the same bits as this integer."""
    floating = {types.int32: types.float32, types.int64: types.float64}[bits]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(floating))

    return floating(bits), generate


def exp(x: Any) -> Any:
    """Return e to the power of x (float32 or float64), to within two epsilons. x is clipped where sigmoid is 0 or 1."""
    raise NotImplementedError


# for each type: its numpy type, the integer type of the same size, the bits of the mantissa, the bias of the exponent,
# the smallest and largest x, the degree of the series, and the binary digits in the first part of ln 2
FORMATS: dict[Any, tuple[Any, ...]] = {
    types.float32: (np.float32, np.int32, 23, 127, -87, 88, 7, 12),
    types.float64: (np.float64, np.int64, 52, 1023, -708, 709, 13, 32),
}


@overload(exp, jit_options=OPTIONS)  # type: ignore[untyped-decorator]
def _exp(x: Any) -> Callable[[Any], Any]:
    # x = n ln 2 + r: n goes into the exponent, and r, in +-(ln 2) / 2, through a Taylor series
    float_, int_, mantissa, bias, lowest, highest, degree, digits = FORMATS[x]
    # the first part of ln 2 has so few binary digits that its products with n are exact
    ln2 = float_(round(log(2) * 2**digits) / 2**digits)
    ln2_rest = float_(log(2) - float(ln2))
    per_ln2, half = float_(1 / log(2)), float_(0.5)
    low, high = float_(lowest), float_(highest)
    first, *others = (float_(1 / factorial(k)) for k in range(degree, -1, -1))
    coefficients = tuple(others)

    def implementation(x: Any) -> Any:
        if x < low:
            x = low
        if x > high:
            x = high
        n = np.floor((x if x == x else half) * per_ln2 + half)  # NaN cannot be converted to an integer
        r = x - n * ln2 - n * ln2_rest
        series = first
        for coefficient in coefficients:
            series = series * r + coefficient
        return series * from_bits(int_((int_(n) + bias) << mantissa))

    return implementation


@compile
def sigmoid(a: Any) -> Any:
    return one / (one + exp(-a))


@compile
def tanh(a: Any) -> Any:
    return one - two / (one + exp(a + a))
