"""Self-test of the Matern correlation: a table of truths, and closed forms at half integers.

The table, ``matern.json``, was made by ``tests/data/make_matern.py``, where Arb's Bessel
functions and an integral in mpmath agree. It has the points where a sweep found the largest
errors. Errors are relative, over max(1, |log M|), to the truth or to what it is a difference of
(SIZE) where that is larger; those against closed forms are absolute, as M lies in [0, 1].
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import _runtime, special
from . import Row, measured
from .bessel import REFERENCE_ACCURACY

LENGTHSCALE = 0.7
CLOSED_FORM_BAR = 8.0
CLOSED_FORMS = {
    0.5: lambda z: np.exp(-z),
    1.5: lambda z: (1 + z) * np.exp(-z),
    2.5: lambda z: (1 + z + z**2 / 3) * np.exp(-z),
    3.5: lambda z: (1 + z + 2 * z**2 / 5 + z**3 / 15) * np.exp(-z),
}
#: Largest error in eps of each key of the table, in float64 and in float32; v is nu, x is r.
#: Measured were at most 9.8, 31, 11.1, 156, 51 and 11.7, with FMA and without.
BARS = {"value": 11.0, "dv": 35.0, "dx": 13.0, "dvv": 175.0, "dvx": 58.0, "dxx": 13.0}
QUANTITIES = {
    "value": "value", "dv": "d/dnu", "dx": "d/dr",
    "dvv": "d2/dnu2", "dvx": "d2/dnudr", "dxx": "d2/dr2",
}  # fmt: skip

Columns = Mapping[str, np.ndarray]

# What a truth is a difference of: near a zero of it there are no digits to be had. For the last
# by Bessel's equation, d2M/dr2 = 2 nu M + (2 nu - 1)/r dM/dr.
SIZE: dict[str, Callable[[Columns], np.ndarray]] = {
    "dv": lambda t: t["value"],
    "dvv": lambda t: np.maximum(t["value"], np.abs(t["dv"]) / t["v"]),
    "dvx": lambda t: np.abs(t["dx"]),
    "dxx": lambda t: 2 * t["v"] * t["value"],
}


def table() -> dict[str, np.ndarray]:
    """The columns of the table: v, x and the truths, at numbers that float32 holds."""
    points = json.loads(Path(__file__).with_name("matern.json").read_text())["points"]
    return {name: np.array([point[name] for point in points]) for name in points[0]}


def errors(got: np.ndarray, key: str, truth: Columns, dtype: torch.dtype) -> np.ndarray:
    """Errors of float64 numbers that stem from this dtype, in its eps."""
    size = np.abs(truth[key])
    if key in SIZE:
        size = np.maximum(size, SIZE[key](truth))
    off = np.abs((got - truth[key]) - truth.get(f"{key}__lo", 0.0))
    info = torch.finfo(dtype)
    # Below the smallest normal number only its own size counts.
    unit = np.maximum(size * np.maximum(1, -np.log(truth["value"])), info.tiny / info.eps)
    relative: np.ndarray = off / unit / info.eps
    return relative


def rows() -> Iterator[Row]:
    """Everything against the table, values against closed forms, in both dtypes."""
    truth = table()
    for dtype in (torch.float64, torch.float32):
        r, nu = _grid(dtype)
        z = np.sqrt(2 * nu.double().numpy()) * r.double().numpy() / LENGTHSCALE
        parts = zip(CLOSED_FORMS.values(), np.split(z, len(CLOSED_FORMS)), strict=True)
        form = np.concatenate([form(part) for form, part in parts])
        yield measured(
            _names("value", dtype, "closed form"),
            len(form),
            CLOSED_FORM_BAR,
            partial(_off_form, r, nu, form),
            partial(_label, r, nu),
        )
        r, nu = (torch.tensor(truth[name], dtype=dtype) for name in ("x", "v"))
        for key, bar in BARS.items():
            yield measured(
                _names(QUANTITIES[key], dtype, "table"),
                len(r),
                _native_or(bar, key, dtype),
                partial(_off_table, r, nu, key, truth),
                partial(_label, r, nu),
            )


def _names(quantity: str, dtype: torch.dtype, against: str) -> tuple[str, str, str, str]:
    return "matern", quantity, str(dtype).removeprefix("torch."), against


def _label(r: Tensor, nu: Tensor, at: int) -> str:
    return f"r={r[at].item():.9g} nu={nu[at].item():.9g}"


def _grid(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Distances 0 to 6 for each order that has a closed form, one after the other."""
    r = torch.cat([torch.zeros(1), torch.logspace(-3, 0.8, 100)]).to(dtype)
    orders = torch.tensor(list(CLOSED_FORMS), dtype=dtype)
    return r.repeat(len(orders)), orders.repeat_interleave(len(r))


def _off_form(r: Tensor, nu: Tensor, form: np.ndarray) -> np.ndarray:
    got = special.matern(r, nu, LENGTHSCALE).double().numpy()
    off: np.ndarray = np.abs(got - form) / torch.finfo(r.dtype).eps
    return off


def _off_table(r: Tensor, nu: Tensor, key: str, truth: Columns) -> np.ndarray:
    inputs = {"x": r.clone().requires_grad_(), "v": nu.clone().requires_grad_()}
    result = special.matern(inputs["x"], inputs["v"])
    for letter in key.removeprefix("value")[1:]:
        (result,) = torch.autograd.grad(result.sum(), inputs[letter], create_graph=True)
    return errors(result.detach().double().numpy(), key, truth, r.dtype)


def _native_or(bar: float, key: str, dtype: torch.dtype) -> float:
    """The bar of compiled code; the pure-PyTorch backend promises only its own accuracy."""
    if _runtime.backend() == "native":
        return bar
    accuracy = REFERENCE_ACCURACY * (200 if len(key) == 3 else 1)  # second derivatives
    return max(bar, accuracy / torch.finfo(dtype).eps)
