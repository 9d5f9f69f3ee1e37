"""Self-test of the log-Bessel family.

Truths come from ``bessel.json``, made by ``tests/data/make_check_bessel.py`` with mpmath. Errors
of the logarithms are |err| / (eps max(1, |truth|)) after an allowance of 64 eps^2 max(v, x) for
the rounding of double-double (float-float) sums of that size; all others are relative.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from .. import _runtime, special
from ..reference import bessel as reference
from . import Row

LOGARITHMS = ("log_iv", "log_kv", "log_ive", "log_kve")
RATIOS = ("iv_ratio", "kv_ratio")
LOG_BAR, RATIO_BAR, HYP0F1_BAR, DERIVATIVE_BAR = 2.0, 2.0, 4.0, 8.0
REFERENCE_ACCURACY = 1e-11  # what the pure-PyTorch twin promises in float64
DTYPES = (torch.float64, torch.float32)


def rows() -> Iterator[Row]:
    """Every function against the table and the reference, in float64 and float32."""
    points = json.loads(Path(__file__).with_name("bessel.json").read_text())["points"]
    for dtype in DTYPES:
        yield from _against_table(points, dtype)
    for dtype in DTYPES:
        yield from _against_reference(dtype)


def _against_table(points: list[dict], dtype: torch.dtype) -> Iterator[Row]:
    v, x = (torch.tensor([p[name] for p in points], dtype=dtype) for name in ("v", "x"))
    for name in (*LOGARITHMS, *RATIOS, "log_hyp0f1"):
        got = getattr(special, name)(v, x)
        truth = np.array([p[name] for p in points])
        bar = {"log_hyp0f1": HYP0F1_BAR}.get(name, RATIO_BAR if name in RATIOS else LOG_BAR)
        yield _row(name, "value", "table", got, truth, v, x, _native_or(bar, dtype))
    for name in ("log_iv", "log_kv"):
        order, argument = v.clone().requires_grad_(), x.clone().requires_grad_()
        total = getattr(special, name)(order, argument).sum()
        gradients = torch.autograd.grad(total, (order, argument))
        for variable, got in zip("vx", gradients, strict=True):
            truth = np.array([p[f"{name}_d{variable}"] for p in points])
            bar = _native_or(DERIVATIVE_BAR, dtype)
            yield _row(name, f"d/d{variable}", "table", got, truth, v, x, bar)


def _against_reference(dtype: torch.dtype, count: int = 2000) -> Iterator[Row]:
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(2, count, generator=generator, dtype=torch.float64)
    v = (150 * uniform[0] ** 2).to(dtype)
    x = torch.exp(-5 + 11 * uniform[1]).to(dtype)
    for name in (*LOGARITHMS, *RATIOS, "log_hyp0f1"):
        got = getattr(special, name)(v, x)
        twin = getattr(reference, name)(v.double(), x.double()).numpy()
        truth = np.stack([twin, np.zeros_like(twin)], axis=1)
        bar = REFERENCE_ACCURACY / torch.finfo(torch.float64).eps
        if dtype is torch.float32:
            bar = HYP0F1_BAR if name == "log_hyp0f1" else _native_or(LOG_BAR, dtype)
        yield _row(name, "value", "reference", got, truth, v, x, bar)


def _native_or(bar: float, dtype: torch.dtype) -> float:
    """The bar of compiled code; the pure-PyTorch backend promises only its own accuracy."""
    if _runtime.backend() == "native":
        return bar
    return max(bar, REFERENCE_ACCURACY / torch.finfo(dtype).eps)


def _row(
    name: str,
    quantity: str,
    against: str,
    got: torch.Tensor,
    truth: np.ndarray,
    v: torch.Tensor,
    x: torch.Tensor,
    bar: float,
) -> Row:
    """Measure one column; ``truth`` is (points, 2), a double and its remainder."""
    eps = torch.finfo(got.dtype).eps
    values = got.detach().double().numpy()
    order, argument = v.double().numpy(), x.double().numpy()
    high, low = truth[:, 0], truth[:, 1]
    error = np.abs((values - high) - low)
    scale = np.abs(high)
    if name in LOGARITHMS and quantity == "value":
        error = np.maximum(error - 64 * eps**2 * np.maximum(order, argument), 0)
        scale = np.maximum(scale, 1)
    # 0/0 is an exact zero that was met: no error. NaN from anywhere else is the largest error.
    measured = np.where(error == 0, 0.0, error / np.maximum(eps * scale, 1e-300))
    measured = np.where(np.isnan(measured), np.inf, measured)
    at = int(measured.argmax())
    dtype = str(got.dtype).removeprefix("torch.")
    worst = f"v={order[at]:.9g} x={argument[at]:.9g}"
    return Row(name, quantity, dtype, against, len(high), float(measured[at]), bar, worst)
