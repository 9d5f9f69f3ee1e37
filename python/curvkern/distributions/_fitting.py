"""Maximum likelihood for the von Mises-Fisher law.

References
----------
.. [1] K. Hornik, B. Gruen, "On maximum likelihood estimation of the concentration parameter of
   von Mises-Fisher distributions", Comput. Stat. 29 (2014).
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from .. import ConvergenceWarning
from .._arguments import _as_tensor
from ._arguments import require_dim, require_floating, require_unit_vectors
from ._concentration import Resultant, resultant

NEWTON_STEPS = 30  # 4 to 6 are taken; the rest is the safeguard's
NEWTON_TOLERANCE = 1e-9  # of a step, relative to kappa; the error is the square of this


def fit_concentration(rbar: Any, dim: int) -> Any:
    r"""Concentration of the von Mises-Fisher law with mean resultant length `rbar`.

    Solves :math:`A_d(\kappa) = I_{d/2}(\kappa) / I_{d/2-1}(\kappa) = \bar R` to a few units in
    the last place, by a safeguarded Newton iteration from the bounds of [1]_.

    Parameters
    ----------
    rbar : Tensor, ndarray or float
        Mean resultant lengths in [0, 1]; 0 gives 0, 1 gives inf.
    dim : int
        Dimension d >= 2 of the unit vectors.

    Returns
    -------
    Tensor or ndarray
        Of the shape and dtype of `rbar`; a number gives a NumPy float64. Differentiable, twice.

    Raises
    ------
    TypeError
        `rbar` complex, boolean or no number; `dim` no integer.
    ValueError
        `rbar` outside [0, 1] or NaN; `dim` below 2.

    References
    ----------
    .. [1] K. Hornik, B. Gruen, "On maximum likelihood estimation of the concentration parameter
       of von Mises-Fisher distributions", Comput. Stat. 29 (2014).

    Examples
    --------
    >>> from curvkern.distributions import fit_concentration
    >>> print(round(fit_concentration(0.9, 64).item(), 6))
    298.919112
    """
    dim = require_dim("fit_concentration", dim)
    if not isinstance(rbar, Tensor):
        return fit_concentration(_as_tensor("fit_concentration", "rbar", rbar), dim).numpy()[()]
    require_floating("fit_concentration", rbar=rbar)
    valid = (rbar >= 0) & (rbar <= 1)
    if not bool(valid.all()):
        got = rbar[~valid].reshape(-1)[0].item()
        raise ValueError(f"fit_concentration: rbar must be in [0, 1], got {got:g}")
    wide = rbar.double()
    return solve(wide, 1 - wide, dim).to(rbar.dtype)


def estimate(x: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Direction and concentration of greatest likelihood, see VonMisesFisher.fit."""
    _check(x, weights)
    dtype = x.dtype if weights is None else torch.promote_types(x.dtype, weights.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    data = x.to(wide)
    if weights is None:
        share = data.new_full((data.shape[-2],), 1 / data.shape[-2])
    else:
        # Only ratios count, and the sum of the weights themselves may overflow.
        share = weights.to(wide) / weights.detach().to(wide).amax(-1, keepdim=True)
        share = share / share.sum(-1, keepdim=True)
    with torch.autocast(x.device.type, enabled=False):  # which would sum in bfloat16
        mean = (share[..., None, :] @ data).squeeze(-2)
    zero = (mean == 0).all(-1, keepdim=True)  # no direction: any will do, the law is uniform
    pole = torch.eye(1, x.shape[-1], dtype=wide, device=x.device)[0]
    mean_or_pole = torch.where(zero, pole, mean)
    length = torch.linalg.vector_norm(mean_or_pole, dim=-1, keepdim=True)
    loc = mean_or_pole / length
    rbar = torch.where(zero, 0, length).squeeze(-1).double()
    with torch.no_grad():
        distance = torch.cdist(
            loc[..., None, :], data, compute_mode="donot_use_mm_for_euclid_dist"
        ).squeeze(-2)
        spread = (share.double() * distance.double() ** 2).sum(-1) / 2
        spread = spread.clamp_min(torch.finfo(wide).eps ** 2 / 4)
        tight = spread < 0.5
        correction = torch.where(tight, spread - (1 - rbar), 0)
    complement = (1 - rbar) + correction
    rbar = torch.where(tight, rbar - correction, rbar)
    kappa = solve(rbar, complement, x.shape[-1])
    return loc.to(dtype), kappa.to(dtype)


def _check(x: Tensor, weights: Tensor | None) -> None:
    require_floating("fit", x=x)
    if x.dim() < 2 or x.shape[-1] < 2:
        raise ValueError(
            f"fit: x must have shape (..., n, d) with d >= 2, got {tuple(x.shape)}"
        )
    if x.numel() == 0:
        raise ValueError(f"fit: x is empty, got shape {tuple(x.shape)}")
    require_unit_vectors("fit", "x", x)
    if weights is None:
        return
    require_floating("fit", weights=weights)
    if weights.device != x.device:
        raise ValueError(f"fit: x is on {x.device} but weights on {weights.device}")
    if weights.dim() < 1 or weights.shape[-1] != x.shape[-2]:
        raise ValueError(
            f"fit: weights must have shape (..., {x.shape[-2]}) for x of shape "
            f"{tuple(x.shape)}, got {tuple(weights.shape)}"
        )
    if bool((weights < 0).any()):
        raise ValueError(f"fit: weights must be non-negative, got {weights.min().item():g}")
    if not bool(torch.isfinite(weights).all()):
        raise ValueError("fit: weights must be finite, got nan or inf")
    if bool((weights.amax(-1) == 0).any()):
        raise ValueError("fit: weights must have a positive sum, got 0")


def solve(rbar: Tensor, complement: Tensor, dim: int) -> Tensor:
    """Concentration with A(kappa) = rbar, where `complement` = 1 - rbar to its own accuracy.

    Newton's method on log kappa from Hornik and Gruen's bracket [1]_. Which of A and 1 - A is
    compared depends on rbar, so no digit is lost at either end. Two last steps with a constant
    slope enter the graph: the first gives kappa the right first derivative, the second the
    right second one.
    """
    upper_half = rbar > 0.5

    def residual(kappa: Tensor, at: Resultant) -> Tensor:
        return torch.where(upper_half, complement - at.complement, at.mean - rbar)

    with torch.no_grad():
        kappa, low, high = _bracket(rbar, complement, dim)
        for _ in range(NEWTON_STEPS):
            at = resultant(kappa, dim)
            miss = residual(kappa, at)
            low = torch.where(miss < 0, kappa, low)
            high = torch.where(miss > 0, kappa, high)
            step = kappa * torch.exp(-miss / (kappa * at.slope))
            step = torch.where((step >= low) & (step <= high), step, (low + high) / 2)
            moved = (step - kappa).abs() / step
            kappa = step
            open_ = (moved > NEWTON_TOLERANCE) & torch.isfinite(kappa)
            if not bool(open_.any()):
                break
        else:
            at = resultant(kappa, dim)
            _warn(residual(kappa, at)[open_].abs().max().item(), moved[open_].max().item())
        slope = resultant(kappa, dim).slope
    if not (torch.is_grad_enabled() and (rbar.requires_grad or complement.requires_grad)):
        return kappa
    finite = torch.isfinite(kappa)
    result = torch.where(finite, kappa, 1.0)
    for _ in range(2):
        result = result - residual(result, resultant(result, dim)) / torch.where(
            finite, slope, 1.0
        )
    return torch.where(finite, result, kappa)


def _warn(residual: float, moved: float) -> None:
    warnings.warn(
        f"fit_concentration: not converged after {NEWTON_STEPS} steps: the mean resultant "
        f"length is met to {residual:.1e} only, and the last step moved the concentration by "
        f"{moved:.1e} of it, tolerance {NEWTON_TOLERANCE:.0e}",
        ConvergenceWarning,
        stacklevel=4,
    )


def _bracket(rbar: Tensor, complement: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Start, lower and upper bound of the solution; the start is a bound too, within 20 %."""
    alpha = (dim - 1) / 2
    spread = complement * (1 + rbar)  # 1 - rbar^2

    def inverse(beta2: float) -> Tensor:
        """Where kappa / (alpha + sqrt(kappa^2 + beta^2)) equals rbar."""
        return rbar * (alpha + torch.sqrt((rbar * alpha) ** 2 + spread * beta2)) / spread

    low, high = inverse(alpha * (alpha + 1)), inverse((alpha + 1) ** 2)
    return high, low * (1 - 1e-14), high * (1 + 1e-14)
