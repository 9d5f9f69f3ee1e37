r"""Curvature of a loss: Hessian products, diagonal, trace, spectrum; the Fisher diagonal.

What is estimated comes with an estimate of its variance where one is known.

References
----------
.. [1] Z. Yao, A. Gholami, K. Keutzer, M. W. Mahoney, "PyHessian: Neural Networks Through the
   Lens of the Hessian", IEEE BigData 2020, arXiv:1912.07145.
.. [2] E. N. Epperly, J. A. Tropp, R. J. Webber, "XTrace: Making the Most of Every Sample in
   Stochastic Trace Estimation", SIAM J. Matrix Anal. Appl. 45 (2024), arXiv:2301.07825.
"""

from __future__ import annotations

from ._diagonal import hessian_diagonal
from ._fisher import fish_mask, fisher_diagonal, merge_fisher, synaptic_dampening_
from ._hvp import hvp
from ._lanczos import Eigenpairs, SpectralDensity, spectral_density, top_eigenpairs
from ._trace import hessian_trace

__all__ = [
    "Eigenpairs",
    "SpectralDensity",
    "fish_mask",
    "fisher_diagonal",
    "hessian_diagonal",
    "hessian_trace",
    "hvp",
    "merge_fisher",
    "spectral_density",
    "synaptic_dampening_",
    "top_eigenpairs",
]
