"""Optimizers whose steps know about curvature."""

from __future__ import annotations

from ._adahessian import AdaHessian
from ._mfac import MFAC
from ._oasis import OASIS, SANIA
from ._sophia import SophiaG, SophiaH

__all__ = ["MFAC", "OASIS", "SANIA", "AdaHessian", "SophiaG", "SophiaH"]
