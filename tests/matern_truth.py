"""The committed truth of the Matern correlation, and Arb's for other points."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from curvkern import special
from curvkern._check.matern import errors

DATA = Path(__file__).parent / "data"
sys.path.append(str(DATA))

import make_matern  # noqa: E402
from truth_matern import QUANTITIES, balls, integral  # noqa: E402
from truth_matern import value as exact  # noqa: E402

__all__ = [
    "QUANTITIES",
    "balls",
    "evaluate",
    "exact",
    "integral",
    "make_matern",
    "points",
    "worst",
]

_table = dict(np.load(DATA / "matern.npz"))


def points(dtype: torch.dtype) -> dict[str, np.ndarray]:
    """The columns of the table, at the points whose v and x the dtype holds exactly.

    Left out is what has a value whose last digit is below the smallest normal number.
    """
    info = torch.finfo(dtype)
    inside = _table["value"] > info.tiny / info.eps
    if dtype is torch.float32:
        inside &= _table["f32"]
    return {name: column[inside] for name, column in _table.items()}


def evaluate(key: str, v: Tensor, x: Tensor) -> Tensor:
    """The value or a derivative of ``special.matern`` by autograd, key as in QUANTITIES."""
    inputs = {"v": v.clone().requires_grad_(), "x": x.clone().requires_grad_()}
    result = special.matern(inputs["x"], inputs["v"])
    for letter in key.removeprefix("value")[1:]:
        (result,) = torch.autograd.grad(result.sum(), inputs[letter], create_graph=True)
    return result.detach()


def worst(
    got: Tensor, key: str, at: Mapping[str, np.ndarray], inside: np.ndarray
) -> tuple[float, str]:
    """The largest error in eps of the dtype among some points, and where it is.

    Infinite where a finite truth was missed; 0 where the dtype cannot hold the truth.
    """
    with np.errstate(invalid="ignore"):
        error = errors(got.double().numpy(), key, at, got.dtype)
    error = np.where(np.isfinite(error), error, np.inf)
    beyond = np.abs(at[key]) > torch.finfo(got.dtype).max * (1 - 1e-6)
    error = np.where(beyond | ~inside, 0.0, error)
    i = int(error.argmax())
    place = f"nu={float(at['v'][i])!r}, r={float(at['x'][i])!r} ({at['region'][i]})"
    return float(error[i]), f"{key}: {error[i]:.3g} eps at {place}"
