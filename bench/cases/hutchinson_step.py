"""Benchmark cases of whole AdaHessian steps, and of Hessian-vector products alone.

Forward, gradient, product and the optimizer's step, on a ResNet20 (a batch of 64 images of 32 x
32), a GPT of 6 blocks of 256 (8 x 128 tokens), and an MLP of 6 layers of 2048 (a batch of 16).
The yardstick of a step is that of SGD with momentum, of a product the gradient. Double backward
and forward over reverse take attention by torch's mathematical kernels: the fused one, which
the others run, has no second derivative there. Batch normalization keeps no running statistics,
which torch.func does not take.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvkern._bench.case import OURS, Bar, Case, Contestants
from curvkern.curvature import hvp
from curvkern.optim import AdaHessian

SGD, REVERSE, GRADIENT = "SGD", "double backward", "gradient"
FORWARD = "forward over reverse"
LR = 1e-6  # the numbers shall stay what they are; the work is that of any rate


class Residual(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        stride = 1 if inner == outer else 2
        self.first = convolution(inner, outer, 3, stride)
        self.second = convolution(outer, outer, 3, 1)
        self.short = nn.Identity() if stride == 1 else convolution(inner, outer, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.short(x))


def convolution(inner: int, outer: int, size: int, stride: int) -> nn.Sequential:
    """With batch normalization."""
    return nn.Sequential(
        nn.Conv2d(inner, outer, size, stride, size // 2, bias=False),
        nn.BatchNorm2d(outer, track_running_stats=False),
    )


def resnet() -> nn.Module:
    """20 layers of 16, 32 and 64 channels."""
    widths = [16] * 4 + [32] * 3 + [64] * 3
    blocks = [Residual(a, b) for a, b in pairwise(widths)]
    return nn.Sequential(
        convolution(3, 16, 3, 1), nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(64, 10),
    )  # fmt: skip


class Block(nn.Module):
    """Of a transformer, normalized before."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        qkv = self.qkv(self.before(x)).view(b, t, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(a.transpose(1, 2).reshape(b, t, d))
        return x + self.mlp(self.between(x))


def gpt() -> nn.Module:
    """6 blocks of 256, 8 heads, 256 tokens."""
    blocks = [Block(256, 8) for _ in range(6)]
    return nn.Sequential(
        nn.Embedding(256, 256), *blocks, nn.LayerNorm(256), nn.Linear(256, 256, bias=False)
    )


def mlp() -> nn.Module:
    """6 layers of 2048."""
    layers = [one for _ in range(6) for one in (nn.Linear(2048, 2048), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


class Model(NamedTuple):
    """A network, its input, and the bars of a step."""

    where: str
    make: Callable[[], nn.Module]
    x: Callable[[torch.Generator], Tensor]
    classes: int
    products: int  # multiply-adds a parameter of the forward pass
    bar: float


MODELS = {
    "ResNet20": Model(
        "a batch of 64 images", resnet, lambda g: torch.randn(64, 3, 32, 32, generator=g), 10,
        9600, 3.6,
    ),
    "GPT 6x256": Model(
        "8 x 128 tokens", gpt, lambda g: torch.randint(256, (8, 128), generator=g), 256, 1024,
        3.3,
    ),
    "MLP 6x2048": Model(
        "a batch of 16", mlp, lambda g: torch.randn(16, 2048, generator=g), 2048, 16, 3.4
    ),
}  # fmt: skip


def cases() -> list[Case]:
    """Steps and products of each network."""
    return [make(name, model) for make in (_step, _product) for name, model in MODELS.items()]


def problem(
    model: Model, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], Callable[..., Tensor]]:
    """Parameters, and the loss at these or at others."""
    torch.manual_seed(0)
    net = model.make().to(dtype)
    generator = torch.Generator().manual_seed(1)
    x = model.x(generator)
    x = x.to(dtype) if x.is_floating_point() else x
    names = [name for name, _ in net.named_parameters()]

    def loss(params: list[Tensor] | None = None) -> Tensor:
        if params is None:
            y = net(x)
        else:
            y = torch.func.functional_call(net, dict(zip(names, params, strict=True)), x)
        y = y.flatten(0, -2)
        return F.cross_entropy(y, torch.arange(len(y)) % model.classes)

    return list(net.parameters()), loss


def _step(name: str, model: Model) -> Case:
    def ada(mode: str) -> Callable[[], Tensor]:
        params, loss = problem(model)
        optimizer = AdaHessian(params, LR, hvp=mode)

        def step() -> Tensor:
            return optimizer.step(loss=loss())

        def by_double_backward() -> Tensor:
            with sdpa_kernel(SDPBackend.MATH):
                return step()

        return step if mode == "native" else by_double_backward

    def sgd() -> Callable[[], Tensor]:
        params, loss = problem(model)
        optimizer = torch.optim.SGD(params, LR, momentum=0.9)

        def step() -> Tensor:
            optimizer.zero_grad()
            value = loss()
            value.backward()
            optimizer.step()
            return value

        return step

    def setup(_: int) -> Contestants:
        return {OURS: ada("native"), SGD: sgd(), REVERSE: ada("reverse")}

    return _case(name, model, "AdaHessian.step", setup, SGD, (Bar(SGD, slower=model.bar),))


def _product(name: str, model: Model) -> Case:
    def setup(_: int) -> Contestants:
        params, loss = problem(model)
        v = [torch.ones_like(p) for p in params]

        def of(mode: str) -> Callable[[], Tensor]:
            def call() -> Tensor:
                if mode == "native":
                    return hvp(loss(), params, v, mode=mode)[0]
                with sdpa_kernel(SDPBackend.MATH):
                    return hvp(loss(), params, v, mode=mode)[0]

            return call

        def forward_over_reverse(params: list[Tensor]) -> Tensor:
            return loss(params)

        def by_torch_func() -> Tensor:
            with sdpa_kernel(SDPBackend.MATH):
                return hvp(forward_over_reverse, params, v, mode="forward_over_reverse")[0]

        return {
            OURS: of("native"),
            GRADIENT: lambda: torch.autograd.grad(loss(), params)[0],
            REVERSE: of("reverse"),
            FORWARD: by_torch_func,
        }

    bars = (Bar((REVERSE, FORWARD), faster=1),)
    return _case(name, model, "hvp", setup, GRADIENT, bars)


def _case(
    name: str,
    model: Model,
    op: str,
    setup: Callable[[int], Contestants],
    yardstick: str,
    bars: tuple[Bar, ...],
) -> Case:
    count = sum(p.numel() for p in model.make().parameters())
    return Case(
        family="hutchinson_step",
        op=op,
        region=name,
        mode="training" if op != "hvp" else "gradient and product",
        dtype="float32",
        where=f"{count / 1e6:.2f} million parameters, {model.where}",
        setup=setup,
        yardstick=yardstick,
        bytes=64 if op != "hvp" else 28,
        flops=18 * model.products,
        bars=bars,
        elements=count,
        memory=op == "hvp",
        note="an element is a parameter; the limit is nine units of products, SGD's are three",
    )
