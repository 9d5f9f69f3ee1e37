"""Potentials and maps at points that were not solved for; warm starts of the losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from curvkern import ConvergenceWarning, ot
from curvkern.reference.costs import cost_matrix

TOL = 1e-13
WIDE = {"dtype": torch.float64}


def clouds(*batch: int) -> tuple[Tensor, Tensor, Tensor]:
    x, y = torch.rand(*batch, 6, 3, **WIDE), torch.rand(*batch, 5, 3, **WIDE) + 0.3
    return x, y, torch.rand(*batch, 4, 3, **WIDE) + 0.1


@pytest.mark.parametrize("kind", ["sqeuclidean", "half_sqeuclidean", "euclidean", "l1"])
@pytest.mark.parametrize("rho", [None, (0.4, 0.9)])
def test_dense_sums(kind: str, rho: tuple[float, float] | None) -> None:
    x, y, new = clouds()
    b = torch.tensor([0.3, 0.0, 0.2, 0.4, 0.1], **WIDE)
    result = ot.sinkhorn_points(x, y, 0.1, b=b, cost=kind, scale=2.0, rho=rho, tol=TOL)

    def exponents(points: Tensor, others: Tensor, potential: Tensor) -> Tensor:
        return (potential - 2 * cost_matrix(points[None], others[None], kind)[0]) / 0.1

    soft = (1.0, 1.0) if rho is None else (1 + 0.1 / rho[0], 1 + 0.1 / rho[1])
    to_y, to_x = exponents(new, y, result.g), exponents(new, x, result.f)
    f, g = -0.1 * torch.logsumexp(to_y + b.log(), 1), -0.1 * torch.logsumexp(to_x, 1)
    assert_close(result.potential_f(new), f / soft[0], rtol=1e-12, atol=1e-13)
    g = g + 0.1 * np.log(6)
    assert_close(result.potential_g(new), g / soft[1], rtol=1e-12, atol=1e-13)
    assert_close(result.transport(new), (to_y + b.log()).softmax(1) @ y)
    assert_close(result.transport(new, transpose=True), to_x.softmax(1) @ x)


def test_at_the_points_of_the_result() -> None:
    x, y, _ = clouds(2)
    a = torch.rand(6, **WIDE).softmax(0)
    result = ot.sinkhorn_points(x, y, torch.tensor([0.1, 1e-3], **WIDE), a=a, tol=TOL)
    assert_close(result.potential_f(x), result.f, rtol=0, atol=1e-11)
    assert_close(result.potential_g(y), result.g, rtol=0, atol=1e-11)
    assert_close(result.transport(x), result.apply(y) / a[:, None], rtol=1e-9, atol=1e-10)
    assert_close(result.transport(x[0])[0], result.transport(x)[0])  # one cloud for the batch


def test_gaussians() -> None:
    """N(0, s^2) to N(m, t^2): an affine map, of slope c / s^2, c the covariance of the plan.

    Janati, Muzellec, Peyre, Cuturi, NeurIPS 2020, theorem 1 with eps = 2 sigma^2. On a grid, on
    which sums of Gaussians are exact integrals.
    """
    s, t, m, eps = 0.8, 1.3, 0.5, 0.7
    grid = torch.linspace(-12, 12, 241, **WIDE)
    a, b = ((-((grid - p) ** 2) / (2 * q * q)).exp() for p, q in ((0.0, s), (m, t)))
    points = grid[:, None]
    result = ot.sinkhorn_points(points, points, eps, a=a / a.sum(), b=b / b.sum(), tol=TOL)
    c = np.sqrt(eps**2 / 16 + (s * t) ** 2) - eps / 4
    new = torch.tensor([-1.23, -0.4, 0.017, 0.9, 2.05], **WIDE)[:, None]
    assert_close(result.transport(new), m + c / s**2 * new, rtol=0, atol=1e-9)
    back = c / t**2 * (new - m)
    assert_close(result.transport(new, transpose=True), back, rtol=0, atol=1e-9)
    f = result.potential_f(new) - result.potential_f(torch.zeros(1, 1, **WIDE))
    x = new[:, 0]
    assert_close(f, (1 - c / s**2) * x**2 - 2 * m * x, rtol=0, atol=1e-8)


def test_the_map_is_the_gradient_of_the_potential() -> None:
    x, y, new = clouds()
    new.requires_grad_()
    result = ot.sinkhorn_points(x, y, 1e-3)
    (slope,) = torch.autograd.grad(result.potential_f(new).sum(), new)
    assert_close(result.transport(new), new - slope / 2)


def test_far_points() -> None:
    """Where every term of the sum underflows, if it is not taken relative to the largest."""
    x, y, _ = clouds()
    result = ot.sinkhorn_points(x, y, 1e-4)
    far = torch.tensor([[1e3, 0.0, 0.0]], **WIDE)
    cost = ((far - y) ** 2).sum(1)
    nearest = (cost - result.g).argmin()
    assert_close(result.transport(far)[0], y[nearest])
    expected = cost[nearest] - result.g[nearest] + 1e-4 * np.log(5)
    assert_close(result.potential_f(far)[0], expected)


@pytest.mark.parametrize("name", ["potential_f", "potential_g", "transport"])
def test_derivatives(name: str) -> None:
    x, y, new = (t[:3] for t in clouds())
    inputs = [t.clone().requires_grad_() for t in (x, y, new, torch.tensor(0.3, **WIDE))]

    def function(x: Tensor, y: Tensor, new: Tensor, eps: Tensor) -> Tensor:
        return getattr(ot.sinkhorn_points(x, y, eps, tol=TOL), name)(new)

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True, atol=1e-4)
    mapped = torch.func.vmap(function, (None, None, 0, None))(x, y, new[:, None], inputs[3])
    assert_close(mapped[:, 0], function(x, y, new, inputs[3]))


def test_kinds_and_refusals() -> None:
    x, y, new = clouds()
    narrow = ot.sinkhorn_points(x.float(), y.float(), 0.1)
    assert narrow.potential_f(new).dtype == torch.float32
    arrays = ot.sinkhorn_points(x.numpy(), y.numpy(), 0.1)
    assert isinstance(arrays.transport(new.numpy()), np.ndarray)
    result = ot.sinkhorn_points(x, y, 0.1)
    with pytest.raises(
        ValueError, match=r"transport: x must have shape \(k, 3\), got \(4, 2\)"
    ):
        result.transport(new[:, :2])
    with pytest.raises(ValueError, match=r"potential_f: x must have shape"):
        result.potential_f(new[None])
    with pytest.raises(TypeError, match=r"potential_g: y must be a floating tensor, got list"):
        result.potential_g(new.tolist())
    matrix = ot.sinkhorn(None, None, torch.eye(3), 0.1)
    with pytest.raises(ValueError, match="transport: the result is of a matrix of costs"):
        matrix.transport(new)


def test_points_from_which_there_is_no_way() -> None:
    """Not the mean of y, which is what the bounded exponentials of NaN sum to."""
    x, y, new = clouds()
    result = ot.sinkhorn_points(x, y, 0.1)
    for bad in (torch.nan, torch.inf):
        new[1, 2] = bad
        for name in ("potential_f", "transport"):
            with pytest.raises(ValueError, match=f"{name}: x must be finite, got nan or inf"):
                getattr(result, name)(new)
    new[1, 2] = torch.nan
    mapped = torch.func.vmap(result.transport)(new[:, None])[:, 0]
    assert mapped.isnan().any(1).tolist() == [False, True, False, False]
    new[1, 2] = 1e200
    assert result.transport(new).isnan().any(1).tolist() == [False, True, False, False]
    assert torch.isposinf(result.potential_f(new)[1])


@pytest.mark.parametrize("name", ["potential_f", "potential_g", "transport", "apply"])
def test_refused_layouts_and_devices(name: str) -> None:
    x, y, _ = clouds()
    function = getattr(ot.sinkhorn_points(x, y, 0.1), name)
    with pytest.raises(TypeError, match=rf"{name}: . has layout torch.sparse_coo"):
        function(y.to_sparse())
    with pytest.raises(ValueError, match=rf"{name}: the result is on cpu but . is on meta"):
        function(y.to("meta"))


def test_warm_starts_of_the_losses() -> None:
    x, y, _ = clouds()
    few = {"max_iter": 60, "method": "sinkhorn", "tol": 1e-12}
    loss = ot.SamplesLoss(blur=0.1, **few)
    start = ot.sinkhorn_points(x, y, 0.01, tol=1e-12)
    half = ot.sinkhorn_points(x, y, 0.01, cost="half_sqeuclidean", tol=1e-12)

    def divergence(**options: object) -> Tensor:
        return ot.sinkhorn_divergence(x, y, 0.01, **few, **options)

    def samples(**options: object) -> Tensor:
        return loss(x, y, **options)

    for function, init in ((divergence, start), (samples, half)):
        with pytest.warns(ConvergenceWarning):
            function()
        expected = function(init=init)  # does not warn
        assert_close(function(init=(init.f, init.g)), expected, rtol=1e-10, atol=0)
    full = ot.sinkhorn_divergence(x, y, 0.01, tol=1e-12)
    assert_close(ot.sinkhorn_divergence(x, y, 0.01, tol=1e-12, init=start), full)
    with pytest.raises(ValueError, match="sinkhorn_divergence: f of init has shape"):
        ot.sinkhorn_divergence(x, y, 0.01, init=(y[:, 0], x[:, 0]))
    with pytest.raises(TypeError, match="SamplesLoss: init must be an OTResult or a pair"):
        loss(x, y, init=3)
