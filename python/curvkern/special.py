"""Logarithms and ratios of modified Bessel functions, with derivatives in order and argument.

All functions take the order ``v`` first, as SciPy does, and share these conventions:

* ``v`` and ``x`` broadcast against each other and promote as in PyTorch; integers become the
  default floating dtype. float64 and float32 are computed in their own precision (float32 by
  way of float64 where a formula is rarely used); float16 and bfloat16 are computed in float32
  and rounded once.
* NumPy arrays and plain numbers give NumPy results, with integers taken as float64.
* Derivatives in ``v`` and in ``x``, first and second, backward and forward mode, under
  ``torch.func`` and ``torch.compile``. A third derivative raises ``RuntimeError``.
* The domain is ``v >= 0`` and ``x >= 0``, infinity included. Results follow IEEE arithmetic
  and nothing is raised for a value: NaN for NaN or outside the domain, infinity at a pole.
* ``TypeError``: an argument that is no tensor, array or real number; a complex, boolean,
  sparse, nested or masked one. ``ValueError``: shapes that do not broadcast, tensors on two
  devices, a Python number beyond float64. ``MemoryError``: a result that does not fit.

Notes
-----
With R = I_{v+1} / I_v and Q = K_{v+1} / K_v, the functions :func:`iv_ratio` and
:func:`kv_ratio`, the derivatives in ``x`` are

===============  ========================
log_iv           R + v / x
log_ive          R + v / x - 1
log_kv           -Q + v / x
log_kve          -Q + v / x + 1
log_hyp0f1       R
iv_ratio         1 - R^2 - (2v + 1) R / x
kv_ratio         Q^2 - (2v + 1) Q / x - 1
===============  ========================

evaluated in forms that do not cancel. Those in ``v`` have no closed form; they are computed to
the same accuracy, not by differences.

Accuracy, in units of the eps of the dtype computed in: values within 2 eps, relative to
max(1, abs(log)) for the logarithms (log_hyp0f1 within 3); first derivatives of log_iv and
log_kv within 8 eps, relative, those of the scaled functions too except where the slope is a
small difference; those of the ratios within 80, the largest just below radius 22.5; second
derivatives in float64 within a thousand eps except next to their zeros. docs/accuracy.md has
them by region. A result does not depend on the elements that share the call.

:func:`matern` states its own accuracy.

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
