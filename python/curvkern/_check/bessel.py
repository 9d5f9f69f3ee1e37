"""Self-test of the log-Bessel family.

Truths come from ``bessel.json``, made by ``tests/data/make_check_bessel.py`` with mpmath.
Errors of the logarithms are |err| / (eps max(1, |truth|)) after an allowance of
64 eps^2 max(v, x) for the rounding of double-double (float-float) sums of that size; all others
are relative.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from .. import _runtime, special
from ..reference import bessel as reference
from . import Row

LOGARITHMS = ("log_iv", "log_kv", "log_ive", "log_kve")
RATIOS = ("iv_ratio", "kv_ratio")
FUNCTIONS = (*LOGARITHMS, *RATIOS, "log_hyp0f1")
BARS = dict.fromkeys(FUNCTIONS, 2.0) | {"log_hyp0f1": 4.0}
DERIVATIVE_BAR = 8.0
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
    for name in FUNCTIONS:
        truth = np.array([point[name] for point in points])
        row = _Measurement(name, "value", "table", v, x, truth, _native_or(BARS[name], dtype))
        yield row.of(partial(getattr(special, name), v, x))
    for name in ("log_iv", "log_kv"):
        for variable in "vx":
            truth = np.array([point[f"{name}_d{variable}"] for point in points])
            bar = _native_or(DERIVATIVE_BAR, dtype)
            row = _Measurement(name, f"d/d{variable}", "table", v, x, truth, bar)
            yield row.of(partial(_derivative, name, variable, v, x))


def _against_reference(dtype: torch.dtype, count: int = 2000) -> Iterator[Row]:
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(2, count, generator=generator, dtype=torch.float64)
    v = (150 * uniform[0] ** 2).to(dtype)
    x = torch.exp(-5 + 11 * uniform[1]).to(dtype)
    for name in FUNCTIONS:
        twin = getattr(reference, name)(v.double(), x.double()).numpy()
        truth = np.stack([twin, np.zeros_like(twin)], axis=1)
        bar = max(BARS[name], REFERENCE_ACCURACY / torch.finfo(dtype).eps)
        row = _Measurement(name, "value", "reference", v, x, truth, bar)
        yield row.of(partial(getattr(special, name), v, x))


def _derivative(name: str, variable: str, v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    inputs = {"v": v.clone().requires_grad_(), "x": x.clone().requires_grad_()}
    total = getattr(special, name)(**inputs).sum()
    return torch.autograd.grad(total, inputs[variable])[0]


def _native_or(bar: float, dtype: torch.dtype) -> float:
    """The bar of compiled code; the pure-PyTorch backend promises only its own accuracy."""
    if _runtime.backend() == "native":
        return bar
    return max(bar, REFERENCE_ACCURACY / torch.finfo(dtype).eps)


@dataclass(frozen=True)
class _Measurement:
    """One row in the making; ``truth`` is (points, 2), a double and its remainder."""

    name: str
    quantity: str
    against: str
    v: torch.Tensor
    x: torch.Tensor
    truth: np.ndarray
    bar: float

    def of(self, compute: Callable[[], torch.Tensor]) -> Row:
        """The row of what ``compute`` returns; an exception counts as an infinite error."""
        try:
            errors = self._errors(compute().detach().double().numpy())
        except Exception as error:
            return self._row(math.inf, f"{type(error).__name__}: {error}")
        at = int(errors.argmax())
        worst = f"v={self.v[at].item():.9g} x={self.x[at].item():.9g}"
        return self._row(float(errors[at]), worst)

    def _errors(self, values: np.ndarray) -> np.ndarray:
        eps = torch.finfo(self.v.dtype).eps
        high, low = self.truth.T
        error, scale = np.abs((values - high) - low), np.abs(high)
        if self.name in LOGARITHMS and self.quantity == "value":
            largest = np.maximum(self.v.double().numpy(), self.x.double().numpy())
            error = np.maximum(error - 64 * eps**2 * largest, 0)
            scale = np.maximum(scale, 1)
        if _runtime.backend() == "reference":
            scale = np.maximum(scale, 1)
        # Below the smallest normal number only its own size counts; NaN is the largest error.
        relative = error / np.maximum(eps * scale, torch.finfo(self.v.dtype).tiny)
        return np.where(np.isnan(relative), np.inf, relative)

    def _row(self, error: float, worst: str) -> Row:
        dtype = str(self.v.dtype).removeprefix("torch.")
        names = (self.name, self.quantity, dtype, self.against)
        return Row(*names, len(self.truth), error, self.bar, worst)
