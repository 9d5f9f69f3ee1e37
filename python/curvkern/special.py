"""Logarithms and ratios of modified Bessel functions, with derivatives in order and argument.

All functions take the order ``v`` first, as SciPy does, and share these conventions:

* ``v`` and ``x`` broadcast against each other and promote as in PyTorch; integers become the
  default floating dtype. float64 and float32 are computed in their own precision; float16 and
  bfloat16 are computed in float32 and rounded once.
* NumPy arrays and plain numbers give NumPy results, with integers taken as float64.
* Derivatives in ``v`` and in ``x``, first and second, backward and forward mode, under
  ``torch.func`` and ``torch.compile``. A third derivative raises ``RuntimeError``.
* The domain is ``v >= 0`` and ``x >= 0``, infinity included. Results follow IEEE arithmetic
  and nothing is raised for a value: NaN for NaN or outside the domain, infinity at a pole.
* ``TypeError``: an argument that is no tensor, array or real number; a complex, boolean or
  sparse one. ``ValueError``: shapes that do not broadcast, tensors on two devices.

References
----------
A. Plesner, H. H. B. Sørensen, S. Hauberg, "Accurate Computation of the Logarithm of Modified
Bessel Functions on GPUs", ICS 2024, arXiv:2409.08729.
"""

from __future__ import annotations

from ._bessel import iv_ratio, kv_ratio, log_hyp0f1, log_iv, log_ive, log_kv, log_kve
from ._matern import matern

__all__ = [
    "iv_ratio",
    "kv_ratio",
    "log_hyp0f1",
    "log_iv",
    "log_ive",
    "log_kv",
    "log_kve",
    "matern",
]
