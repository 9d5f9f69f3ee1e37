"""Optimizers whose steps know about curvature."""

from __future__ import annotations

from ._adahessian import AdaHessian
from ._mfac import MFAC

__all__ = ["MFAC", "AdaHessian"]
