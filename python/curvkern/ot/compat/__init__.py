"""The interfaces of other libraries around the solvers of :mod:`curvkern.ot`."""

from . import pot

__all__ = ["pot"]
