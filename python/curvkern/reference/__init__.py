"""Plain-PyTorch twins of the compiled operations.

They are the oracle of the tests, the rival in the benchmarks, and what runs where the
environment says ``CURVKERN_BACKEND=reference``. Ordinary autograd differentiates them, any
number of times.
"""

from . import bessel, hutchinson, matern, mfac, philox, sinkhorn, sparsemax

__all__ = ["bessel", "hutchinson", "matern", "mfac", "philox", "sinkhorn", "sparsemax"]
