"""The uniform law on the unit sphere."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from .._arguments import memory_error
from ._arguments import (
    Shape,
    as_shape,
    at_least_float32,
    expanded_shape,
    require_dim,
    require_floating,
    require_point,
    unit_vector,
)
from ._concentration import log_area
from ._sampling import unit_noise


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

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = unit_vector
    has_rsample = True

    def __init__(
        self,
        dim: int,
        batch_shape: Shape = (),
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.dim = require_dim("HypersphericalUniform", dim)
        self._like = torch.empty((), dtype=dtype, device=device)
        require_floating("HypersphericalUniform", dtype=self._like)
        shape = as_shape("HypersphericalUniform", "batch_shape", batch_shape)
        super().__init__(shape, torch.Size([self.dim]), validate_args)

    def __repr__(self) -> str:
        batch = f", batch_shape: {tuple(self.batch_shape)}" if self.batch_shape else ""
        return f"HypersphericalUniform(dim: {self.dim}{batch})"

    def expand(self, batch_shape: Shape, _instance: Any = None) -> HypersphericalUniform:
        new = self._get_checked_instance(HypersphericalUniform, _instance)
        new.dim, new._like = self.dim, self._like
        super(HypersphericalUniform, new).__init__(
            expanded_shape(self, batch_shape), self.event_shape, validate_args=False
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
        require_point(self, value)
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return value.new_full(shape, -log_area(self.dim))

    def entropy(self) -> Tensor:
        return self._like.new_full(self.batch_shape, log_area(self.dim))

    def rsample(
        self, sample_shape: Shape = (), generator: torch.Generator | None = None
    ) -> Tensor:
        """Samples of shape sample_shape + batch_shape + (d,), random by `generator`."""
        dtype = self._like.dtype
        wide = at_least_float32(dtype)
        sample_shape = as_shape("HypersphericalUniform", "sample_shape", sample_shape)
        shape = self._extended_shape(sample_shape)
        try:
            return unit_noise(shape, self._like, generator, wide).to(dtype)
        except RuntimeError as error:
            raise memory_error("HypersphericalUniform", shape, error) from None

    def sample(
        self, sample_shape: Shape = (), generator: torch.Generator | None = None
    ) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape, generator)
