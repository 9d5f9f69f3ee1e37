"""Benchmark cases of the M-FAC optimizer: whole training steps of a small network.

Forward, backward and the optimizer's step, on the convolutional network of
docs/examples/mfac_training.py and a batch of its size. The yardstick is the same step with SGD
with momentum; AdamW is torch's fused one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from curvkern._bench.case import OURS, Bar, Case, Contestants
from curvkern.optim import MFAC

SGD, ADAMW = "SGD", "AdamW"
HOOKS = f"{OURS}, in_backward"
BATCH = 64
LR = 1e-6  # the numbers shall stay what they are; the work is that of any rate


def cases() -> list[Case]:
    """A short and a long window, in either width."""
    return [_step(m, dtype) for m in (32, 128) for dtype in (torch.float32, torch.bfloat16)]


def network() -> torch.nn.Module:
    """For images of 8 x 8."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(512, 10),
    )


def _training(
    make: Callable[..., torch.optim.Optimizer], warm_up: int = 0
) -> Callable[[], Tensor]:
    """What trains for one step; after so many others it is as any later one."""
    model = network()
    optimizer = make(model.parameters())
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, 1, 8, 8, generator=generator)
    y = torch.randint(10, (BATCH,), generator=generator)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    for _ in range(warm_up):
        step()
    return step


def _step(m: int, dtype: torch.dtype) -> Case:
    def mfac(in_backward: bool) -> Callable[..., MFAC]:
        return lambda params: MFAC(
            params, LR, window=m, window_dtype=dtype, in_backward=in_backward
        )

    def setup(_: int) -> Contestants:
        return {
            OURS: _training(mfac(False), m + 1),
            SGD: _training(lambda params: torch.optim.SGD(params, LR, momentum=0.9)),
            ADAMW: _training(lambda params: torch.optim.AdamW(params, LR, fused=True)),
            HOOKS: _training(mfac(True), m + 1),
        }

    d = sum(p.numel() for p in network().parameters())
    return Case(
        family="mfac_step",
        op="step",
        region=f"m={m}",
        mode="training",
        dtype=str(dtype).removeprefix("torch."),
        where=f"a window of {m} gradients; a network of {d} parameters, a batch of {BATCH}",
        setup=setup,
        yardstick=SGD,
        bytes=2 * m * dtype.itemsize,
        flops=4 * m,
        bars=(Bar(SGD, slower=2),),
        elements=d,
        note="an element is a parameter; the limit is that of M-FAC's two passes alone",
    )
