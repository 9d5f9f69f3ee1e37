"""Self-test of the von Mises-Fisher law, from the table of the log-Bessel family.

In d dimensions its order is v = d/2 - 1: the mean resultant length is I_{v+1} / I_v, and the
normalizer is that of the uniform law, 1 / area, over 0F1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from ..distributions import VonMisesFisher, fit_concentration
from . import Row, measured
from .bessel import _native_or, points

EPS = 2.0**-52


def rows() -> Iterator[Row]:
    """Normalizer, mean and fit in float64, in 2 to 32768 dimensions."""
    table = [point for point in points() if (2 * point["v"]).is_integer()]
    dims = [int(2 * point["v"]) + 2 for point in table]
    kappa, mean, slope, log_hyp = (
        np.array([np.ravel(point[key])[0] for point in table])
        for key in ("x", "iv_ratio", "iv_ratio_dx", "log_hyp0f1")
    )
    half = np.array(dims) / 2
    gamma = np.array([math.lgamma(h) for h in half])
    log_area = math.log(2) + half * math.log(math.pi) - gamma
    # The terms, their change by a unit of kappa, the change of kappa by a unit of the mean.
    size = np.maximum(np.maximum(np.abs(log_area + log_hyp), kappa), np.maximum(gamma, 1))
    condition = np.maximum(mean / (kappa * slope), 1)

    def row(
        quantity: str,
        bar: float,
        truth: np.ndarray,
        scale: np.ndarray,
        compute: Callable[[int, float, float], Tensor],
    ) -> Row:
        return measured(
            ("VonMisesFisher", quantity, "float64", "table"),
            len(table),
            _native_or(bar, torch.float64),
            lambda: (
                np.abs([*map(float, map(compute, dims, kappa, mean))] - truth) / (EPS * scale)
            ),
            lambda at: f"d={dims[at]} kappa={kappa[at]:.9g}",
        )

    yield row(
        "log_normalizer",
        8.0,
        -log_area - log_hyp,
        size,
        lambda d, k, _: _law(d, k).log_normalizer,
    )
    yield row("mean", 6.0, mean, mean, lambda d, k, _: _law(d, k).mean[0])
    yield row("fit", 4.0, kappa, kappa * condition, lambda d, _, m: fit_concentration(m, d))


def _law(dim: int, kappa: float) -> VonMisesFisher:
    pole = torch.zeros(dim, dtype=torch.float64)
    pole[0] = 1
    return VonMisesFisher(pole, float(kappa))
