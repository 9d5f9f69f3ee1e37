"""matern where r, nu or the length scale is zero, tiny, infinite or outside the domain."""

import math
from functools import partial

import pytest
import torch

from curvkern import _runtime
from curvkern.special import matern
from matern_truth import balls, exact

EPS = 2.0**-52
F64 = torch.float64
ONE = torch.ones((), dtype=F64)


@pytest.mark.parametrize("nu", [0.6, 1.0, 1.3, 2.0, 2.5, 8.0, 40.0])
def test_one_minus_matern_at_small_distances(nu):
    """1 - M is right to the rounding of M, and M never exceeds 1."""
    r = torch.logspace(-12, -1, 60, dtype=F64)
    want = torch.tensor([float(1 - exact(nu, a)) for a in r.tolist()], dtype=F64)
    assert ((1 - matern(r, nu)) - want).abs().max() <= 16 * EPS
    assert (matern(r, nu) <= 1).all()


@pytest.mark.parametrize(
    ("nu", "slope"),
    [(0.2, -math.inf), (0.5, -1 / 0.7), (0.8, 0.0), (1.0, 0.0), (1.5, 0.0), (50.0, 0.0)],
)
def test_gradients_at_zero_distance(nu, slope):
    r, order, scale = (torch.tensor(a, dtype=F64, requires_grad=True) for a in (0.0, nu, 0.7))
    value = matern(r, order, scale)
    assert value == 1
    gradients = torch.autograd.grad(value, (r, order, scale))
    assert gradients[0].item() == pytest.approx(slope)
    assert gradients[1] == gradients[2] == 0


@pytest.mark.parametrize("nu", [0.2, 0.5, 0.8, 1.0, 1.1, 2.5, 30.0])
def test_second_derivatives_in_order_and_scale_vanish_at_zero_distance(nu):
    parameters = torch.tensor([nu, 0.7], dtype=F64)
    for r in (0.0, torch.zeros(2, dtype=F64)):
        hessian = torch.autograd.functional.hessian(
            lambda p, r=r: torch.as_tensor(matern(r, p[0], p[1])).sum(), parameters
        )
        assert (hessian == 0).all()


@pytest.mark.parametrize(
    ("nu", "twice", "with_nu", "with_scale"),
    [
        (0.2, math.inf, math.inf, math.inf),
        (0.5, 1 / 0.49, math.inf, 1 / 0.49),
        (0.8, -math.inf, 0.0, 0.0),
        (1.0, -math.inf, 0.0, 0.0),
        (1.2, -6 / 0.49, 0.0, 0.0),
        (30.0, -30 / 29 / 0.49, 0.0, 0.0),
    ],
)
@pytest.mark.parametrize("zero", [0.0, -0.0])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_second_derivatives_at_zero_distance(
    nu, twice, with_nu, with_scale, zero, backend, monkeypatch
):
    """The limits from the right; also where nobody can see which elements are zero."""
    monkeypatch.setattr(_runtime, "_BACKEND", backend)
    arguments = tuple(torch.tensor(a, dtype=F64, requires_grad=True) for a in (zero, nu, 0.7))
    (slope,) = torch.autograd.grad(matern(*arguments), arguments[0], create_graph=True)
    second = torch.stack(torch.autograd.grad(slope, arguments))
    want = torch.tensor([twice, with_nu, with_scale], dtype=F64)
    torch.testing.assert_close(second, want)
    for other in (1, 2):  # the other way round
        (slope,) = torch.autograd.grad(matern(*arguments), arguments[other], create_graph=True)
        (mixed,) = torch.autograd.grad(slope, arguments[0])
        torch.testing.assert_close(mixed, want[other])
    pair = [a.detach().expand(2) for a in arguments]
    of_slope = torch.func.grad(torch.func.grad(matern), argnums=(0, 1, 2))
    batched = torch.stack(torch.func.vmap(of_slope)(*pair))
    torch.testing.assert_close(batched, want[:, None].expand(3, 2))


@pytest.mark.parametrize("nu", [1.5, 2.5, 7.3, 30.0])
def test_curvature_at_zero_distance(nu):
    """M'' (0) = -nu / (nu - 1), the variance of the derivative of the process."""
    r = torch.zeros((), dtype=F64, requires_grad=True)
    (first,) = torch.autograd.grad(matern(r, nu), r, create_graph=True)
    (second,) = torch.autograd.grad(first, r)
    assert second.item() == pytest.approx(-nu / (nu - 1), rel=1e-12)


def test_outside_the_domain_is_nan_and_infinity_is_zero():
    nan = [
        matern(torch.tensor(-1.0), 1.5),
        matern(torch.tensor(1.0), 0.0),
        matern(torch.tensor(1.0), -2.0),
        matern(torch.tensor(1.0), 1.5, -1.0),
        matern(torch.tensor(math.nan), 1.5),
        matern(torch.tensor(0.0), math.nan),
        matern(torch.tensor(1.0), 1.5, math.nan),
    ]
    assert all(value.isnan() for value in nan)
    for nu in (0.5, 2.0, 1e3, math.inf):
        assert matern(torch.tensor(math.inf), nu) == 0
        assert matern(torch.tensor(1e300, dtype=F64), nu, 1e-300) == 0
        assert matern(torch.tensor(0.0), nu) == 1


OUTSIDE = {
    "r": (-1.0, 1.5, 0.7),
    "nu": (1.0, -1.5, 0.7),
    "nu zero": (0.0, 0.0, 0.7),
    "lengthscale": (1.0, 1.5, -0.7),
    "lengthscale zero": (1.0, 1.5, 0.0),
    "nan": (math.nan, 1.5, 0.7),
}


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("bad", OUTSIDE)
def test_derivatives_are_nan_where_the_value_is(bad, dtype):
    """Whether the batch is looked at or not, and only there."""
    rows = torch.tensor(
        [OUTSIDE[bad], (0.5, 1.5, 0.7), (0.0, 1.5, 0.7), (math.inf, 2.0, 0.7)], dtype=dtype
    )
    columns = [column.clone().requires_grad_() for column in rows.T]
    outside = torch.tensor([True, False, False, False])
    value = matern(*columns)
    gradients = torch.autograd.grad(value.sum(), columns, create_graph=True)
    assert torch.equal(value.isnan(), outside)
    for gradient in gradients:
        assert torch.equal(gradient.isnan(), outside)
    for second in torch.autograd.grad(gradients[0].sum(), columns):
        assert torch.equal(second.isnan(), outside)
    batched = torch.func.vmap(torch.func.grad(matern, argnums=(0, 1, 2)))(*rows.T)
    for gradient, want in zip(batched, gradients, strict=True):
        torch.testing.assert_close(gradient, want.detach(), equal_nan=True)


@pytest.mark.parametrize("bad", OUTSIDE)
def test_gradient_is_nan_where_every_value_is(bad):
    arguments = [torch.tensor([a], requires_grad=True) for a in OUTSIDE[bad]]
    matern(*arguments).sum().backward()
    assert all(a.grad.isnan() for a in arguments)


def test_arguments_whose_scaled_distance_underflows():
    """z = sqrt(2 nu) r / l is 1e-450, and 1 - M nearly 1 all the same."""
    assert abs(matern(1e-300, 1e-300)) <= 4 * EPS
    assert matern(1e-200, 1e-250) == pytest.approx(float(exact(1e-250, 1e-200)), abs=4 * EPS)
    r = torch.tensor(1e-300, dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(matern(r, 1e-300), r)
    assert gradient.isfinite()


@pytest.mark.parametrize("nu", [14.57, 30.0, 200.0])
@pytest.mark.parametrize("r", [3.39e-12, 1e-7, 1e-3])
def test_order_gradient_is_relatively_right_at_tiny_distances(nu, r):
    order = torch.tensor(nu, dtype=F64, requires_grad=True)
    (got,) = torch.autograd.grad(matern(r, order), order)
    assert got.item() == pytest.approx(float(balls(nu, r)["dv"]), rel=4 * nu * EPS, abs=0)


@pytest.mark.parametrize(
    ("dtype", "distances"),
    [(F64, (1e-280, 1e-290, 1e-300, 1e-308)), (torch.float32, (1e-30, 1e-34, 1.2e-38))],
)
@pytest.mark.parametrize("nu", [0.3, 0.45, 0.5, 0.55])
def test_slope_at_the_smallest_distances(nu, dtype, distances):
    """dM/dr ~ -2 nu Gamma(1-nu)/Gamma(1+nu) (nu/2)^nu r^(2 nu - 1), and its own slope."""
    r = torch.tensor(distances, dtype=dtype, requires_grad=True)
    value = matern(r, nu)
    (slope,) = torch.autograd.grad(value.sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), r)
    exponent = 2 * float(torch.tensor(nu, dtype=dtype)) - 1
    order = (exponent + 1) / 2
    factor = -2 * order * math.gamma(1 - order) / math.gamma(1 + order) * (order / 2) ** order
    want = factor * r.detach().double() ** exponent
    tolerance = 200 * torch.finfo(dtype).eps  # of the power
    torch.testing.assert_close(slope.detach().double(), want, rtol=tolerance, atol=0)
    if nu == 0.5:
        torch.testing.assert_close(second, torch.ones_like(r))


@pytest.mark.parametrize(
    ("nu", "r"), [(2.39, 1.6e-6), (1.7, 1e-3), (2.5, 0.01), (0.999, 1e-5), (8.0, 0.05)]
)
def test_order_gradient_is_relatively_right_at_small_distances(nu, r):
    order = torch.tensor(nu, dtype=F64, requires_grad=True)
    (got,) = torch.autograd.grad(matern(r, order), order)
    assert got.item() == pytest.approx(float(balls(nu, r)["dv"]), rel=1e-11, abs=0)


@pytest.mark.parametrize(
    ("dtype", "tiny", "large"), [(F64, 1e-300, 1e10), (torch.float32, 1e-30, 1e10)]
)
def test_gradients_of_tiny_orders(dtype, tiny, large):
    """M ~ 2 nu K_0(z): its slope in nu is finite whatever rho / nu is."""
    nu = torch.tensor(tiny, dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(matern(torch.tensor(large, dtype=dtype), nu), nu)
    z = math.log(2) - 0.5772156649015329 - math.log(large) - math.log(2 * tiny) / 2
    assert slope.item() == pytest.approx(2 * z - 1, rel=1e-4)


def test_far_away_everything_is_zero():
    for dtype, far in ((F64, 1e120), (torch.float32, 1e13)):
        for nu in (0.7, 20.0, 1e30):
            r, order = (torch.tensor(a, dtype=dtype, requires_grad=True) for a in (far, nu))
            (slope,) = torch.autograd.grad(matern(r, order), r, create_graph=True)
            seconds = torch.autograd.grad(slope, (r, order))
            assert slope == 0
            assert all(second == 0 for second in seconds)


def test_length_scales_at_the_ends():
    for length in (math.inf, 1e-170):
        arguments = [torch.tensor(a, dtype=F64, requires_grad=True) for a in (0.0, 1.5, length)]
        value = matern(*arguments)
        assert value == 1
        gradients = torch.autograd.grad(value, arguments)
        assert all(gradient == 0 for gradient in gradients)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_forward_mode_at_zero_distance(backend, monkeypatch):
    """Compiled code multiplies an infinite slope in r by a tangent of zero, as documented."""
    monkeypatch.setattr(_runtime, "_BACKEND", backend)
    for nu, slope in ((0.3, -math.inf), (0.5, -2.0), (1.5, 0.0)):
        arguments = {"r": 0.0, "nu": nu, "lengthscale": 0.5}
        tangents = []
        for name, number in arguments.items():
            at = partial(matern, **{k: a for k, a in arguments.items() if k != name})
            moved = torch.tensor(number, dtype=F64)
            move = torch.func.jvp(lambda a, at=at, name=name: at(**{name: a}), (moved,), (ONE,))
            tangents.append(move[1].item())
        in_scale = math.nan if backend == "native" and nu < 0.5 else 0.0
        assert tangents == pytest.approx([slope, 0.0, in_scale], nan_ok=True)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_positive_parameters_that_underflow(backend, monkeypatch):
    """1e-46 is 0 in float32, and positive all the same."""
    monkeypatch.setattr(_runtime, "_BACKEND", backend)
    wide = torch.tensor(1e-46, dtype=F64, requires_grad=True)
    for dtype, tiny in ((torch.float32, 1e-46), (torch.float16, 1e-300), (torch.float32, wide)):
        r = torch.tensor([0.0, 1.0], dtype=dtype)
        for value in (matern(r, 1.5, tiny), matern(r, tiny, 0.7)):
            assert value.dtype == dtype
            torch.testing.assert_close(value.detach(), torch.tensor([1.0, 0.0], dtype=dtype))
    (slope,) = torch.autograd.grad(matern(r, 1.5, wide).sum(), wide)
    assert slope == 0
    assert matern(torch.ones(1), 1.5, 0.0).isnan()
    assert matern(torch.ones(1), 1.5, -1e-46).isnan()
