"""Plain-PyTorch twins of the compiled operations.

They are the oracle of the tests, the rival in the benchmarks, and what runs where the
environment says ``CURVKERN_BACKEND=reference``. Ordinary autograd differentiates them, any
number of times.
"""

from . import (
    adahessian,
    bessel,
    hutchinson,
    matern,
    mfac,
    philox,
    sinkhorn,
    sparseconv,
    sparsemax,
)

__all__ = [
    "adahessian",
    "bessel",
    "hutchinson",
    "matern",
    "mfac",
    "philox",
    "sinkhorn",
    "sparseconv",
    "sparsemax",
]
