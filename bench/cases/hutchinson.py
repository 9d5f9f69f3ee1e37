"""Benchmark cases of the Hutchinson family: steps on given gradients and products, and probes.

The yardstick of a step is torch's own fused AdamW, which moves 28 bytes a parameter where
AdaHessian and Sophia cannot move less than 32, OASIS and SANIA, which pass twice, 52 and 32.
Beside it stand the authors' algorithm, written down operation after operation, with its
probes, the same formulas by torch's foreach operations, and the package pytorch_optimizer where
it is installed, given D without its mean. Relatives have new curvature in each step. Where
there is a GPU the tensors are there.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from curvkern._bench.case import OURS, Bar, Case, Contestants
from curvkern.optim import OASIS, SANIA, AdaHessian, SophiaG, SophiaH
from curvkern.reference.adahessian import PlainAdaHessian

ADAMW = "torch AdamW fused"
FOREACH = "foreach"
OFFICIAL = "official"
PEER = "pytorch_optimizer"
RANDINT = "torch.randint"

LR, DECAY = 1e-3, 0.01
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: Shapes of the parameters, whose sum is about 3 million.
NETWORKS: dict[str, list[tuple[int, ...]]] = {
    "wide layers": [(1024, 1024), (1024,)] * 3,
    "convolutions": [(128, 128, 3, 3), (128,), (128,)] * 20,
}


def cases() -> list[Case]:
    """Steps of matrices and of convolutions, and drawing a probe."""
    return [
        _step("wide layers", "none"),
        _step("convolutions", "none"),
        _step("convolutions", "conv"),
        *(_relative(name) for name in RELATIVES),
        _probes(),
    ]


def _tensors(shapes: list[tuple[int, ...]], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator).to(DEVICE) for s in shapes]


def _finished() -> None:
    """What was launched has run."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


Step = Callable[[list[Tensor]], Callable[[], object]]


def _moving(
    shapes: list[tuple[int, ...]], grads: list[Tensor], make: Step
) -> Callable[[], Tensor]:
    """A step of parameters of its own; returns the first of them."""
    params = [p.requires_grad_() for p in _tensors(shapes, 0)]
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    step = make(params)

    def call() -> Tensor:
        step()
        _finished()
        return params[0].detach()[0, 0]

    return call


def _adamw(params: list[Tensor]) -> Callable[[], object]:
    return torch.optim.AdamW(params, LR, weight_decay=DECAY, fused=True).step


def _step(network: str, spatial: str) -> Case:
    shapes = NETWORKS[network]

    def setup(n: int) -> Contestants:
        del n  # shapes are what they are
        grads, hz = _tensors(shapes, 1), _tensors(shapes, 2)

        def moving(make: Step) -> Callable[[], Tensor]:
            return _moving(shapes, grads, make)

        def ada(params: list[Tensor], foreach: bool) -> Callable[[], object]:
            optimizer = AdaHessian(params, LR, weight_decay=DECAY, spatial=spatial,
                                   foreach=foreach)  # fmt: skip
            return lambda: optimizer.step(hz=[hz])

        def official(params: list[Tensor]) -> Callable[[], object]:
            optimizer = PlainAdaHessian(params, LR, weight_decay=DECAY)
            return lambda: optimizer.step(grads, hz, optimizer.probes())

        def peer(params: list[Tensor]) -> Callable[[], object]:
            from pytorch_optimizer import AdaHessian as Peer

            optimizer = Peer(params, LR, weight_decay=DECAY, foreach=True)
            D = [h.abs() for h in hz]  # it takes D, and no means of it
            return lambda: optimizer.step(hessian=D)

        contestants = {
            OURS: moving(lambda params: ada(params, False)),
            ADAMW: moving(_adamw),
            FOREACH: moving(lambda params: ada(params, True)),
            OFFICIAL: moving(official),
        }
        if find_spec(PEER) is not None:
            contestants[PEER] = moving(peer)
        return contestants

    count = sum(torch.Size(s).numel() for s in shapes)
    return Case(
        family="hutchinson",
        op="AdaHessian.step",
        region=network,
        mode=f"spatial {spatial}",
        dtype="float32",
        where=f"{len(shapes)} tensors of {count / 1e6:.1f} million parameters, Hz given",
        setup=setup,
        yardstick=ADAMW,
        bytes=32,
        flops=15,
        bars=(
            Bar(ADAMW, slower=1.25),
            Bar(PEER, faster=2.3),
            Bar(FOREACH, faster=2.3),
            Bar(OFFICIAL, faster=6),
        ),
        elements=count,
        note="the official step draws its probes; ours needs none where only |z Hz| matters",
    )


class Given(torch.autograd.Function):
    """A loss of 1 with given gradients, which cost nothing."""

    @staticmethod
    def forward(ctx: Any, grads: list[Tensor], *params: Tensor) -> Tensor:
        ctx.grads = grads
        return params[0].new_ones(())

    @staticmethod
    def backward(ctx: Any, *one: Tensor) -> tuple[Tensor | None, ...]:
        del one
        return None, *ctx.grads


# A step of each relative, for parameters, gradients, products, and whether by foreach.
Making = Callable[[list[Tensor], list[Tensor], list[Tensor], bool], Callable[[], object]]


def _sophia_h(
    params: list[Tensor], grads: list[Tensor], hz: list[Tensor], foreach: bool
) -> Callable[[], object]:
    del grads  # of the parameters
    optimizer = SophiaH(params, LR, update_every=1, foreach=foreach)
    return lambda: optimizer.step(hz=[hz])


def _sophia_g(
    params: list[Tensor], grads: list[Tensor], hz: list[Tensor], foreach: bool
) -> Callable[[], object]:
    del grads
    optimizer = SophiaG(params, LR, update_every=1, foreach=foreach)
    return lambda: optimizer.step(sampled_loss=Given.apply(hz, *params))


def _oasis(
    params: list[Tensor], grads: list[Tensor], hz: list[Tensor], foreach: bool
) -> Callable[[], object]:
    """Gradients alternate so that the step length neither grows nor dies."""
    optimizer = OASIS(params, LR, warmup_probes=1, foreach=foreach)
    gradients = cycle([grads, [0.61 * g for g in grads]])

    def step() -> None:
        for p, g in zip(params, next(gradients), strict=True):
            p.grad = g
        optimizer.step(hz=[hz])

    return step


def _sania(
    params: list[Tensor], grads: list[Tensor], hz: list[Tensor], foreach: bool
) -> Callable[[], object]:
    optimizer = SANIA(params, warmup_probes=1, foreach=foreach)
    optimizer.step(loss=Given.apply(grads, *params), hz=[hz, hz])
    return lambda: optimizer.step(loss=Given.apply(grads, *params), hz=[hz])


#: How a step is made, and the bytes a parameter that it cannot do without.
RELATIVES: dict[str, tuple[Making, int]] = {
    "SophiaH": (_sophia_h, 32),
    "SophiaG": (_sophia_g, 32),
    "OASIS": (_oasis, 52),
    "SANIA": (_sania, 32),
}


def _relative(name: str) -> Case:
    make, moved = RELATIVES[name]
    shapes = NETWORKS["wide layers"]

    def setup(n: int) -> Contestants:
        del n
        grads, hz = _tensors(shapes, 1), _tensors(shapes, 2)

        def ours(foreach: bool) -> Callable[[], Tensor]:
            return _moving(shapes, grads, lambda params: make(params, grads, hz, foreach))

        return {OURS: ours(False), ADAMW: _moving(shapes, grads, _adamw), FOREACH: ours(True)}

    count = sum(torch.Size(s).numel() for s in shapes)
    return Case(
        family="hutchinson",
        op=f"{name}.step",
        region="wide layers",
        mode="new curvature",
        dtype="float32",
        where=f"{len(shapes)} tensors of {count / 1e6:.1f} million parameters, Hz given",
        setup=setup,
        yardstick=ADAMW,
        bytes=moved,
        flops=15,
        bars=(Bar(FOREACH, faster=2.3),),
        elements=count,
    )


def _probes() -> Case:
    shapes = NETWORKS["wide layers"]

    def setup(n: int) -> Contestants:
        del n
        params = _tensors(shapes, 0)
        optimizer = AdaHessian(params)
        official = PlainAdaHessian(params)
        return {OURS: lambda: optimizer.draw_probes()[0], RANDINT: official.probes}

    count = sum(torch.Size(s).numel() for s in shapes)
    return Case(
        family="hutchinson",
        op="draw_probes",
        region="wide layers",
        mode="signs",
        dtype="float32",
        where=f"a sign for each of {count / 1e6:.1f} million parameters",
        setup=setup,
        yardstick=RANDINT,
        bytes=4,
        flops=1,
        bars=(Bar(RANDINT, faster=5),),
        elements=count,
    )
