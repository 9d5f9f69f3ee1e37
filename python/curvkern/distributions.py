"""Laws on the unit sphere: von Mises-Fisher and the uniform law, with their divergences.

Functions of the concentration are evaluated in float64 whatever the dtype of the tensors: they live on
the batch shape, not on the data, and in float32 the differences of a distribution in 32768 dimensions
would be noise. Whatever touches data runs in its own dtype.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.kl import register_kl

from . import _vmf
from ._arguments import _as_tensor

__all__ = ["HypersphericalUniform", "VonMisesFisher", "fit_concentration"]

_HALVES = (torch.float16, torch.bfloat16)


class _UnitVector(constraints.Constraint):
    """Vectors of norm one, to the rounding a user's own normalisation leaves."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        wide = value.float() if value.dtype in _HALVES else value
        tolerance = 2e-2 if value.dtype in _HALVES else 1e-5
        return ((wide * wide).sum(-1).sqrt() - 1).abs() <= tolerance


class _FiniteNonnegative(constraints.Constraint):
    """Numbers in [0, inf)."""

    def check(self, value: Tensor) -> Tensor:
        return (value >= 0) & torch.isfinite(value)


unit_vector = _UnitVector()


def _require_floating(owner: str, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{owner}: {name} must be a tensor, got {type(tensor).__name__}")
        if not tensor.is_floating_point():
            raise TypeError(f"{owner}: {name} must be a real floating tensor, got {tensor.dtype}")


def _require_dim(owner: str, dim: int) -> int:
    if isinstance(dim, bool) or not isinstance(dim, (int, np.integer)):
        raise TypeError(f"{owner}: dim must be an integer, got {type(dim).__name__}")
    if dim < 2:
        raise ValueError(f"{owner}: dim must be at least 2, got {dim}")
    return int(dim)


def _unit_noise(
    shape: torch.Size, like: Tensor, generator: torch.Generator | None, dtype: torch.dtype
) -> Tensor:
    """Uniform unit vectors of R^shape[-1]; in R^1 these are signs."""
    z = torch.randn(shape, dtype=dtype, device=like.device, generator=generator)
    if shape[-1] == 1:
        return torch.where(z < 0, -1.0, 1.0).to(dtype)
    return z / torch.linalg.vector_norm(z, dim=-1, keepdim=True)


class HypersphericalUniform(Distribution):
    r"""Uniform law on the unit sphere :math:`S^{d-1}` of :math:`R^d`.

    .. math:: p(x) = \Gamma(d/2) / (2 \pi^{d/2})

    Parameters
    ----------
    dim : int
        Dimension d >= 2 of the space around the sphere (not of the sphere itself).
    batch_shape : sequence of int
        Shape of a batch of independent copies.
    dtype, device
        Of the samples; torch's defaults if not given.

    Raises
    ------
    TypeError, ValueError
        `dim` not an integer, or below 2.

    Examples
    --------
    >>> from curvkern.distributions import HypersphericalUniform
    >>> print(round(HypersphericalUniform(3).entropy().item(), 6))  # log(4 pi)
    2.531024
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = unit_vector
    has_rsample = True

    def __init__(
        self,
        dim: int,
        batch_shape: tuple[int, ...] = (),
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.dim = _require_dim("HypersphericalUniform", dim)
        self._like = torch.empty((), dtype=dtype, device=device)
        _require_floating("HypersphericalUniform", dtype=self._like)
        super().__init__(torch.Size(batch_shape), torch.Size([self.dim]), validate_args)

    def expand(self, batch_shape, _instance=None) -> HypersphericalUniform:
        new = self._get_checked_instance(HypersphericalUniform, _instance)
        new.dim, new._like = self.dim, self._like
        super(HypersphericalUniform, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """The origin."""
        return self._like.new_zeros(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """1/d for each coordinate."""
        return self._like.new_full(self.batch_shape + self.event_shape, 1 / self.dim)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return value.new_full(shape, -_vmf.log_area(self.dim))

    def entropy(self) -> Tensor:
        return self._like.new_full(self.batch_shape, _vmf.log_area(self.dim))

    def rsample(self, sample_shape=torch.Size(), generator: torch.Generator | None = None) -> Tensor:
        dtype = self._like.dtype
        wide = torch.float32 if dtype in _HALVES else dtype
        shape = self._extended_shape(sample_shape)
        return _unit_noise(shape, self._like, generator, wide).to(dtype)

    def sample(self, sample_shape=torch.Size(), generator: torch.Generator | None = None) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape, generator)


class VonMisesFisher(Distribution):
    r"""Von Mises-Fisher law on the unit sphere of :math:`R^d`.

    .. math::
        p(x) = C_d(\kappa)\, e^{\kappa \mu\cdot x}, \qquad
        C_d(\kappa) = \frac{\kappa^{d/2-1}}{(2\pi)^{d/2} I_{d/2-1}(\kappa)}

    Right for every d >= 2 and kappa >= 0: at d = 2 (von Mises), in 32768 dimensions, at kappa = 0 (the
    uniform law), 1e-12 and 1e8.

    Parameters
    ----------
    loc : Tensor, shape (..., d)
        Mean direction mu, unit vectors.
    concentration : Tensor or float, shape (...)
        Concentration kappa, finite and non-negative; broadcasts against the batch shape of `loc`.

    Raises
    ------
    TypeError
        A parameter that is no real floating tensor.
    ValueError
        d < 2; with `validate_args`, loc not of norm one, concentration negative or not finite.

    Notes
    -----
    `rsample` is reparameterised. In loc: the sample is cos(theta) mu + sin(theta) n with n a Householder
    image of noise, smooth in mu. In the concentration: the angle theta comes from Ulrich's and Wood's
    rejection scheme [1]_ and gets the implicit derivative [2]_ dtheta/dkappa = -(dF/dkappa) / f, so the
    gradient is unbiased and needs no score-function correction. Gradients can be differentiated again.
    `sample` and `rsample` accept a `generator`, which leaves the global generator alone.

    References
    ----------
    .. [1] A. Wood, "Simulation of the von Mises Fisher distribution", Commun. Stat. 23 (1994).
    .. [2] M. Figurnov, S. Mohamed, A. Mnih, "Implicit reparameterization gradients", NeurIPS 2018.
    .. [3] K. Mardia, P. Jupp, "Directional Statistics", Wiley 2000, sections 9.3 and 10.3.

    Examples
    --------
    >>> import torch
    >>> from curvkern.distributions import VonMisesFisher
    >>> law = VonMisesFisher(torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), 10.0)
    >>> print(round(law.entropy().item(), 6))
    0.535292
    >>> x = law.sample((1000,), generator=torch.Generator().manual_seed(0))
    >>> print(round(VonMisesFisher.fit(x).concentration.item(), 1))
    10.0
    """

    arg_constraints = {"loc": unit_vector, "concentration": _FiniteNonnegative()}
    support = unit_vector
    has_rsample = True

    def __init__(
        self, loc: Tensor, concentration: Tensor | float, validate_args: bool | None = None
    ) -> None:
        _require_floating("VonMisesFisher", loc=loc)
        if isinstance(concentration, (int, float)) and not isinstance(concentration, bool):
            concentration = loc.new_tensor(float(concentration))
        _require_floating("VonMisesFisher", concentration=concentration)
        if loc.dim() < 1 or loc.shape[-1] < 2:
            raise ValueError(
                f"VonMisesFisher: loc must have shape (..., d) with d >= 2, got {tuple(loc.shape)}"
            )
        if loc.device != concentration.device:
            raise ValueError(
                f"VonMisesFisher: loc is on {loc.device} but concentration on {concentration.device}"
            )
        try:
            batch_shape = torch.broadcast_shapes(loc.shape[:-1], concentration.shape)
        except RuntimeError:
            raise ValueError(
                f"VonMisesFisher: loc has batch shape {tuple(loc.shape[:-1])} but concentration has "
                f"shape {tuple(concentration.shape)}"
            ) from None
        dtype = torch.promote_types(loc.dtype, concentration.dtype)
        self.dim = loc.shape[-1]
        self.loc = loc.to(dtype).expand(batch_shape + (self.dim,))
        self.concentration = concentration.to(dtype).expand(batch_shape)
        super().__init__(batch_shape, torch.Size([self.dim]), validate_args)

    def expand(self, batch_shape, _instance=None) -> VonMisesFisher:
        new = self._get_checked_instance(VonMisesFisher, _instance)
        batch_shape = torch.Size(batch_shape)
        new.dim = self.dim
        new.loc = self.loc.expand(batch_shape + self.event_shape)
        new.concentration = self.concentration.expand(batch_shape)
        super(VonMisesFisher, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def _kappa(self) -> Tensor:
        return self.concentration.double()

    def _cast(self, value: Tensor) -> Tensor:
        return value.to(self.loc.dtype)

    @property
    def mode(self) -> Tensor:
        """The mean direction `loc` (at concentration zero every point is a mode)."""
        return self.loc

    @property
    def mean(self) -> Tensor:
        """A_d(kappa) mu, inside the sphere."""
        return self._cast(_vmf.resultant(self._kappa, self.dim).mean)[..., None] * self.loc

    @property
    def variance(self) -> Tensor:
        """Variance of each coordinate, the diagonal of `covariance_matrix`."""
        at = _vmf.resultant(self._kappa, self.dim)
        across, along = self._cast(at.quotient)[..., None], self._cast(at.slope)[..., None]
        return across * (1 - self.loc**2) + along * self.loc**2

    @property
    def covariance_matrix(self) -> Tensor:
        """(A / kappa) (I - mu mu^T) + A' mu mu^T, shape (..., d, d)."""
        at = _vmf.resultant(self._kappa, self.dim)
        across, along = self._cast(at.quotient), self._cast(at.slope)
        outer = self.loc[..., :, None] * self.loc[..., None, :]
        eye = torch.eye(self.dim, dtype=self.loc.dtype, device=self.loc.device)
        return across[..., None, None] * (eye - outer) + along[..., None, None] * outer

    @property
    def log_normalizer(self) -> Tensor:
        """log C_d(kappa), so that log p(x) = kappa mu.x + log_normalizer."""
        return self._cast(-_vmf.log_area(self.dim) - _vmf.log_hyp(self._kappa, self.dim))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density with respect to the area of the sphere, shape sample_shape + batch_shape.

        Evaluated as kappa (mu.x - 1) + (kappa + log C) with mu.x - 1 = -|x - mu|^2 / 2: a large kappa
        then multiplies no rounding error of mu.x. Its gradients are those of kappa mu.x.
        """
        if self._validate_args:
            self._validate_sample(value)
        wide = torch.float32 if self.loc.dtype in _HALVES else self.loc.dtype
        x, mu = value.to(torch.promote_types(value.dtype, wide)), self.loc.to(wide)
        squares = (x * x).sum(-1) + (mu * mu).sum(-1)
        radial = (squares - squares.detach()) / 2  # zero, but for its gradient
        cos_minus_one = radial - ((x - mu) ** 2).sum(-1) / 2
        peak = _vmf.deficit(self._kappa, self.dim) - _vmf.log_area(self.dim)
        return (self.concentration * cos_minus_one + peak.to(x.dtype)).to(
            torch.promote_types(value.dtype, self.loc.dtype)
        )

    def entropy(self) -> Tensor:
        """-E log p = log|S| - KL(p || uniform)."""
        return self._cast(_vmf.log_area(self.dim) - _vmf.kl_uniform(self._kappa, self.dim))

    def rsample(self, sample_shape=torch.Size(), generator: torch.Generator | None = None) -> Tensor:
        """Reparameterised samples, shape sample_shape + batch_shape + (d,); see the class notes."""
        shape = self._extended_shape(sample_shape)
        kappa = self._kappa.expand(shape[:-1])
        with torch.no_grad():
            theta = _vmf.sample_angle(kappa.reshape(-1), self.dim, generator).reshape(shape[:-1])
            wide = torch.float32 if self.loc.dtype in _HALVES else self.loc.dtype
            noise = _unit_noise(shape[:-1] + (self.dim - 1,), self.loc, generator, wide)
        theta = _vmf.ImplicitAngle.apply(theta, kappa, self.dim)
        mu = self.loc.to(wide)
        tangent = _to_tangent(noise, mu)
        x = torch.cos(theta).to(wide)[..., None] * mu + torch.sin(theta).to(wide)[..., None] * tangent
        return self._cast(x)

    def sample(self, sample_shape=torch.Size(), generator: torch.Generator | None = None) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape, generator)

    @classmethod
    def fit(cls, x: Tensor, weights: Tensor | None = None) -> VonMisesFisher:
        r"""Maximum likelihood from unit vectors.

        The direction is that of the weighted mean m, the concentration solves
        :math:`A_d(\kappa) = |m|`. 1 - |m| is taken from the distances to the mean direction, so that a
        tight cluster loses no digits.

        Parameters
        ----------
        x : Tensor, shape (..., n, d)
            Unit vectors.
        weights : Tensor, shape (..., n), optional
            Non-negative weights. Extra leading dimensions become the batch shape of the result: with x
            of shape (n, d) and weights (k, n), the k components of a mixture are fitted at once.

        Returns
        -------
        VonMisesFisher
            With the batch shape of x and weights. Differentiable in x and weights. Points that coincide
            to rounding give the largest concentration their dtype can tell from infinity.

        Raises
        ------
        TypeError
            x or weights not a real floating tensor.
        ValueError
            No points, d < 2, x not unit vectors (or NaN), weights of the wrong shape, negative, not
            finite, or with zero sum.
        """
        _check_fit(x, weights)
        dtype = x.dtype if weights is None else torch.promote_types(x.dtype, weights.dtype)
        wide = torch.promote_types(dtype, torch.float32)
        data = x.to(wide)
        if weights is None:
            share = data.new_full((data.shape[-2],), 1 / data.shape[-2])
        else:
            share = weights.to(wide) / weights.to(wide).sum(-1, keepdim=True)
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
        kappa = _vmf.solve(rbar, complement, x.shape[-1])
        return cls(loc.to(dtype), kappa.to(dtype), validate_args=False)


def _to_tangent(noise: Tensor, mu: Tensor) -> Tensor:
    """Isometry of R^(d-1) onto the tangent space at mu: the Householder map of e_1 to -+mu, restricted."""
    first, rest = mu[..., :1], mu[..., 1:]
    overlap = (rest * noise).sum(-1, keepdim=True)
    head = -torch.where(first < 0, -overlap, overlap)
    return torch.cat([head, noise - rest * overlap / (1 + first.abs())], -1)


def _check_fit(x: Tensor, weights: Tensor | None) -> None:
    _require_floating("fit", x=x)
    if x.dim() < 2 or x.shape[-1] < 2:
        raise ValueError(f"fit: x must have shape (..., n, d) with d >= 2, got {tuple(x.shape)}")
    if x.numel() == 0:
        raise ValueError(f"fit: x is empty, got shape {tuple(x.shape)}")
    bad = ~unit_vector.check(x)
    if bool(bad.any()):
        norm = torch.linalg.vector_norm(x[bad][0].double()).item()
        raise ValueError(f"fit: x must hold unit vectors, got one of norm {norm:g}; normalise x first")
    if weights is None:
        return
    _require_floating("fit", weights=weights)
    if weights.device != x.device:
        raise ValueError(f"fit: x is on {x.device} but weights on {weights.device}")
    if weights.dim() < 1 or weights.shape[-1] != x.shape[-2]:
        raise ValueError(
            f"fit: weights must have shape (..., {x.shape[-2]}) for x of shape {tuple(x.shape)}, "
            f"got {tuple(weights.shape)}"
        )
    if bool((weights < 0).any()):
        raise ValueError(f"fit: weights must be non-negative, got {weights.min().item():g}")
    if not bool(torch.isfinite(weights).all()):
        raise ValueError("fit: weights must be finite, got nan or inf")
    if bool((weights.sum(-1) == 0).any()):
        raise ValueError("fit: weights must have a positive sum, got 0")


def fit_concentration(rbar: Any, dim: int) -> Any:
    r"""Concentration of the von Mises-Fisher law with mean resultant length `rbar`.

    Solves :math:`A_d(\kappa) = I_{d/2}(\kappa) / I_{d/2-1}(\kappa) = \bar R` to a few units in the last
    place, by a safeguarded Newton iteration from the bounds of [1]_.

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
    .. [1] K. Hornik, B. Gruen, "On maximum likelihood estimation of the concentration parameter of von
       Mises-Fisher distributions", Comput. Stat. 29 (2014).

    Examples
    --------
    >>> from curvkern.distributions import fit_concentration
    >>> print(round(fit_concentration(0.9, 64).item(), 6))
    298.919112
    """
    dim = _require_dim("fit_concentration", dim)
    if not isinstance(rbar, Tensor):
        return fit_concentration(_as_tensor("fit_concentration", "rbar", rbar), dim).numpy()[()]
    _require_floating("fit_concentration", rbar=rbar)
    valid = (rbar >= 0) & (rbar <= 1)
    if not bool(valid.all()):
        got = rbar[~valid].reshape(-1)[0].item()
        raise ValueError(f"fit_concentration: rbar must be in [0, 1], got {got:g}")
    wide = rbar.double()
    return _vmf.solve(wide, 1 - wide, dim).to(rbar.dtype)


@register_kl(VonMisesFisher, VonMisesFisher)
def _kl_vmf_vmf(p: VonMisesFisher, q: VonMisesFisher) -> Tensor:
    """D(kappa_q, kappa_p) + kappa_q A(kappa_p) (1 - cos), a sum of two non-negative terms."""
    _same_dim(p.dim, q.dim)
    length = _vmf.resultant(p._kappa, p.dim).mean
    one_minus_cos = ((p.loc - q.loc).double() ** 2).sum(-1) / 2
    kl = _vmf.bregman(q._kappa, p._kappa, p.dim) + q._kappa * length * one_minus_cos
    return kl.to(torch.promote_types(p.loc.dtype, q.loc.dtype))


@register_kl(VonMisesFisher, HypersphericalUniform)
def _kl_vmf_uniform(p: VonMisesFisher, q: HypersphericalUniform) -> Tensor:
    _same_dim(p.dim, q.dim)
    shape = torch.broadcast_shapes(p.batch_shape, q.batch_shape)
    return p._cast(_vmf.kl_uniform(p._kappa, p.dim)).expand(shape)


@register_kl(HypersphericalUniform, VonMisesFisher)
def _kl_uniform_vmf(p: HypersphericalUniform, q: VonMisesFisher) -> Tensor:
    _same_dim(p.dim, q.dim)
    shape = torch.broadcast_shapes(p.batch_shape, q.batch_shape)
    return q._cast(_vmf.log_hyp(q._kappa, q.dim)).expand(shape)


@register_kl(HypersphericalUniform, HypersphericalUniform)
def _kl_uniform_uniform(p: HypersphericalUniform, q: HypersphericalUniform) -> Tensor:
    _same_dim(p.dim, q.dim)
    return p._like.new_zeros(torch.broadcast_shapes(p.batch_shape, q.batch_shape))


def _same_dim(p: int, q: int) -> None:
    if p != q:
        raise ValueError(f"kl_divergence: the laws live in dimensions {p} and {q}")
