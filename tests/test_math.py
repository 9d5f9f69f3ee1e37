"""The error table at the top of csrc/core/math.hpp holds, on every instruction set in use.

Truth in float64 is mpmath's; in float32 it is NumPy's float64 result.
"""

from __future__ import annotations

import re
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch

from curvkern import _cpu

HEADER = Path(__file__).parents[1] / "csrc" / "core" / "math.hpp"
ROW = re.compile(r"^//   (\w+) +([\d.]+) / ([\d.]+) ", re.MULTILINE)
BOUNDS = {name: (float(f64), float(f32)) for name, f64, f32 in ROW.findall(HEADER.read_text())}

TRUTH = {
    "exp": mpmath.exp,
    "expm1": mpmath.expm1,
    "log": mpmath.log,
    "log1p": mpmath.log1p,
    "lgamma": mpmath.loggamma,
}
SPECIAL = {
    "exp": [(-np.inf, 0.0), (np.inf, np.inf), (np.nan, np.nan), (1e4, np.inf), (-1e4, 0.0)],
    "expm1": [(-np.inf, -1.0), (np.inf, np.inf), (np.nan, np.nan), (0.0, 0.0)],
    "log": [(0.0, -np.inf), (np.inf, np.inf), (-1.0, np.nan), (np.nan, np.nan)],
    "log1p": [(-1.0, -np.inf), (np.inf, np.inf), (-2.0, np.nan), (np.nan, np.nan), (0.0, 0.0)],
    "lgamma": [(np.inf, np.inf)],
}


def evaluate(name: str, x: np.ndarray) -> np.ndarray:
    out = torch.empty(x.shape, dtype=torch.from_numpy(x[:0]).dtype)
    _cpu.elementary(name, torch.from_numpy(x), out)
    return out.numpy()


def points(name: str, dtype: type, count: int) -> np.ndarray:
    rng = np.random.default_rng(7)
    top = float(np.finfo(dtype).max)
    spread = np.exp(rng.uniform(np.log(np.finfo(dtype).tiny), np.log(top), count))
    if name in ("exp", "expm1"):
        high = np.log(top)
        x = np.concatenate(
            [rng.uniform(-high, high, count), rng.normal(size=count), 1e-3 * spread]
        )
        x = x[np.abs(x) < high]
    elif name == "lgamma":
        x = np.concatenate([rng.uniform(0, 4, count), np.exp(rng.uniform(-20, 20, count))])
    else:
        x = np.concatenate(
            [spread, 1 + rng.uniform(-0.5, 1, count), rng.uniform(-0.9, 9, count)]
        )
        x = x[x > (0 if name == "log" else -1)]
    return x.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", sorted(TRUTH))
def test_error_is_below_the_table(name: str, dtype: type) -> None:
    x = points(name, dtype, 1500)
    got = evaluate(name, x)
    with mpmath.workdps(40):
        truth = [TRUTH[name](mpmath.mpf(float(value))) for value in x]
        error = np.array(
            [float(abs(mpmath.mpf(float(g)) - t)) for g, t in zip(got, truth, strict=True)]
        )
    size = np.abs(np.array([float(t) for t in truth]))
    if name == "lgamma":
        size = np.maximum(size, 1)
    ulp = np.spacing(size.astype(dtype)).astype(float)
    worst = int(np.argmax(error / ulp))
    bound = BOUNDS[name][0 if dtype is np.float64 else 1]
    assert error[worst] <= bound * ulp[worst], (
        f"{error[worst] / ulp[worst]:.3g} ulp at {x[worst]!r}"
    )


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", sorted(TRUTH))
def test_special_values(name: str, dtype: type) -> None:
    x, expected = (np.array(column, dtype) for column in zip(*SPECIAL[name], strict=True))
    np.testing.assert_array_equal(evaluate(name, x), expected)


def test_subnormals_in_and_out() -> None:
    assert evaluate("log", np.array([5e-324]))[0] == np.log(5e-324)
    assert evaluate("exp", np.array([-744.0]))[0] == np.exp(-744.0)
