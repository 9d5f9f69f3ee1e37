"""Networks that consist of 1 x 1 and depthwise convolutions nearly alone.

Plain torch modules: train them, prune them with :func:`curvkern.sparse.magnitude_prune_` or
``torch.nn.utils.prune``, then pass them to :func:`curvkern.sparse.sparsify`.
"""

from ._efficientnet import EfficientNet, efficientnet_b0
from ._mobilenet import MobileNetV1, MobileNetV2, mobilenet_v1, mobilenet_v2

__all__ = [
    "EfficientNet",
    "MobileNetV1",
    "MobileNetV2",
    "efficientnet_b0",
    "mobilenet_v1",
    "mobilenet_v2",
]
