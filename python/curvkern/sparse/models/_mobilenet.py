"""MobileNet, versions 1 and 2."""

from __future__ import annotations

from torch import Tensor, nn

from ._blocks import Classifier, block, checked, rounded

#: Output channels and stride of the 13 pairs of a depthwise and a 1 x 1 convolution.
V1 = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *[(512, 1)] * 5,
    *((1024, 2), (1024, 1)),
)
#: Expansion, output channels, repetitions, stride of the first.
V2 = (
    *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)


class MobileNetV1(Classifier):
    """Pairs of depthwise and 1 x 1 convolutions; see :func:`mobilenet_v1`."""

    def __init__(self, width: float, num_classes: int) -> None:
        channels = rounded(32 * width)
        layers = block(3, channels, 3, 2)
        for out, stride in V1:
            following = rounded(out * width)
            layers += block(channels, channels, 3, stride, channels)
            layers += block(channels, following)
            channels = following
        super().__init__(layers, channels, num_classes)


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, projection; added to the input where sizes allow."""

    def __init__(self, channels: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        layers = block(channels, inner) if expansion != 1 else []
        layers += block(inner, inner, 3, stride, inner)
        layers += block(inner, out, activation=None)
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        """(B, out, H', W')"""
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class MobileNetV2(Classifier):
    """Inverted residuals; see :func:`mobilenet_v2`."""

    def __init__(self, width: float, num_classes: int) -> None:
        channels = rounded(32 * width)
        layers = block(3, channels, 3, 2)
        for expansion, out, count, stride in V2:
            for i in range(count):
                following = rounded(out * width)
                step = stride if i == 0 else 1
                layers.append(InvertedResidual(channels, following, step, expansion))
                channels = following
        last = rounded(1280 * max(1.0, width))
        layers += block(channels, last)
        super().__init__(layers, last, num_classes, 0.2)


def mobilenet_v1(width: float = 1.0, num_classes: int = 1000) -> MobileNetV1:
    """MobileNet, version 1 [1]_, with random weights.

    Parameters
    ----------
    width
        All numbers of channels are multiplied by it.
    num_classes
        The length of the result.

    Returns
    -------
    MobileNetV1
        A module that takes images (B, 3, H, W).

    Raises
    ------
    TypeError, ValueError
        An argument of a wrong kind, or not positive.

    References
    ----------
    .. [1] A. Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile
       Vision Applications", arXiv 1704.04861, 2017, table 1.

    Examples
    --------
    >>> from curvkern import sparse
    >>> sum(p.numel() for p in sparse.models.mobilenet_v1().parameters())
    4231976
    """
    return MobileNetV1(*checked("mobilenet_v1", width, num_classes))


def mobilenet_v2(width: float = 1.0, num_classes: int = 1000) -> MobileNetV2:
    """MobileNet, version 2 [1]_, with random weights.

    Parameters
    ----------
    width, num_classes
        As of :func:`mobilenet_v1`.

    Returns
    -------
    MobileNetV2
        A module that takes images (B, 3, H, W).

    Raises
    ------
    TypeError, ValueError
        As of :func:`mobilenet_v1`.

    References
    ----------
    .. [1] M. Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR
       2018, table 2.

    Examples
    --------
    >>> from curvkern import sparse
    >>> sum(p.numel() for p in sparse.models.mobilenet_v2().parameters())
    3504872
    """
    return MobileNetV2(*checked("mobilenet_v2", width, num_classes))
