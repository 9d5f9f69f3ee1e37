"""The largest errors of matern among random points: `python tests/data/sweep_matern.py [SEED]`.

What make_matern.SWEPT was found with: 30 000 points a run take a minute. A third lie next to
half integers with z in [0.7, 1.2], a third where z is in [0.5, 8.5], a third over all orders to
60. Measures curvkern as it is installed; CURVKERN_ISA=v2 is the code without FMA.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
import truth_matern as truth

from curvkern import _runtime
from curvkern._check.matern import errors

COUNT = 30_000
HALVES = (0.5, 0.5, 0.5, 1.5, 1.5, 2.5, 3.5, 5.5, 8.5)


def log_uniform(draw: np.random.Generator, low: float, high: float, count: int) -> np.ndarray:
    return np.exp(draw.uniform(np.log(low), np.log(high), count))


def points(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Orders and distances that float32 holds."""
    draw, third = np.random.default_rng(seed), COUNT // 3
    sides = draw.choice([-1, 1], third) * 2.0 ** -draw.uniform(5, 40, third)
    v = [
        draw.choice(HALVES, third) * (1 + sides),
        log_uniform(draw, 0.02, 26, third),
        log_uniform(draw, 0.01, 60, COUNT - 2 * third),
    ]
    z = [
        draw.uniform(0.7, 1.2, third),
        log_uniform(draw, 0.5, 8.5, third),
        log_uniform(draw, 1e-3, 40, COUNT - 2 * third),
    ]
    order = np.concatenate(v).astype(np.float32).astype(np.float64)
    distance = (np.concatenate(z) / np.sqrt(2 * order)).astype(np.float32)
    return order, distance.astype(np.float64)


def main() -> None:
    v, x = points(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    balls = [truth.balls(*pair) for pair in zip(v.tolist(), x.tolist(), strict=True)]
    at = {"v": v, "x": x}
    at |= {name: np.array([float(b[name].mid()) for b in balls]) for name in truth.QUANTITIES}
    low = [float(b["value"].mid() - float(b["value"].mid())) for b in balls]
    at["value__lo"] = np.array(low)
    z = np.sqrt(2 * v) * x
    operations = torch.ops.curvkern
    print(f"{len(v)} points, ISA {_runtime.isa()}; z < 1.2, and beyond:")
    for dtype in (torch.float64, torch.float32):
        pair = torch.tensor(v, dtype=dtype), torch.tensor(x, dtype=dtype)
        value = operations.matern(*pair)
        found = (value, *operations.matern_grad(*pair), *operations.matern_hess(*pair))
        held = at["value"] > torch.finfo(dtype).tiny / torch.finfo(dtype).eps
        for name, got in zip(truth.QUANTITIES, found, strict=True):
            error = np.where(held, errors(got.double().numpy(), name, at, dtype), 0.0)
            line = [f"{dtype!s:13} {name:5}"]
            for inside in (z < 1.2, z >= 1.2):
                i = int(np.where(inside, error, 0.0).argmax())
                line.append(f"{error[i]:7.2f} eps at nu={v[i]:.9g}, r={x[i]:.9g}")
            print("  ".join(line))


if __name__ == "__main__":
    main()
