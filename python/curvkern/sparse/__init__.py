"""Convolutions with sparse weights: functions, pruning, and whole networks.

Weights are sparse, activations dense. The networks are those that consist of 1 x 1 and depthwise
convolutions nearly alone: MobileNet, EfficientNet.
"""

from ._functions import conv2d_first, depthwise_conv2d, sddmm, sparse_conv1x1
from ._weights import PackedWeight

__all__ = [
    "PackedWeight",
    "conv2d_first",
    "depthwise_conv2d",
    "sddmm",
    "sparse_conv1x1",
]
