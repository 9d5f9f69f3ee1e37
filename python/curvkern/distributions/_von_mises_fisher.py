"""The von Mises-Fisher law."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from .._arguments import checked, memory_error
from . import _fitting, _sampling
from ._arguments import (
    Shape,
    as_shape,
    at_least_float32,
    expanded_shape,
    finite_nonnegative,
    require_finite_nonnegative,
    require_floating,
    require_point,
    require_unit_vectors,
    unit_vector,
)
from ._concentration import deficit, kl_uniform, log_area, log_hyp, resultant


class VonMisesFisher(Distribution):
    r"""Von Mises-Fisher law on the unit sphere of :math:`R^d`.

    .. math::
        p(x) = C_d(\kappa)\, e^{\kappa \mu\cdot x}, \qquad
        C_d(\kappa) = \frac{\kappa^{d/2-1}}{(2\pi)^{d/2} I_{d/2-1}(\kappa)}

    Right for every d >= 2 and kappa >= 0: at d = 2 (von Mises) and in 32768 dimensions, at
    kappa = 0 (the uniform law), 1e-12 and 1e8.

    Parameters
    ----------
    loc : Tensor, shape (..., d)
        Mean direction mu, unit vectors.
    concentration : Tensor or number, shape (...)
        Concentration kappa >= 0, finite; broadcasts against the batch shape of `loc`. Numbers
        and integer tensors take the dtype of `loc`.
    validate_args : bool, optional
        Whether values are looked at; torch's default if not given, which torch.compile turns
        off.

    Raises
    ------
    TypeError
        `loc` no real floating tensor, `concentration` neither a real tensor nor a number.
    ValueError
        d < 2; with `validate_args`, loc not of norm one, concentration negative or not finite.

    Notes
    -----
    `rsample` is reparameterised. In loc: the sample is cos(theta) mu + sin(theta) n with n a
    Householder image of noise, smooth in mu. In the concentration: the angle theta comes from
    Ulrich's and Wood's rejection scheme [1]_ and gets the implicit derivative [2]_
    dtheta/dkappa = -(dF/dkappa) / f, F the distribution function and f the density of theta, so
    the gradient is unbiased without a score-function correction. Gradients can be
    differentiated again.

    `log_prob`, `entropy` and `kl_divergence` work under ``torch.compile(fullgraph=True)`` and
    ``torch.func.vmap``. `sample`, `rsample` and `fit` decide by the data how long they work, so
    they do neither.

    References
    ----------
    .. [1] A. Wood, "Simulation of the von Mises Fisher distribution", Commun. Stat. 23 (1994).
    .. [2] M. Figurnov, S. Mohamed, A. Mnih, "Implicit reparameterization gradients",
       NeurIPS 2018.
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

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": unit_vector,
        "concentration": finite_nonnegative,
    }
    support = unit_vector
    has_rsample = True

    def __init__(
        self, loc: Tensor, concentration: Tensor | float, validate_args: bool | None = None
    ) -> None:
        require_floating("VonMisesFisher", loc=loc)
        kappa = checked("VonMisesFisher", "concentration", concentration)
        if not isinstance(kappa, Tensor):
            kappa = loc.new_tensor(kappa)
        elif not kappa.is_floating_point():
            kappa = kappa.to(loc.dtype)
        if loc.dim() < 1 or loc.shape[-1] < 2:
            raise ValueError(
                "VonMisesFisher: loc must have shape (..., d) with d >= 2, "
                f"got {tuple(loc.shape)}"
            )
        if loc.device != kappa.device:
            raise ValueError(
                f"VonMisesFisher: loc is on {loc.device} but concentration on {kappa.device}"
            )
        try:
            batch_shape = torch.broadcast_shapes(loc.shape[:-1], kappa.shape)
        except RuntimeError:
            raise ValueError(
                f"VonMisesFisher: loc has batch shape {tuple(loc.shape[:-1])} "
                f"but concentration has shape {tuple(kappa.shape)}"
            ) from None
        dtype = torch.promote_types(loc.dtype, kappa.dtype)
        self.dim = loc.shape[-1]
        self.loc = loc.to(dtype).expand((*batch_shape, self.dim))
        self.concentration = kappa.to(dtype).expand(batch_shape)
        super().__init__(batch_shape, torch.Size([self.dim]), validate_args=False)
        self._validate_args = (
            Distribution._validate_args if validate_args is None else validate_args
        )
        if self._validate_args:
            require_unit_vectors("VonMisesFisher", "loc", loc)
            require_finite_nonnegative("VonMisesFisher", "concentration", kappa)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> VonMisesFisher:
        """The same law with a larger batch shape; its parameters are views.

        Parameters
        ----------
        batch_shape : sequence of int
            What the present batch shape broadcasts to, else ValueError.
        """
        new = self._get_checked_instance(VonMisesFisher, _instance)
        batch_shape = expanded_shape(self, batch_shape)
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
        length = self._cast(resultant(self._kappa, self.dim).mean)
        return length[..., None] * self.loc

    @property
    def variance(self) -> Tensor:
        """Variance of each coordinate, the diagonal of `covariance_matrix`."""
        at = resultant(self._kappa, self.dim)
        across, along = self._cast(at.quotient)[..., None], self._cast(at.slope)[..., None]
        return across * (1 - self.loc**2) + along * self.loc**2

    @property
    def covariance_matrix(self) -> Tensor:
        """(A / kappa) (I - mu mu^T) + A' mu mu^T, shape (..., d, d)."""
        at = resultant(self._kappa, self.dim)
        across, along = self._cast(at.quotient), self._cast(at.slope)
        outer = self.loc[..., :, None] * self.loc[..., None, :]
        eye = torch.eye(self.dim, dtype=self.loc.dtype, device=self.loc.device)
        return across[..., None, None] * (eye - outer) + along[..., None, None] * outer

    @property
    def log_normalizer(self) -> Tensor:
        """log C_d(kappa), so that log p(x) = kappa mu.x + log_normalizer."""
        return self._cast(-log_area(self.dim) - log_hyp(self._kappa, self.dim))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density with respect to the area of the sphere, shape sample_shape + batch_shape.

        Evaluated as kappa (mu.x - 1) + (kappa + log C) with mu.x - 1 = -|x - mu|^2 / 2: a large
        kappa then multiplies no rounding error of mu.x. Its gradients are those of kappa mu.x.

        Parameters
        ----------
        value : Tensor, shape (..., d)
            Unit vectors; broadcasts against the batch shape.

        Raises
        ------
        TypeError
            `value` no real floating tensor.
        ValueError
            A shape that does not fit; with `validate_args`, vectors not of norm one.

        Examples
        --------
        >>> import torch
        >>> from curvkern.distributions import VonMisesFisher
        >>> law = VonMisesFisher(torch.tensor([0.0, 0.0, 1.0]), 10.0)
        >>> law.log_prob(torch.eye(3))
        tensor([-9.5353, -9.5353,  0.4647])
        """
        require_point(self, value)
        wide = at_least_float32(self.loc.dtype)
        x, mu = value.to(torch.promote_types(value.dtype, wide)), self.loc.to(wide)
        squares = (x * x).sum(-1) + (mu * mu).sum(-1)
        radial = (squares - squares.detach()) / 2  # zero, but for its gradient
        cos_minus_one = radial - ((x - mu) ** 2).sum(-1) / 2
        peak = deficit(self._kappa, self.dim) - log_area(self.dim)
        return (self.concentration * cos_minus_one + peak.to(x.dtype)).to(
            torch.promote_types(value.dtype, self.loc.dtype)
        )

    def entropy(self) -> Tensor:
        """-E log p = log|S| - KL(p || uniform)."""
        return self._cast(log_area(self.dim) - kl_uniform(self._kappa, self.dim))

    def rsample(
        self, sample_shape: Shape = (), generator: torch.Generator | None = None
    ) -> Tensor:
        """Reparameterised samples; how, and what cannot trace it, is in the class notes.

        Parameters
        ----------
        sample_shape : sequence of int
            Leading shape: how many samples of each law.
        generator : torch.Generator, optional
            Source of randomness, on the device of `loc`. The global one is used if it is not
            given, and left alone if it is.

        Returns
        -------
        Tensor, shape sample_shape + batch_shape + (d,)
            Unit vectors of the dtype of `loc`, differentiable in `loc` and `concentration`.

        Raises
        ------
        TypeError, ValueError
            `sample_shape` no sequence of non-negative integers.
        MemoryError
            More samples than fit into memory.
        NotImplementedError
            Parameters on the meta device.

        Examples
        --------
        The derivative of a mean over samples, which is A'(10) = 0.01 but for chance:

        >>> import torch
        >>> from curvkern.distributions import VonMisesFisher
        >>> kappa = torch.tensor(10.0, requires_grad=True)
        >>> law = VonMisesFisher(torch.tensor([0.0, 0.0, 1.0]), kappa)
        >>> x = law.rsample((1000,), generator=torch.Generator().manual_seed(0))
        >>> x[:, 2].mean().backward()
        >>> print(f"{kappa.grad.item():.2f}")
        0.01
        """
        if self.loc.is_meta:
            raise NotImplementedError(
                "VonMisesFisher: samples are accepted or rejected by their values, and tensors "
                "on the meta device have none"
            )
        sample_shape = as_shape("VonMisesFisher", "sample_shape", sample_shape)
        shape = self._extended_shape(sample_shape)
        try:
            return self._draw(shape, generator)
        except RuntimeError as error:
            raise memory_error("VonMisesFisher", shape, error) from None

    def _draw(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        kappa = self._kappa.expand(shape[:-1])
        with torch.no_grad():
            theta = _sampling.sample_angle(kappa.reshape(-1), self.dim, generator).reshape(
                shape[:-1]
            )
            wide = at_least_float32(self.loc.dtype)
            noise = _sampling.unit_noise((*shape[:-1], self.dim - 1), self.loc, generator, wide)
        theta = _sampling.ImplicitAngle.apply(theta, kappa, self.dim)
        mu = self.loc.to(wide)
        tangent = _sampling.to_tangent(noise, mu)
        along, across = torch.cos(theta).to(wide), torch.sin(theta).to(wide)
        return self._cast(along[..., None] * mu + across[..., None] * tangent)

    def sample(
        self, sample_shape: Shape = (), generator: torch.Generator | None = None
    ) -> Tensor:
        """Samples without a graph; parameters, result and errors are those of `rsample`."""
        with torch.no_grad():
            return self.rsample(sample_shape, generator)

    @classmethod
    def fit(cls, x: Tensor, weights: Tensor | None = None) -> VonMisesFisher:
        r"""Maximum likelihood from unit vectors.

        The direction is that of the weighted mean m, the concentration solves
        :math:`A_d(\kappa) = |m|`. 1 - |m| is taken from the distances to the mean direction, so
        that a tight cluster loses no digits.

        Parameters
        ----------
        x : Tensor, shape (..., n, d)
            Unit vectors; a tensor, not a NumPy array.
        weights : Tensor, shape (..., n), optional
            Non-negative weights, of which only the ratios count. Extra leading dimensions
            become the batch shape of the result: with x of shape (n, d) and weights (k, n), the
            k components of a mixture are fitted at once.

        Returns
        -------
        VonMisesFisher
            With the batch shape of x and weights. Differentiable in x and weights. The
            likelihood of points that coincide grows without bound, so 1 - |m| is taken to be at
            least eps^2 / 4, and they give kappa = 2 (d - 1) / eps^2: 1.4e14 (d - 1) in float32,
            4.1e31 (d - 1) in float64.

        Raises
        ------
        TypeError
            x or weights not a real floating tensor.
        ValueError
            No points, d < 2, x not unit vectors (or NaN), weights of the wrong shape, negative,
            not finite, or with zero sum.

        Examples
        --------
        >>> import torch
        >>> from curvkern.distributions import VonMisesFisher
        >>> x = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.6, 0.0, 0.8]])
        >>> law = VonMisesFisher.fit(x, weights=torch.tensor([2.0, 1.0, 1.0]))
        >>> law.loc
        tensor([0.9428, 0.2357, 0.2357])
        >>> law.concentration
        tensor(6.6017)
        """
        loc, kappa = _fitting.estimate(x, weights)
        return cls(loc, kappa, validate_args=False)
