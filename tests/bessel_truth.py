"""The committed truth of the log-Bessel functions, and errors measured in eps against it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).parent / "data"
LOGARITHMS = ("log_iv", "log_kv", "log_ive", "log_kve")
RATIOS = ("iv_ratio", "kv_ratio")
FUNCTIONS = (*LOGARITHMS, "log_hyp0f1", *RATIOS)

#: Function and variable -> key of the table. d/dx log 0F1 is I_{v+1} / I_v, so the derivatives
#: of that ratio are the second derivatives of log 0F1; d/dv does not see the scaling by exp(x).
FIRST = {
    **{(f, "dv"): f"{f}_dv" for f in ("log_iv", "log_kv", "log_hyp0f1", "kv_ratio")},
    **{(f, "dx"): f"{f}_dx" for f in (*LOGARITHMS, "kv_ratio")},
    ("log_ive", "dv"): "log_iv_dv",
    ("log_kve", "dv"): "log_kv_dv",
    ("log_hyp0f1", "dx"): "iv_ratio",
    ("iv_ratio", "dv"): "log_hyp0f1_dvx",
    ("iv_ratio", "dx"): "log_hyp0f1_dxx",
}
SECOND = {
    (f, pair): f"{f}_{pair}"
    for f in ("log_iv", "log_kv", "log_hyp0f1")
    for pair in ("dvv", "dvx", "dxx")
}

_table = dict(np.load(DATA / "bessel.npz"))
EDGES = json.loads((DATA / "bessel_edges.json").read_text())


class Points(NamedTuple):
    """Points whose v and x the dtype holds exactly, as float64 arrays, with their truth."""

    v: np.ndarray
    x: np.ndarray
    region: np.ndarray
    truth: dict[str, np.ndarray]

    def select(self, inside: np.ndarray) -> Points:
        truth = {name: column[inside] for name, column in self.truth.items()}
        return Points(self.v[inside], self.x[inside], self.region[inside], truth)

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.v, dtype=dtype), torch.tensor(self.x, dtype=dtype)


def points(dtype: torch.dtype, where: Callable[..., np.ndarray] | None = None) -> Points:
    """All points of the table, or those where ``where(v, x)`` holds."""
    truth = dict(_table)
    everything = Points(truth.pop("v"), truth.pop("x"), truth.pop("region"), truth)
    inside = np.ones(len(_table["v"]), bool) if dtype is torch.float64 else _table["f32"]
    if where is not None:
        inside = inside & where(_table["v"], _table["x"])
    return everything.select(inside)


def logarithm_error(got: Tensor, name: str, at: Points) -> np.ndarray:
    """|error| / (eps max(1, |log|)) after an allowance of 64 eps^2 max(v, x)."""
    eps, _ = _limits(got.dtype)
    hi = at.truth[name]
    off = np.abs((got.double().numpy() - hi) - at.truth[f"{name}__lo"])
    off = off - 64 * eps**2 * np.maximum(at.v, at.x)
    return _report(np.maximum(off, 0) / (eps * np.maximum(1, np.abs(hi))), got, hi)


def relative_error(got: Tensor, key: str, at: Points, floor: np.ndarray | float = 0.0):
    """|error| / (eps max(|truth|, floor)); a subnormal truth counts as the least normal."""
    eps, tiny = _limits(got.dtype)
    hi = at.truth[key]
    scale = np.maximum(np.maximum(np.abs(hi), floor), tiny)
    with np.errstate(invalid="ignore"):  # inf where the truth overflows, or where got is wrong
        return _report(np.abs(got.double().numpy() - hi) / scale / eps, got, hi)


def _limits(dtype: torch.dtype) -> tuple[float, float]:
    info = torch.finfo(dtype)
    return info.eps, info.tiny


def _report(error: np.ndarray, got: Tensor, truth: np.ndarray) -> np.ndarray:
    """Infinite where a finite truth was missed, 0 where the dtype cannot hold the truth."""
    error = np.where(torch.isfinite(got).numpy(), error, np.inf)
    return np.where(np.abs(truth) > torch.finfo(got.dtype).max * (1 - 1e-6), 0.0, error)


def worst(error: np.ndarray, at: Points) -> str:
    """The largest error and where it is, for an assertion's message."""
    i = int(np.argmax(error))
    return f"{error[i]:.3g} eps at v={float(at.v[i])!r}, x={float(at.x[i])!r} ({at.region[i]})"
