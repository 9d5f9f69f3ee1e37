r"""Inverse Fisher matrices of gradients, and what is built on them.

.. math::
    F = \lambda I + \frac{1}{n} \sum_i g_i g_i^\top

References
----------
.. [1] E. Frantar, E. Kurtic, D. Alistarh, "M-FAC: Efficient Matrix-Free Approximations of
   Second-Order Information", NeurIPS 2021, arXiv:2107.03356.
"""

from __future__ import annotations

from ._hypergradient import hypergradient
from ._influence import influence
from ._pruning import obs_prune
from ._static import StaticFisher
from ._window import SlidingWindowFisher

__all__ = ["SlidingWindowFisher", "StaticFisher", "hypergradient", "influence", "obs_prune"]
