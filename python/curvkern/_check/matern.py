"""Self-test of the Matern correlation: closed forms at half integers, its plain twin elsewhere.

Errors are absolute: the correlation lies in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from .. import special
from ..reference import matern as reference
from . import Row, measured
from .bessel import REFERENCE_ACCURACY

LENGTHSCALE = 0.7
BARS = {torch.float64: 8.0, torch.float32: 8.0}
CLOSED_FORMS = {
    0.5: lambda z: np.exp(-z),
    1.5: lambda z: (1 + z) * np.exp(-z),
    2.5: lambda z: (1 + z + z**2 / 3) * np.exp(-z),
    3.5: lambda z: (1 + z + 2 * z**2 / 5 + z**3 / 15) * np.exp(-z),
}


def rows() -> Iterator[Row]:
    """Values in both dtypes; in float64 also other orders, and the derivatives."""
    for dtype in BARS:
        r, nu = _grid(torch.tensor(list(CLOSED_FORMS)), dtype)
        z = np.sqrt(2 * nu.double().numpy()) * r.double().numpy() / LENGTHSCALE
        parts = zip(CLOSED_FORMS.values(), np.split(z, len(CLOSED_FORMS)), strict=True)
        truth = np.concatenate([form(part) for form, part in parts])
        compute = partial(special.matern, r, nu, LENGTHSCALE)
        yield _row("value", "closed form", r, nu, truth, compute, BARS[dtype])

    r, nu = _grid(torch.tensor([0.1, 0.3, 0.9, 1.0, 1.7, 3.0, 8.2, 20.0]), torch.float64)
    r, nu = r[r > 0], nu[r > 0]
    loose = REFERENCE_ACCURACY / torch.finfo(torch.float64).eps
    for k, quantity in enumerate(("value", "d/dr", "d/dnu")):
        truth = _value_or_slope(_twin, k, r, nu).numpy()
        compute = partial(_value_or_slope, special.matern, k, r, nu)
        yield _row(quantity, "reference", r, nu, truth, compute, loose)


def _grid(orders: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Distances 0 to 6 for each order, one order after the other."""
    r = torch.cat([torch.zeros(1), torch.logspace(-3, 0.8, 100)]).to(dtype)
    nu = orders.to(dtype).repeat_interleave(len(r))
    return r.repeat(len(orders)), nu


def _twin(r: Tensor, nu: Tensor, lengthscale: float) -> Tensor:
    return reference.matern(nu, r / lengthscale)


def _value_or_slope(function: Callable[..., Tensor], k: int, r: Tensor, nu: Tensor) -> Tensor:
    inputs = r.clone().requires_grad_(), nu.clone().requires_grad_()
    value = function(*inputs, LENGTHSCALE)
    return torch.autograd.grad(value.sum(), inputs[k - 1])[0] if k else value.detach()


def _row(
    quantity: str,
    against: str,
    r: Tensor,
    nu: Tensor,
    truth: np.ndarray,
    compute: Callable[[], Tensor],
    bar: float,
) -> Row:
    return measured(
        ("matern", quantity, str(r.dtype).removeprefix("torch."), against),
        len(truth),
        bar,
        lambda: np.abs(compute().double().numpy() - truth) / torch.finfo(r.dtype).eps,
        lambda at: f"r={r[at].item():.9g} nu={nu[at].item():.9g}",
    )
