"""Benchmark cases of sparse convolutions: the pointwise layers of three networks, and others.

Images of 224 x 224. Layers are called one after the other, so that each finds its operands
where the others have left them; "each 8 times" finds them in the caches but for the first time.
"best dense" takes, for each layer, the quickest of conv2d of contiguous and of channels_last
tensors and of mm, which setup finds out; which of our variants a layer takes is decided at its
first call on so many threads. Beside it stand torch's product of a CSR matrix (MKL) and, where
it is installed, onnxruntime's dense convolution.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from curvkern import _sparseconv
from curvkern._bench.case import OURS, Bar, Case, Contestants

DENSE = "best dense"
CSR = "torch CSR"
ORT = "onnxruntime"
REPEATS = 5  # of calls in a turn: a layer meets the weights and plans of its last call
AGAIN = 8
LAST = "conv2d channels_last"

Layer = tuple[int, int, int]  # channels in and out, height of the image
#: Pointwise layers, and how often each occurs.
NETWORKS: dict[str, dict[Layer, int]] = {
    "MobileNetV1": {
        (32, 64, 112): 1, (64, 128, 56): 1, (128, 128, 56): 1, (128, 256, 28): 1,
        (256, 256, 28): 1, (256, 512, 14): 1, (512, 512, 14): 5, (512, 1024, 7): 1,
        (1024, 1024, 7): 1,
    },
    "MobileNetV2": {
        (32, 16, 112): 1, (16, 96, 112): 1, (96, 24, 56): 1, (24, 144, 56): 2,
        (144, 24, 56): 1, (144, 32, 28): 1, (32, 192, 28): 3, (192, 32, 28): 2,
        (192, 64, 14): 1, (64, 384, 14): 4, (384, 64, 14): 3, (384, 96, 14): 1,
        (96, 576, 14): 3, (576, 96, 14): 2, (576, 160, 7): 1, (160, 960, 7): 3,
        (960, 160, 7): 2, (960, 320, 7): 1, (320, 1280, 7): 1,
    },
    "EfficientNet-B0": {
        (32, 16, 112): 1, (16, 96, 112): 1, (96, 24, 56): 1, (24, 144, 56): 2,
        (144, 24, 56): 1, (144, 40, 28): 1, (40, 240, 28): 2, (240, 40, 28): 1,
        (240, 80, 14): 1, (80, 480, 14): 3, (480, 80, 14): 2, (480, 112, 14): 1,
        (112, 672, 14): 3, (672, 112, 14): 2, (672, 192, 7): 1, (192, 1152, 7): 4,
        (1152, 192, 7): 3, (1152, 320, 7): 1, (320, 1280, 7): 1,
    },
}  # fmt: skip
#: Channels, height, stride and kernel.
DEPTHWISE = [
    (32, 112, 1, 3),
    (128, 56, 1, 3),
    (256, 28, 2, 3),
    (512, 14, 1, 3),
    (672, 14, 1, 5),
    (576, 14, 2, 3),
    (672, 14, 2, 5),
    (960, 7, 1, 3),
    (1152, 7, 1, 5),
]
#: Of these, batch and sizes as above.
GRADIENTS = [
    (1, 128, 56, 1, 3),
    (8, 128, 56, 1, 3),
    (8, 256, 28, 2, 3),
    (8, 512, 14, 1, 3),
    (8, 672, 14, 1, 5),
    (8, 960, 7, 1, 3),
]
#: First convolutions: channels, filters, height, stride and kernel.
FIRST = [
    (3, 32, 224, 2, 3),
    (3, 64, 224, 2, 7),
    (3, 32, 32, 1, 3),
    (1, 16, 28, 1, 3),
]


def cases() -> list[Case]:
    """Networks at several sparsities, each shape of the first, gradients, depthwise, first."""
    bars = {70: 1.6, 80: 2.0, 90: 3.5, 95: 4.5}
    shapes = [{layer: 1} for layer in NETWORKS["MobileNetV1"]]
    return [
        *(_pointwise("MobileNetV1", NETWORKS["MobileNetV1"], s, 1, bars[s]) for s in bars),
        _pointwise("MobileNetV1", NETWORKS["MobileNetV1"], 90, 4, 4.0),
        _pointwise("MobileNetV2", NETWORKS["MobileNetV2"], 90, 1, 2.6),
        _pointwise("EfficientNet-B0", NETWORKS["EfficientNet-B0"], 90, 1, 2.6),
        *(_pointwise(net, NETWORKS[net], 90, 1, again=AGAIN) for net in NETWORKS),
        *(
            _pointwise(net, NETWORKS[net], 90, 1, batch=8)
            for net in ("MobileNetV1", "MobileNetV2")
        ),
        *(_pointwise(_name(*shape), shape, 90, 1) for shape in shapes),
        *(_gradients(channels) for channels in (256, 512)),
        *(_depthwise(*sizes) for sizes in DEPTHWISE),
        *(_depthwise_gradients(*sizes) for sizes in GRADIENTS),
        *(_first(*sizes) for sizes in FIRST),
    ]


def _name(layer: Layer) -> str:
    return "{}-{} at {}".format(*layer)


def _seconds(call: Callable[[], object]) -> float:
    """The least of some calls."""
    call()
    times = []
    for _ in range(7):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def _matrix(outputs: int, channels: int, sparsity: int, height: int) -> tuple[Tensor, Tensor]:
    """Dense random weights, some of them zero, and which."""
    mask = torch.rand(outputs // height, channels) * 100 >= sparsity
    full = mask.repeat_interleave(height, 0)
    return torch.randn(outputs, channels) * full, mask


def _stored(dense: Tensor, mask: Tensor) -> tuple[_sparseconv.Pattern, Tensor]:
    height = len(dense) // len(mask)
    counts = mask.sum(1).cumsum(0)
    crow, col = torch.cat([counts.new_zeros(1), counts]), mask.nonzero()[:, 1].contiguous()
    blocks = dense.reshape(len(mask), height, -1).transpose(1, 2)[mask]
    values = blocks.flatten() if height == 1 else blocks[:, :, None].contiguous()
    shape = (dense.shape[0], dense.shape[1])
    return _sparseconv.Pattern.validated(crow, col, (height, 1), shape), values


class _Tuned:
    """Our product in the quickest variant for as many threads as torch now uses."""

    def __init__(self, pattern: _sparseconv.Pattern, values: Tensor, x: Tensor) -> None:
        self.pattern, self.values, self.x = pattern, values, x
        self.chosen: dict[int, _sparseconv.Packed] = {}

    def __call__(self) -> Tensor:
        threads = torch.get_num_threads()
        if threads not in self.chosen:
            self.chosen[threads] = self._choose(threads)
        return _sparseconv.conv1x1_packed(self.x, self.chosen[threads])

    def _choose(self, threads: int) -> _sparseconv.Packed:
        pixels = self.x.shape[2] * self.x.shape[3]
        batch = self.x.shape[0]
        names = _sparseconv.variants(self.pattern, self.x.dtype, batch, pixels, threads)
        ways = [_sparseconv.pack(self.pattern, self.values, name) for name in names]
        return min(
            ways, key=lambda way: _seconds(lambda: _sparseconv.conv1x1_packed(self.x, way))
        )


def _onnxruntime(x: Tensor, kernel: Tensor) -> Callable[[], Tensor]:
    """The dense convolution in a session of one thread."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(kernel.numpy(), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, ["CPUExecutionProvider"]
    )
    image = {"x": x.numpy()}
    return lambda: torch.from_numpy(session.run(None, image)[0])


def _layer(
    layer: Layer, sparsity: int, height: int, batch: int, rivals: bool
) -> dict[str, Callable[[], Tensor]]:
    channels, outputs, size = layer
    dense, mask = _matrix(outputs, channels, sparsity, height)
    x = torch.randn(batch, channels, size, size)
    flat, kernel = x.flatten(2), dense[:, :, None, None].contiguous()
    last = x.contiguous(memory_format=torch.channels_last)
    kernel_last = kernel.contiguous(memory_format=torch.channels_last)
    ways: list[Callable[[], Tensor]] = [
        lambda: F.conv2d(x, kernel),
        lambda: F.conv2d(last, kernel_last),
        lambda: torch.mm(dense, flat[0]) if batch == 1 else torch.matmul(dense, flat),
    ]
    pattern, values = _stored(dense, mask)
    csr = dense.to_sparse_csr()
    calls: dict[str, Callable[[], Tensor]] = {
        OURS: _Tuned(pattern, values, x),
        DENSE: min(ways, key=_seconds),
        CSR: lambda: [csr @ image for image in flat][-1],
    }
    if rivals:
        calls[ORT] = _onnxruntime(x, kernel)
    return calls


def _pointwise(
    region: str,
    layers: dict[Layer, int],
    sparsity: int,
    height: int,
    bar: float | None = None,
    again: int = 1,
    batch: int = 1,
) -> Case:
    """Layers, each so often; ``again``: so many times in a row."""
    counts = {layer: times * again for layer, times in layers.items()}
    rivals = ((ORT, "onnxruntime"), (ORT, "onnx")) if again == batch == height == 1 else ()

    def setup(n: int) -> Contestants:
        del n  # layers are what they are
        torch.manual_seed(0)
        with torch.inference_mode():
            has = bool(rivals) and not case.missing_rivals()
            each = {layer: _layer(layer, sparsity, height, batch, has) for layer in layers}

        def run(name: str) -> Callable[[], Tensor]:
            calls = [each[layer][name] for layer, times in counts.items() for _ in range(times)]

            @torch.inference_mode()
            def call() -> Tensor:
                y = torch.zeros(1)
                for one in calls:
                    y = one()
                return y.flatten()[-1]

            return call

        return {name: run(name) for name in next(iter(each.values()))}

    products = batch * sum(i * o * s * s * times for (i, o, s), times in counts.items())
    moved = batch * sum((i + o) * s * s * 4 * times for (i, o, s), times in counts.items())
    outputs = batch * sum(o * s * s * times for (_, o, s), times in counts.items())
    case = Case(
        family="sparseconv",
        op="conv1x1",
        region=region,
        mode=f"{sparsity} %"
        + (f", {height}x1" if height > 1 else "")
        + (f", each {again} times" if again > 1 else "")
        + (f", batch {batch}" if batch > 1 else ""),
        dtype="float32",
        where=f"{sum(counts.values())} layers of {products / 1e6:.0f} million products",
        setup=setup,
        yardstick=DENSE,
        bytes=moved / outputs,
        flops=2 * products * (100 - sparsity) / 100 / outputs,
        bars=() if bar is None else (Bar(DENSE, faster=bar),),
        elements=outputs,
        repeats=REPEATS,
        rivals=rivals,
        quick=region == "MobileNetV1" and sparsity == 90 and again == batch == height == 1,
    )
    return case


def _gradients(channels: int) -> Case:
    size, batch = 14, 8

    def setup(n: int) -> Contestants:
        del n
        torch.manual_seed(0)
        dense, mask = _matrix(channels, channels, 90, 1)
        pattern, values = _stored(dense, mask)
        x, gy = (torch.randn(batch, channels, size * size) for _ in range(2))
        kernel = dense[:, :, None, None].contiguous().requires_grad_()
        image = x.unflatten(2, (size, size)).requires_grad_()
        slope = gy.unflatten(2, (size, size))

        def plain() -> Tensor:
            y = F.conv2d(image, kernel)
            return torch.autograd.grad(y, (image, kernel), slope)[1][0, 0, 0, 0]

        def sparse() -> Tensor:
            with torch.inference_mode():
                _sparseconv.conv1x1(x, pattern, values)
                _sparseconv.conv1x1_input_grad(gy, pattern, values)
                return _sparseconv.sddmm(gy, x, pattern)[0]

        return {OURS: sparse, "conv2d": plain}

    outputs = batch * channels * size * size
    return Case(
        family="sparseconv",
        op="conv1x1",
        region=f"{channels}-{channels} at {size}",
        mode="value+grads 90 %",
        dtype="float32",
        where=f"a batch of {batch}; both gradients",
        setup=setup,
        yardstick="conv2d",
        bytes=24,
        flops=6 * channels / 10,
        bars=(Bar("conv2d", faster=1.5),),
        elements=outputs,
        repeats=REPEATS,
    )


def _by_torch(
    image: Tensor, weight: Tensor, bias: Tensor, stride: int, groups: int
) -> Callable[[], Tensor]:
    """torch's convolution with an activation in place."""
    pad = weight.shape[2] // 2

    def call() -> Tensor:
        with torch.inference_mode():
            y = F.conv2d(image, weight, bias, stride, pad, 1, groups)
            return F.relu6(y, inplace=True)

    return call


def _depthwise(channels: int, size: int, stride: int, kernel: int) -> Case:
    def setup(n: int) -> Contestants:
        del n
        torch.manual_seed(0)
        x, weight = (
            torch.randn(1, channels, size, size),
            torch.randn(channels, 1, kernel, kernel),
        )
        bias, pad = torch.randn(channels), kernel // 2
        last = x.contiguous(memory_format=torch.channels_last)

        def ours() -> Tensor:
            with torch.inference_mode():
                padding = (pad,) * 4
                return _sparseconv.depthwise(x, weight, bias, stride, padding, 1, "relu6")

        def plain(image: Tensor) -> Callable[[], Tensor]:
            return _by_torch(image, weight, bias, stride, channels)

        return {OURS: ours, "conv2d": plain(x), LAST: plain(last)}

    outputs = channels * (size // stride) ** 2
    return Case(
        family="sparseconv",
        op="depthwise",
        region=f"{channels} at {size}",
        mode=f"{kernel}x{kernel}, stride {stride}",
        dtype="float32",
        where=f"{channels} channels, with bias and relu6",
        setup=setup,
        yardstick="conv2d",
        bytes=4 + 4 * stride * stride,
        flops=2 * kernel * kernel,
        bars=(),
        elements=outputs,
        repeats=REPEATS,
    )


def _depthwise_gradients(
    batch: int, channels: int, size: int, stride: int, kernel: int
) -> Case:
    def setup(n: int) -> Contestants:
        del n
        torch.manual_seed(0)
        x, weight = (
            torch.randn(batch, channels, size, size),
            torch.randn(channels, 1, kernel, kernel),
        )
        pad = kernel // 2
        gy = torch.randn_like(F.conv2d(x, weight, None, stride, pad, 1, channels))

        def ours() -> Tensor:
            padding, whole = (pad,) * 4, (kernel, kernel)
            with torch.inference_mode():
                _sparseconv.depthwise_input_grad(gy, weight, (size, size), stride, padding, 1)
                return _sparseconv.depthwise_weight_grad(gy, x, whole, stride, padding, 1)

        def plain(image: Tensor, slope: Tensor) -> Callable[[], Tensor]:
            def call() -> Tensor:
                with torch.inference_mode():
                    gradients = torch.ops.aten.convolution_backward(
                        slope, image, weight, None, [stride] * 2, [pad] * 2, [1, 1], False,
                        [0, 0], channels, [True, True, False],
                    )  # fmt: skip
                    return gradients[1]

            return call

        last = (t.contiguous(memory_format=torch.channels_last) for t in (x, gy))
        return {OURS: ours, "conv2d": plain(x, gy), LAST: plain(*last)}

    outputs = batch * channels * (size // stride) ** 2
    return Case(
        family="sparseconv",
        op="depthwise",
        region=f"{batch} x {channels} at {size}",
        mode=f"grads, {kernel}x{kernel}, stride {stride}",
        dtype="float32",
        where=f"a batch of {batch}; both gradients",
        setup=setup,
        yardstick="conv2d",
        bytes=8 + 8 * stride * stride,
        flops=4 * kernel * kernel,
        bars=(),
        elements=outputs,
    )


def _first(channels: int, filters: int, size: int, stride: int, kernel: int) -> Case:
    def setup(n: int) -> Contestants:
        del n
        torch.manual_seed(0)
        x = torch.randn(1, channels, size, size)
        weight, bias = torch.randn(filters, channels, kernel, kernel), torch.randn(filters)
        last = x.contiguous(memory_format=torch.channels_last)
        kernel_last = weight.contiguous(memory_format=torch.channels_last)

        def ours() -> Tensor:
            with torch.inference_mode():
                padding = (kernel // 2,) * 4
                return _sparseconv.first_conv(x, weight, bias, stride, padding, "relu6")

        return {
            OURS: ours,
            "conv2d": _by_torch(x, weight, bias, stride, 1),
            LAST: _by_torch(last, kernel_last, bias, stride, 1),
        }

    outputs = filters * (size // stride) ** 2
    return Case(
        family="sparseconv",
        op="first",
        region=f"{channels}-{filters} at {size}",
        mode=f"{kernel}x{kernel}, stride {stride}",
        dtype="float32",
        where="dense, with bias and relu6",
        setup=setup,
        yardstick="conv2d",
        bytes=4 + 4 * channels * size * size / outputs,
        flops=2 * channels * kernel * kernel,
        bars=(),
        elements=outputs,
    )
