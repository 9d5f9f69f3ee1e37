"""Convolutions with sparse weights: functions, pruning, and whole networks.

Weights are sparse, activations dense. The networks are those that consist of 1 x 1 and
depthwise convolutions nearly alone: MobileNet, EfficientNet.
"""

from . import models
from ._functions import conv2d_first, depthwise_conv2d, sddmm, sparse_conv1x1
from ._pruning import CubicSchedule, GradualPruning, magnitude_prune_
from ._report import Layer, Record, Report, report
from ._sparsify import sparsify
from ._weights import PackedWeight

__all__ = [
    "CubicSchedule",
    "GradualPruning",
    "Layer",
    "PackedWeight",
    "Record",
    "Report",
    "conv2d_first",
    "depthwise_conv2d",
    "magnitude_prune_",
    "models",
    "report",
    "sddmm",
    "sparse_conv1x1",
    "sparsify",
]
