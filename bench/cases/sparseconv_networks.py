"""Benchmark cases of pruned networks: whole ones after sparsify, and training steps of layers.

Images of 224 x 224, or batches of small ones, random weights of which a share is zero. Rivals
run the same weights as dense ones: torch layer by layer ("eager"), torch.compile with frozen
weights, onnxruntime. All of them are ready before a timed call: compiled, exported, autotuned.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from curvkern import sparse
from curvkern._bench.case import OURS, Bar, Case, Contestants
from curvkern.nn import SparseWeightConv2d
from curvkern.sparse import models

EAGER, COMPILED, ORT = "eager", "torch.compile", "onnxruntime"
DENSE, LAST = "nn.Conv2d", "channels_last"
SIZE, SMALL = 224, 32
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MobileNetV1": models.mobilenet_v1,
    "MobileNetV2": models.mobilenet_v2,
    "EfficientNet-B0": models.efficientnet_b0,
    "half MobileNetV1": lambda: models.mobilenet_v1(0.5, 10),
    "half MobileNetV2": lambda: models.mobilenet_v2(0.5, 10),
}
#: Channels in and out, height of the image: layers that are trained, by batches of 8.
LAYERS = [(256, 256, 28), (256, 512, 14), (512, 512, 14)]


def cases() -> list[Case]:
    """Inference of networks, with few zeros and of small images too; training of layers."""
    return [
        _network("MobileNetV1", 90, 1, (Bar(ORT, faster=2.0),)),
        _network("MobileNetV1", 90, 8, ()),
        _network("MobileNetV2", 90, 1, (Bar(ORT, faster=1.4),)),
        _network("MobileNetV2", 90, 8, ()),
        _network("EfficientNet-B0", 90, 1, ()),
        _network("EfficientNet-B0", 90, 8, ()),
        _network("MobileNetV1", 0, 1, (Bar(EAGER, slower=1.05),)),
        _network("MobileNetV1", 50, 1, (Bar(EAGER, slower=1.05),)),
        _network("half MobileNetV1", 90, 32, (), SMALL),
        _network("half MobileNetV2", 90, 32, (), SMALL),
        *(_training(*layer) for layer in LAYERS),
    ]


def _pruned(build: Callable[[], nn.Module], sparsity: int) -> nn.Module:
    """In evaluation, with zeros in its 1 x 1 convolutions and no masks."""
    torch.manual_seed(0)
    model = build().eval()
    sparse.magnitude_prune_(model, sparsity / 100)
    for module in model.modules():
        if prune.is_pruned(module) and hasattr(module, "weight_mask"):
            prune.remove(module, "weight")
    return model


def _compiled(model: nn.Module) -> Callable[[Tensor], Tensor]:
    torch.compiler.reset()
    ready: Callable[[Tensor], Tensor] = torch.compile(model, options={"freezing": True})
    return ready


def _exported(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """A session of one thread, as the other contestants have."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(model, (x,), path, dynamo=True, external_data=False, verbose=False)
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    (name,) = (one.name for one in session.get_inputs())
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def _ready(make: Callable[[], Callable[[Tensor], Tensor]], x: Tensor) -> Callable[[], Tensor]:
    """A call that has run once; one that fails fails when it is called, too."""
    try:
        made = make()
        with torch.inference_mode():
            made(x)
    except Exception as error:  # that of a rival is told beside the results
        problem = error

        def fail() -> Tensor:
            raise problem

        return fail

    @torch.inference_mode()
    def call() -> Tensor:
        return made(x)

    return call


def _network(
    region: str, sparsity: int, batch: int, bars: tuple[Bar, ...], size: int = SIZE
) -> Case:
    rivals = ((ORT, "onnxruntime"), (ORT, "onnxscript"))

    def setup(n: int) -> Contestants:
        del n  # networks are what they are
        model = _pruned(NETWORKS[region], sparsity)
        x = torch.randn(batch, 3, size, size)
        contestants = {
            OURS: _ready(lambda: sparse.sparsify(model, min_sparsity=0.4, example_input=x), x),
            EAGER: _ready(lambda: model, x),
            COMPILED: _ready(lambda: _compiled(model), x),
        }
        if not case.missing_rivals():
            contestants[ORT] = _ready(lambda: _exported(model, x), x)
        return contestants

    products, weights = _counts(NETWORKS[region], sparsity, size)
    pixels = size * size
    case = Case(
        family="sparseconv_networks",
        op="inference",
        region=region,
        mode=f"{sparsity} %, batch {batch}" + ("" if size == SIZE else f" of {size} x {size}"),
        dtype="float32",
        where=f"{weights / 1e6:.1f} million weights that are not zero",
        setup=setup,
        yardstick=EAGER,
        bytes=12 + 4 * weights / (batch * pixels),
        flops=2 * products / pixels,
        bars=bars,
        elements=batch * pixels,
        rivals=rivals,
        note="an element of inference is a pixel of an image",
    )
    return case


def _counts(build: Callable[[], nn.Module], sparsity: int, size: int) -> tuple[float, float]:
    """Products for an image, and weights, without those of zeros."""
    found = [0.0, 0.0]

    def count(module: nn.Module, _: object, y: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        kept = (100 - sparsity) / 100 if weight.shape[2:] == (1, 1) else 1.0
        found[0] += kept * weight[0].numel() * y.numel()
        found[1] += kept * weight.numel()

    with torch.device("meta"), torch.no_grad():
        model = build().eval()
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.register_forward_hook(count)
        model(torch.empty(1, 3, size, size))
    return found[0], found[1]


def _training(channels: int, outputs: int, size: int) -> Case:
    batch, sparsity = 8, 90

    def setup(n: int) -> Contestants:
        del n
        torch.manual_seed(0)
        conv = nn.Conv2d(channels, outputs, 1)
        mask = torch.rand(outputs, channels) * 100 >= sparsity
        with torch.no_grad():
            conv.weight *= mask[:, :, None, None]
        image = torch.randn(batch, channels, size, size)
        slope = torch.randn(batch, outputs, size, size)

        def step(
            layer: nn.Module, layout: torch.memory_format = torch.contiguous_format
        ) -> Callable[[], Tensor]:
            layer = layer.to(memory_format=layout)
            x = image.contiguous(memory_format=layout).requires_grad_()
            gy = slope.contiguous(memory_format=layout)
            inputs = (x, *layer.parameters())

            def call() -> Tensor:
                return torch.autograd.grad(layer(x), inputs, gy)[-1]

            return call

        ours = SparseWeightConv2d.from_dense(conv, mask)
        twin = nn.Conv2d(channels, outputs, 1)
        twin.load_state_dict(conv.state_dict())
        return {OURS: step(ours), DENSE: step(conv), LAST: step(twin, torch.channels_last)}

    each = batch * outputs * size * size
    return Case(
        family="sparseconv_networks",
        op="training",
        region=f"{channels}-{outputs} at {size}",
        mode=f"value+grads {sparsity} %",
        dtype="float32",
        where=f"a 1 x 1 convolution with bias, a batch of {batch}; gradients of all",
        setup=setup,
        yardstick=DENSE,
        bytes=8 + 8 * channels / outputs,
        flops=6 * channels * (100 - sparsity) / 100,
        bars=(Bar((DENSE, LAST), faster=1.5),),
        elements=each,
        quick=channels == 256 and outputs == 256,
    )
