"""Parts that the networks share."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .. import _arguments


def rounded(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of the divisor, at least 9/10 of the number and the divisor."""
    found = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return found + divisor if found < 0.9 * channels else found


def block(
    channels: int,
    out: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = nn.ReLU6,
    eps: float = 1e-5,
) -> list[nn.Module]:
    """Convolution, normalisation, activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out, eps),
    ]
    if activation is not None:
        layers.append(activation(inplace=True))
    return layers


def checked(function: str, width: Any, num_classes: Any) -> tuple[float, int]:
    if isinstance(width, bool) or not isinstance(width, (int, float)):
        raise TypeError(f"{function}: width must be a number, got {type(width).__name__}")
    if not 0 < width < float("inf"):
        raise ValueError(f"{function}: width must be positive and finite, got {width}")
    return float(width), _arguments.integer(function, "num_classes", num_classes, 1)


class Classifier(nn.Module):
    """Features, their means over all pixels, and a linear layer."""

    def __init__(
        self, features: list[nn.Module], channels: int, num_classes: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(*features)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, 3, H, W)."""
        pooled = self.pool(self.features(x)).flatten(1)
        logits: Tensor = self.classifier(self.dropout(pooled))
        return logits


def _initialise(model: nn.Module) -> None:
    """He's normal weights for convolutions, small ones for the classifier."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
