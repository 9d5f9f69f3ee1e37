"""Modules of convolutions with sparse and depthwise weights."""

from .. import sparse as _sparse  # noqa: F401  (first: it imports the modules here)
from ._depthwise import DepthwiseConv2d, FirstConv2d
from ._sparse_weight import SparseWeightConv2d

__all__ = ["DepthwiseConv2d", "FirstConv2d", "SparseWeightConv2d"]
