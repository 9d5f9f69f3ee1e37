"""Laws on the unit sphere: von Mises-Fisher and the uniform law, with their divergences.

Functions of the concentration are evaluated in float64 whatever the dtype of the tensors: they
live on the batch shape, not on the data, and in float32 the entropies of laws in 32768
dimensions would differ by noise. Whatever touches data runs in its own dtype.
"""

from __future__ import annotations

from . import _divergence  # registers the KL divergences
from ._fitting import fit_concentration
from ._uniform import HypersphericalUniform
from ._von_mises_fisher import VonMisesFisher

__all__ = ["HypersphericalUniform", "VonMisesFisher", "fit_concentration"]

del _divergence
