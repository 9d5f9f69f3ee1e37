"""Self-test of the log-Bessel family.

Truths come from ``bessel.json``, made by ``tests/data/make_check_bessel.py`` with mpmath.
Errors of the logarithms are |err| / (eps max(1, |truth|)) after an allowance of
64 eps^2 max(v, x) for the rounding of double-double (float-float) sums of that size; all others
are relative, to the truth or to what it is a difference of (FLOOR) where that is larger.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from .. import _runtime, special
from ..reference import bessel as reference
from . import Row, measured

LOGARITHMS = ("log_iv", "log_kv", "log_ive", "log_kve")
RATIOS = ("iv_ratio", "kv_ratio")
FUNCTIONS = (*LOGARITHMS, *RATIOS, "log_hyp0f1")
BARS = dict.fromkeys(FUNCTIONS, 2.0) | {"log_hyp0f1": 4.0}
DERIVATIVES = ("dv", "dx")
SECOND_DERIVATIVES = ("dvv", "dvx", "dxx")
DERIVATIVE_BAR = 8.0  # of log_iv and log_kv
OTHER_DERIVATIVE_BAR = 128.0
FLOOR: dict[tuple[str, str], Callable[[dict], float]] = {
    ("log_ive", "dx"): lambda p: p["v"] / p["x"],
    ("kv_ratio", "dv"): lambda p: p["kv_ratio"][0],
    ("kv_ratio", "dx"): lambda p: p["kv_ratio"][0] ** 2,
    ("log_iv", "dvx"): lambda p: 1 / p["x"],
    ("log_kv", "dvx"): lambda p: p["kv_ratio"][0] + 1 / p["x"],
    ("log_iv", "dxx"): lambda p: p["v"] / p["x"] ** 2,
    ("log_kv", "dvv"): lambda p: np.log(min(p["x"], 1.0)) ** 2,
}
QUANTITIES = {
    "dv": "d/dv", "dx": "d/dx", "dvv": "d2/dv2", "dvx": "d2/dvdx", "dxx": "d2/dx2",
}  # fmt: skip
REFERENCE_ACCURACY = 1e-11  # what the pure-PyTorch twin promises in float64
DTYPES = (torch.float64, torch.float32)


def points() -> list[dict]:
    """The table: v, x and each truth as a double and its remainder."""
    table: list[dict] = json.loads(Path(__file__).with_name("bessel.json").read_text())[
        "points"
    ]
    return table


def rows() -> Iterator[Row]:
    """Every function against the table and the reference, in float64 and float32."""
    table = points()
    for dtype in DTYPES:
        yield from _against_table(table, dtype)
    for dtype in DTYPES:
        yield from _against_reference(dtype)


def _against_table(points: list[dict], dtype: torch.dtype) -> Iterator[Row]:
    v, x = (torch.tensor([p[name] for p in points], dtype=dtype) for name in ("v", "x"))
    for name in FUNCTIONS:
        truth = np.array([point[name] for point in points])
        row = _Measurement(name, "value", "table", v, x, truth, _native_or(BARS[name], dtype))
        yield row.of(partial(getattr(special, name), v, x))
    for name, letters in _derivatives():
        truth = np.array([point[f"{name}_{letters}"] for point in points])
        floor = FLOOR.get((name, letters), lambda point: 0.0)
        first = name in ("log_iv", "log_kv") and letters in DERIVATIVES
        bar = _native_or(DERIVATIVE_BAR if first else OTHER_DERIVATIVE_BAR, dtype)
        quantity = QUANTITIES[letters]
        row = _Measurement(name, quantity, "table", v, x, truth, bar, [*map(floor, points)])
        yield row.of(partial(_derivative, name, letters, v, x))


def _derivatives() -> Iterator[tuple[str, str]]:
    """What the table has: first derivatives of all functions, second ones of the first two."""
    for name in FUNCTIONS:
        second = SECOND_DERIVATIVES if name in ("log_iv", "log_kv") else ()
        for letters in (*DERIVATIVES, *second):
            yield name, letters


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


def _derivative(name: str, letters: str, v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    inputs = {"v": v.clone().requires_grad_(), "x": x.clone().requires_grad_()}
    result = getattr(special, name)(**inputs)
    for letter in letters[1:]:
        (result,) = torch.autograd.grad(result.sum(), inputs[letter], create_graph=True)
    return result


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
    floor: Sequence[float] = (0.0,)

    def of(self, compute: Callable[[], torch.Tensor]) -> Row:
        """The row of what ``compute`` returns."""
        dtype = str(self.v.dtype).removeprefix("torch.")
        return measured(
            (self.name, self.quantity, dtype, self.against),
            len(self.truth),
            self.bar,
            lambda: self._errors(compute().detach().double().numpy()),
            lambda at: f"v={self.v[at].item():.9g} x={self.x[at].item():.9g}",
        )

    def _errors(self, values: np.ndarray) -> np.ndarray:
        eps = torch.finfo(self.v.dtype).eps
        high, low = self.truth.T
        error = np.abs((values - high) - low)
        scale = np.maximum(np.abs(high), self.floor)
        if self.name in LOGARITHMS and self.quantity == "value":
            largest = np.maximum(self.v.double().numpy(), self.x.double().numpy())
            error = np.maximum(error - 64 * eps**2 * largest, 0)
            scale = np.maximum(scale, 1)
        if _runtime.backend() == "reference":
            scale = np.maximum(scale, 1)
        # Below the smallest normal number only its own size counts.
        relative: np.ndarray = error / np.maximum(eps * scale, torch.finfo(self.v.dtype).tiny)
        return relative
