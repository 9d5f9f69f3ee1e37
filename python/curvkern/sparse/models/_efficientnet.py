"""EfficientNet-B0."""

from __future__ import annotations

from torch import Tensor, nn

from ._blocks import Classifier, block, checked, rounded

#: Expansion, output channels, repetitions, stride of the first, kernel.
B0 = (
    *((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3)),
    *((6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)),
)


class SqueezeExcitation(nn.Module):
    """Channels times weights that depend on their means."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.squeeze = nn.Linear(channels, inner)
        self.act = nn.SiLU()
        self.excite = nn.Linear(inner, channels)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W)"""
        scale = self.excite(self.act(self.squeeze(self.pool(x).flatten(1))))
        result: Tensor = x * self.gate(scale).unflatten(1, (-1, 1, 1))
        return result


class MBConv(nn.Module):
    """Expansion, depthwise convolution, squeeze and excitation, projection."""

    def __init__(
        self, channels: int, out: int, stride: int, expansion: int, kernel: int
    ) -> None:
        super().__init__()
        inner = channels * expansion
        layers = block(channels, inner, activation=nn.SiLU) if expansion != 1 else []
        layers += block(inner, inner, kernel, stride, inner, nn.SiLU)
        layers.append(SqueezeExcitation(inner, max(1, channels // 4)))
        layers += block(inner, out, activation=None)
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        """(B, out, H', W')"""
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class EfficientNet(Classifier):
    """Inverted residuals with squeeze and excitation; see :func:`efficientnet_b0`."""

    def __init__(self, width: float, num_classes: int) -> None:
        channels = rounded(32 * width)
        layers = block(3, channels, 3, 2, activation=nn.SiLU)
        for expansion, out, count, stride, kernel in B0:
            for i in range(count):
                following, step = rounded(out * width), stride if i == 0 else 1
                layers.append(MBConv(channels, following, step, expansion, kernel))
                channels = following
        last = rounded(1280 * width)
        layers += block(channels, last, activation=nn.SiLU)
        super().__init__(layers, last, num_classes, 0.2)


def efficientnet_b0(width: float = 1.0, num_classes: int = 1000) -> EfficientNet:
    """EfficientNet-B0 [1]_, with random weights and without stochastic depth.

    Parameters
    ----------
    width, num_classes
        As of :func:`mobilenet_v1`.

    Returns
    -------
    EfficientNet
        A module that takes images (B, 3, H, W).

    Raises
    ------
    TypeError, ValueError
        As of :func:`mobilenet_v1`.

    References
    ----------
    .. [1] M. Tan, Q. Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural
       Networks", ICML 2019, table 1.

    Examples
    --------
    >>> from curvkern import sparse
    >>> sum(p.numel() for p in sparse.models.efficientnet_b0().parameters())
    5288548
    """
    return EfficientNet(*checked("efficientnet_b0", width, num_classes))
