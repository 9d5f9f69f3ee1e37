"""Native Hessian products: their errors, and two ways that were not taken.

    python bench/products.py

prints, single threaded,

- for the networks of ``cases/hutchinson_step.py`` how far float32 gradients and products are
  from float64 ones by double backward, relative to the norm of all parameters together, and how
  far native ones are from double backward in the same dtype;
- for the backward of single layers with tangents the time of products of border rank 2 over
  that of the exact ones, and the errors of both and of one-sided differences;
- for convolutions the time of one over concatenated tensors over that of two and a sum.

A ResNet's float32 gradient is off by more than rounding, whichever way it is computed: where a
ReLU's argument is as small as its rounding, its derivative is another in float64.

Times are medians of ratios within a round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cases.hutchinson_step import MODELS, problem
from curvkern._tangents import Graph
from curvkern.curvature import hvp
from curvkern.optim._products import native_products

STEP = 1e-3  # of a tangent of the norm of its number
BATCH = 64

Work = Callable[[], Sequence[Tensor]]


def distance(found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """Of all together, relative to the truth."""
    a, b = (torch.cat([t.detach().double().flatten() for t in one]) for one in (found, truth))
    return float((a - b).norm() / b.norm())


def ratio(ways: Sequence[Work], rounds: int) -> float:
    """The time of the second way over that of the first."""
    found = []
    for at in range(rounds + 1):
        seconds = [0.0, 0.0]
        for way in (at % 2, 1 - at % 2):
            start = time.perf_counter()
            ways[way]()
            seconds[way] = time.perf_counter() - start
        found.append(seconds[1] / seconds[0])
    return statistics.median(found[1:])


# Networks -----------------------------------------------------------------------------------


def found_by(name: str, mode: str, dtype: torch.dtype) -> list[Sequence[Tensor]]:
    """The gradient, and its product with signs."""
    params, loss = problem(MODELS[name], dtype)
    generator = torch.Generator().manual_seed(2)
    v = [2.0 * torch.randint(2, p.shape, generator=generator).to(p) - 1 for p in params]
    with sdpa_kernel(SDPBackend.MATH):
        value = loss()
        if mode == "native":
            return list(native_products("products", Graph(value, params), [v]))
        g = torch.autograd.grad(value, params)
        return [g, hvp(loss(), params, v, mode=mode)]


def errors_of(name: str) -> None:
    """Print those of both modes in float32, and how far they are apart in both dtypes."""
    wide, narrow = (
        [found_by(name, mode, dtype) for mode in ("reverse", "native")]
        for dtype in (torch.float64, torch.float32)
    )
    cells = [
        f"{distance(a, b):.1e}"
        for found, truth in ((narrow[0], wide[0]), (narrow[1], wide[0]), (narrow[1], narrow[0]),
                             (wide[1], wide[0]))
        for a, b in zip(found, truth, strict=True)
    ]  # fmt: skip
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


# Layers -------------------------------------------------------------------------------------


class Layer:
    """The backward of y = x W: products of y's gradient with W and with x."""

    def __init__(self, x: tuple[int, ...], W: tuple[int, ...], y: tuple[int, ...]) -> None:
        self.shapes = (y, x, W)

    def tensors(self) -> list[Tensor]:
        """y's gradient, x, W, and their tangents of the same norms."""
        torch.manual_seed(0)
        sizes = [torch.randn(s) for s in self.shapes]
        return sizes + [torch.randn_like(t) for t in sizes]

    def back(self, g: Tensor, W: Tensor, x: Tensor) -> Tensor:
        """What x's gradient is."""
        return torch.mm(g, W.mT)

    def weight(self, g: Tensor, x: Tensor, W: Tensor) -> Tensor:
        """What W's gradient is."""
        return torch.mm(x.mT, g)


class Convolution(Layer):
    """Of 3 x 3."""

    def __init__(self, channels: int, side: int) -> None:
        image = (BATCH, channels, side, side)
        super().__init__(image, (channels, channels, 3, 3), image)

    def _backward(self, g: Tensor, x: Tensor, W: Tensor, which: int) -> Tensor:
        mask = [which == 0, which == 1, False]
        found: Tensor = torch.ops.aten.convolution_backward(
            g, x, W, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask
        )[which]
        return found

    def back(self, g: Tensor, W: Tensor, x: Tensor) -> Tensor:
        return self._backward(g, x, W, 0)

    def weight(self, g: Tensor, x: Tensor, W: Tensor) -> Tensor:
        return self._backward(g, x, W, 1)

    def forward(self, x: Tensor, W: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(x, W, padding=1)


LAYERS: dict[str, Layer] = {
    "convolution of 64 channels": Convolution(64, 8),
    "convolution of 32 channels": Convolution(32, 16),
    "convolution of 16 channels": Convolution(16, 32),
    "1024 rows, 256 x 1024": Layer((1024, 256), (256, 1024), (1024, 1024)),
    "16 rows, 2048 x 2048": Layer((16, 2048), (2048, 2048), (16, 2048)),
}


def exact(layer: Layer, t: Sequence[Tensor]) -> list[Tensor]:
    """Both gradients and their tangents: six products."""
    g, x, W, gd, xd, Wd = t
    return [
        layer.back(g, W, x), layer.weight(g, x, W),
        layer.back(gd, W, x).add_(layer.back(g, Wd, x)),
        layer.weight(gd, x, W).add_(layer.weight(g, xd, W)),
    ]  # fmt: skip


def of_border_rank(layer: Layer, t: Sequence[Tensor]) -> list[Tensor]:
    """Four products: (a + s a') (b + s b') and (a - s a') (b - s b')."""
    sides = [
        [torch.add(one, tangent, alpha=s) for one, tangent in zip(t[:3], t[3:], strict=True)]
        for s in (STEP, -STEP)
    ]
    found = [[layer.back(g, W, x), layer.weight(g, x, W)] for g, x, W in sides]
    means = [(a + b).mul_(0.5) for a, b in zip(*found, strict=True)]
    return means + [(a - b).mul_(0.5 / STEP) for a, b in zip(*found, strict=True)]


def one_sided(layer: Layer, t: Sequence[Tensor]) -> list[Tensor]:
    """Four products: (a + s a') (b + s b') and a b."""
    g, x, W = (torch.add(one, d, alpha=STEP) for one, d in zip(t[:3], t[3:], strict=True))
    moved = [layer.back(g, W, x), layer.weight(g, x, W)]
    found = [layer.back(t[0], t[2], t[1]), layer.weight(t[0], t[1], t[2])]
    return found + [(a - b).div_(STEP) for a, b in zip(moved, found, strict=True)]


def border_rank_of(name: str, layer: Layer, rounds: int) -> None:
    """Print time and errors of tangents."""
    t = layer.tensors()
    truth = exact(layer, [one.double() for one in t])[2:]
    ways = (exact, of_border_rank, one_sided)
    errors = " | ".join(f"{distance(way(layer, t)[2:], truth):.1e}" for way in ways)
    took = ratio([lambda: exact(layer, t), lambda: of_border_rank(layer, t)], rounds)
    print(f"| {name} | {took:.2f} | {errors} |", flush=True)


def concatenation_of(name: str, layer: Convolution, rounds: int) -> None:
    """Print times of y's tangent and of those of both gradients."""
    g, x, W, gd, xd, Wd = layer.tensors()
    pairs: list[tuple[Work, Work]] = [
        (
            lambda: [layer.forward(xd, W).add_(layer.forward(x, Wd))],
            lambda: [layer.forward(torch.cat([xd, x], 1), torch.cat([W, Wd], 1))],
        ),
        (
            lambda: [layer.back(gd, W, x).add_(layer.back(g, Wd, x))],
            lambda: [layer.back(torch.cat([gd, g], 1), torch.cat([W, Wd]), x)],
        ),
        (
            lambda: [layer.weight(gd, x, W).add_(layer.weight(g, xd, W))],
            lambda: [layer.weight(torch.cat([gd, g]), torch.cat([x, xd]), W)],
        ),
    ]
    for two, one in pairs:
        assert distance(one(), two()) < 1e-5
    print(f"| {name} | {' | '.join(f'{ratio(pair, rounds):.2f}' for pair in pairs)} |")


def main() -> None:
    """Print three tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    heads = ("reverse float32", "native float32", "apart float32", "apart float64")
    print(f"| network | {' | '.join(f'{head}: g | Hz' for head in heads)} |")
    print("|---|" + "---:|" * 2 * len(heads))
    for name in MODELS:
        errors_of(name)
    print("\n| layer | border rank 2: time | error: exact | border rank 2 | one-sided |")
    print("|---|---:|---:|---:|---:|")
    for name, layer in LAYERS.items():
        border_rank_of(name, layer, options.rounds)
    print("\n| concatenated | tangent of y | of x's gradient | of W's |\n|---|---:|---:|---:|")
    for name, layer in LAYERS.items():
        if isinstance(layer, Convolution):
            concatenation_of(name, layer, options.rounds)


if __name__ == "__main__":
    main()
