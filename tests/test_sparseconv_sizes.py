"""R32: convolutions whose operands have more than 2^31 elements, in 8 MiB of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from curvkern import _sparseconv
from test_memory import Repeated

SIDE = 1024  # a plane is what repeats
PLANES = 2**31 // SIDE**2 + 1
STRIDE = 32


@pytest.fixture(scope="module")
def planes() -> Iterator[Tensor]:
    """All planes are one; the last is its own."""
    memory = Repeated(PLANES)
    flat = torch.from_numpy(memory.array)
    assert flat.numel() > 2**31
    view = flat.view(PLANES, SIDE, SIDE)
    view[0].copy_(torch.randn(SIDE, SIDE))
    view[-1].copy_(torch.randn(SIDE, SIDE))
    yield view
    del flat, view
    memory.close()


def _forward(x: Tensor, weight: Tensor, count: int) -> Tensor:
    w = weight.expand(count, 1, 1, 1).contiguous()
    return _sparseconv.depthwise(x[None], w, None, STRIDE, (0,) * 4, 1, "none")[0]


def _first(x: Tensor, weight: Tensor, count: int) -> Tensor:
    return _sparseconv.first_native(x[:, None], weight, None, STRIDE, (0,) * 4, "none")[:, 0]


def _weight_grad(x: Tensor, weight: Tensor, count: int) -> Tensor:
    gy = weight.expand(1, count, SIDE // STRIDE, SIDE // STRIDE).contiguous()
    return _sparseconv.depthwise_weight_grad(gy, x[None], (1, 1), STRIDE, (0,) * 4, 1)


def _input_grad(x: Tensor, weight: Tensor, count: int) -> Tensor:
    """x is the gradient of an output that is one pixel, padded."""
    w, around = weight.expand(count, 1, 1, 1).contiguous(), (500, 523, 500, 523)
    return _sparseconv.depthwise_input_grad(x[None], w, (1, 1), 1, around, 1)[0]


@pytest.mark.parametrize("function", [_forward, _first, _weight_grad, _input_grad])
def test_beyond_2_to_the_31(
    planes: Tensor, function: Callable[[Tensor, Tensor, int], Tensor]
) -> None:
    weight = torch.tensor([[[[1.5]]]])
    y = function(planes, weight, PLANES)
    for at in (0, PLANES - 1):
        assert_close(y[at], function(planes[at : at + 1], weight, 1)[0], rtol=0, atol=0)
    assert not torch.equal(y[0], y[-1])
    if function is _forward:
        assert_close(y[-1], 1.5 * planes[-1, ::STRIDE, ::STRIDE], rtol=0, atol=0)
