"""The log-Bessel functions: truth, identities, limits (cases R10, R11, R12, R25)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from bessel_truth import (
    EDGES,
    FIRST,
    FUNCTIONS,
    LOGARITHMS,
    RATIOS,
    SECOND,
    Points,
    logarithm_error,
    points,
    relative_error,
    worst,
)
from curvkern import special

#: Largest and median error, in eps of the dtype. Logarithms: relative to max(1, |log|) after an
#: allowance of 64 eps^2 max(v, x). All else: relative to the truth or to its FLOOR.
ACCURACY = {
    "logarithm": (2.0, 0.3),
    "scaled logarithm": (2.0, 0.3),
    "log_hyp0f1": (4.0, 0.5),
    "ratio": (2.0, 0.5),
    "first derivative": (8.0, 1.0),  # of log_iv and log_kv
    "other first derivative": (64.0, 1.0),
    "second derivative": (128.0, 1.0),
}

#: Row of ACCURACY for the values of each function.
VALUE = {
    "log_iv": "logarithm",
    "log_kv": "logarithm",
    "log_ive": "scaled logarithm",
    "log_kve": "scaled logarithm",
    "log_hyp0f1": "log_hyp0f1",
    "iv_ratio": "ratio",
    "kv_ratio": "ratio",
}

#: What a derivative is a difference of, where that is larger than the derivative itself.
FLOOR = {
    ("log_ive", "dx"): lambda at: at.v / at.x,
    ("log_kv", "dvv"): lambda at: np.log(np.minimum(at.x, 1)) ** 2,
}

EPS = torch.finfo(torch.float64).eps
DTYPES = [torch.float64, torch.float32]
both_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])


def function(name: str):
    return getattr(special, name)


def floor(name: str, variables: str, at: Points) -> np.ndarray | float:
    with np.errstate(over="ignore"):
        return FLOOR[name, variables](at) if (name, variables) in FLOOR else 0.0


def check(error: np.ndarray, at: Points, quantity: str) -> None:
    largest, median = ACCURACY[quantity]
    assert error.max() <= largest, worst(error, at)
    assert np.median(error) <= median


# Against the truth --------------------------------------------------------------------------


@both_dtypes
@pytest.mark.parametrize("name", LOGARITHMS)
def test_logarithm(name: str, dtype: torch.dtype) -> None:
    at = points(dtype)
    result = function(name)(*at.tensors(dtype))
    assert result.dtype is dtype
    check(logarithm_error(result, name, at), at, VALUE[name])


@both_dtypes
@pytest.mark.parametrize("name", RATIOS)
def test_ratio(name: str, dtype: torch.dtype) -> None:
    at = points(dtype)
    check(relative_error(function(name)(*at.tensors(dtype)), name, at), at, "ratio")


@both_dtypes
def test_log_hyp0f1(dtype: torch.dtype) -> None:
    at = points(dtype)
    result = special.log_hyp0f1(*at.tensors(dtype))
    check(relative_error(result, "log_hyp0f1", at), at, "log_hyp0f1")


@both_dtypes
@pytest.mark.parametrize(("name", "variable"), FIRST)
def test_first_derivative(name: str, variable: str, dtype: torch.dtype) -> None:
    at = points(dtype)
    v, x = at.tensors(dtype)
    wanted = (v if variable == "dv" else x).requires_grad_()
    (result,) = torch.autograd.grad(function(name)(v, x).sum(), wanted)
    error = relative_error(result, FIRST[name, variable], at, floor(name, variable, at))
    quantity = "first derivative" if name in ("log_iv", "log_kv") else "other first derivative"
    check(error, at, quantity)


@both_dtypes
@pytest.mark.parametrize(("name", "variables"), SECOND)
def test_second_derivative(name: str, variables: str, dtype: torch.dtype) -> None:
    at = points(dtype)
    v, x = (t.requires_grad_() for t in at.tensors(dtype))
    outer = {"v": v, "x": x}[variables[1]]
    inner = {"v": v, "x": x}[variables[2]]
    (slope,) = torch.autograd.grad(function(name)(v, x).sum(), outer, create_graph=True)
    (result,) = torch.autograd.grad(slope.sum(), inner)
    error = relative_error(result, SECOND[name, variables], at, floor(name, variables, at))
    check(error, at, "second derivative")


def test_second_derivatives_of_the_ratios_against_arb() -> None:
    """Central differences at 700 bits. Riccati's equation would cancel at both ends of x."""
    flint = pytest.importorskip("flint", reason="python-flint is not installed")
    orders, arguments = [0.0, 0.3, 2.5, 31.0, 1e4], [1e-8, 1e-3, 0.5, 5.0, 40.0, 1e3, 1e7]
    grid = [(v, x) for v in orders for x in arguments if v < 1e3 or x > 1]
    v, x = (
        torch.tensor(t, dtype=torch.float64, requires_grad=True)
        for t in zip(*grid, strict=True)
    )
    dv, dx = torch.autograd.grad(special.iv_ratio(v, x).sum(), (v, x), create_graph=True)
    vv, vx = torch.autograd.grad(dv.sum(), (v, x), retain_graph=True)
    (xx,) = torch.autograd.grad(dx.sum(), x)

    def ratio(order, argument):
        return argument.bessel_i(order + 1) / argument.bessel_i(order)

    with flint.ctx.workprec(700):
        for k, (order, argument) in enumerate(grid):
            a, b = flint.arb(order), flint.arb(argument)
            h = flint.arb(2) ** -80
            step = b * h
            at = {
                (i, j): ratio(a + i * h, b + j * step) for i in (-1, 0, 1) for j in (-1, 0, 1)
            }
            truth = (
                (at[1, 0] - 2 * at[0, 0] + at[-1, 0]) / h**2,
                (at[1, 1] - at[1, -1] - at[-1, 1] + at[-1, -1]) / (4 * h * step),
                (at[0, 1] - 2 * at[0, 0] + at[0, -1]) / step**2,
            )
            for got, want in zip((vv[k], vx[k], xx[k]), truth, strict=True):
                scale = max(abs(float(want.mid())), 1e-290)
                assert abs(float(got) - float(want.mid())) <= 64 * EPS * scale, (
                    order,
                    argument,
                )


@pytest.mark.parametrize(
    ("orders", "arguments"),
    [
        ((0, 1), (1e-7, 60)),
        ((0, 15), (1e-3, 30)),
        ((0, 150), (1, 150)),
        ((0, 1e6), (1e-3, 1e6)),
    ],
    ids=["low", "middle", "b", "wide"],
)
def test_float32_over_many_random_points(orders: tuple, arguments: tuple) -> None:
    """Against float64, which is exact beside it: the bar holds at every one of them."""
    generator = torch.Generator().manual_seed(1)
    v, u = (torch.rand(1 << 17, generator=generator, dtype=torch.float64) for _ in range(2))
    v = (orders[0] + v * (orders[1] - orders[0])).float()
    x = (arguments[0] * (arguments[1] / arguments[0]) ** u).float()
    for name in LOGARITHMS:
        single, double = function(name)(v, x), function(name)(v.double(), x.double())
        error = (single.double() - double).abs() / double.abs().clamp_min(1)
        largest, _ = ACCURACY["logarithm"]
        k = int(error.argmax())
        assert error[k] <= largest * torch.finfo(torch.float32).eps, (name, v[k], x[k])


def test_mixed_second_derivatives_agree() -> None:
    v, x = (t.requires_grad_() for t in points(torch.float64).tensors(torch.float64))
    for name in ("log_iv", "log_kv", "log_hyp0f1"):
        dv, dx = torch.autograd.grad(function(name)(v, x).sum(), (v, x), create_graph=True)
        (dvx,) = torch.autograd.grad(dv.sum(), x, retain_graph=True)
        (dxv,) = torch.autograd.grad(dx.sum(), v)
        assert torch.equal(dvx, dxv)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", LOGARITHMS)
def test_half_precision_is_within_one_rounding(name: str, half: torch.dtype) -> None:
    v = torch.linspace(0, 200, 41).to(half)
    x = torch.logspace(-2, 3, 40).to(half)
    result = function(name)(v[:, None], x)
    exact = function(name)(v[:, None].double(), x.double())
    assert result.dtype is half
    assert torch.isfinite(result).all()
    unit = torch.finfo(half).eps * exact.abs().clamp(min=1)
    assert ((result.double() - exact).abs() / unit).max() <= 0.51


def test_random_points_against_arb() -> None:
    """Points that nobody chose, against Arb at 130 bits."""
    pytest.importorskip("flint", reason="python-flint is not installed")
    from hypothesis import given, settings
    from hypothesis import strategies as st

    from data import truth

    order = st.one_of(st.floats(0, 200), st.floats(-20, 15).map(lambda e: 10.0**e))
    argument = st.floats(-30, 30).map(lambda e: 10.0**e)
    near = st.floats(1e-3, 1e3)

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(order, st.one_of(argument, near), st.sampled_from(FUNCTIONS))
    def compare(v: float, x: float, name: str) -> None:
        hi, lo = truth.value(name, v, x)
        at = Points(
            np.array([v]),
            np.array([x]),
            np.array(["random"]),
            {name: np.array([hi]), f"{name}__lo": np.array([lo])},
        )
        result = function(name)(*at.tensors(torch.float64))
        error = (logarithm_error if name in LOGARITHMS else relative_error)(result, name, at)
        assert error[0] <= ACCURACY[VALUE[name]][0], f"{name}: {worst(error, at)}"

    compare()


# Limits (R10) -------------------------------------------------------------------------------


@both_dtypes
@pytest.mark.parametrize("name", FUNCTIONS)
def test_edges(name: str, dtype: torch.dtype) -> None:
    for row in EDGES:
        v, x = (torch.tensor(float(row[key]), dtype=dtype) for key in "vx")
        rounded = [float(t) != float(row[key]) for t, key in ((v, "v"), (x, "x"))]
        if row["fn"] != name or (any(rounded) and "nan" not in (row["v"], row["x"])):
            continue
        result = float(function(name)(v, x))
        expected = row["expect"]
        if expected == "finite":
            assert math.isfinite(result), row
        elif expected == "tiny":
            assert 0 <= result <= 3e-321, row
        else:
            wanted = float(expected)
            assert result == wanted or (math.isnan(result) and math.isnan(wanted)), (
                row,
                result,
            )


#: Derivatives at the ends of the domain: function, v, x, which, limit.
DERIVATIVE_LIMITS = [
    ("log_iv", 0.0, 0.0, "dxx", 0.5),
    ("log_iv", 2.5, 0.0, "dxx", -math.inf),
    ("log_iv", 2.5, 0.0, "dvx", math.inf),
    ("log_iv", 2.5, 0.0, "dvv", -0.3303577561002348),  # -psi'(3.5)
    ("log_kv", 2.5, 0.0, "dvv", 0.4903577561002348),  # psi'(2.5)
    ("log_kv", 2.5, 0.0, "dvx", -math.inf),
    ("log_kv", 0.0, 0.0, "dvx", 0.0),
    ("log_kv", 0.0, 0.0, "dxx", math.inf),
    ("iv_ratio", 2.5, 0.0, "dvx", -0.5 / 3.5**2),
    ("iv_ratio", 2.5, 0.0, "dxx", 0.0),
    ("kv_ratio", 2.5, 0.0, "dxx", math.inf),
    ("log_hyp0f1", 2.5, math.inf, "dv", -math.inf),
    ("log_hyp0f1", 2.5, math.inf, "dx", 1.0),
    ("log_hyp0f1", 2.5, math.inf, "dvv", 0.3303577561002348),
    ("log_iv", 0.0, 1e-40, "dx", 5e-41),  # x subnormal in float32
    ("log_iv", 0.0, 1e-310, "dx", 5e-311),
    ("log_iv", 1e37, 1e37, "dx", math.sqrt(2)),
    ("log_iv", 1e308, 1e308, "dx", math.sqrt(2)),
    ("iv_ratio", 1e308, 1e308, "", math.sqrt(2) - 1),
    ("kv_ratio", 1e308, 1e308, "", math.sqrt(2) + 1),
]


@both_dtypes
@pytest.mark.parametrize(("name", "v", "x", "which", "limit"), DERIVATIVE_LIMITS)
def test_derivatives_at_the_ends_of_the_domain(name, v, x, which, limit, dtype) -> None:
    largest = torch.finfo(dtype).max
    if (x != math.inf and x > largest) or (dtype is torch.float32 and x == 1e-310):
        return
    at = {
        key: torch.tensor(t, dtype=dtype, requires_grad=True)
        for key, t in zip("vx", (v, x), strict=True)
    }
    result = function(name)(at["v"], at["x"])
    for variable in which[1:]:
        (result,) = torch.autograd.grad(result, at[variable], create_graph=True)
    torch.testing.assert_close(
        float(result.detach()), limit, rtol=8 * torch.finfo(dtype).eps, atol=1e-45
    )


def test_edges_beside_ordinary_elements() -> None:
    """An edge must not change its neighbours in a vector, nor they it."""
    rows = [row for row in EDGES if row["fn"] == "log_iv"]
    v = torch.tensor([float(row["v"]) for row in rows], dtype=torch.float64)
    x = torch.tensor([float(row["x"]) for row in rows], dtype=torch.float64)
    ordinary_v, ordinary_x = (torch.rand(len(rows), dtype=torch.float64) for _ in range(2))
    for name in FUNCTIONS:
        mixed = function(name)(
            torch.stack([v, ordinary_v], -1).flatten(),
            torch.stack([x, ordinary_x], -1).flatten(),
        ).view(-1, 2)
        apart = torch.stack([function(name)(v, x), function(name)(ordinary_v, ordinary_x)], -1)
        assert torch.equal(mixed.nan_to_num(), apart.nan_to_num())
        assert torch.equal(mixed.isnan(), apart.isnan())


@both_dtypes
@pytest.mark.parametrize("name", FUNCTIONS)
def test_result_does_not_depend_on_neighbours(name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    v, x = (torch.rand(700, generator=generator).to(dtype) for _ in range(2))
    v, x = 30 * v**2, 60 * x**2
    together = function(name)(v, x)
    order = torch.randperm(len(v), generator=generator)
    assert torch.equal(function(name)(v[order], x[order]), together[order])
    alone = [function(name)(v[k : k + 1], x[k : k + 1]) for k in range(200)]
    assert torch.equal(torch.cat(alone), together[:200])
    v, x = (torch.rand(20_000, generator=generator).to(dtype) for _ in range(2))
    v, x = torch.where(v < 0.5, 2 * v, 60 * (v - 0.5)), 50 * x
    order = torch.randperm(len(v), generator=generator)
    for suffix in ("", "_grad", "_hess"):
        operation = getattr(torch.ops.curvkern, name + suffix)
        some, all_of_them = (
            torch.stack([*tree_leaves(operation(*points))])
            for points in ((v[order], x[order]), (v, x))
        )
        assert torch.equal(some, all_of_them[:, order])


# Identities (R12) ---------------------------------------------------------------------------


def grid() -> tuple[Tensor, Tensor]:
    v = torch.cat([torch.tensor([0.0, 1e-9]), torch.logspace(-2, 6, 60)]).double()
    x = torch.logspace(-8, 6, 90, dtype=torch.float64)
    return torch.meshgrid(v, x, indexing="ij")


def largest(difference: Tensor, scale: Tensor) -> float:
    return float((difference.abs() / scale).max()) / torch.finfo(torch.float64).eps


def test_wronskian() -> None:
    """I_v K_{v+1} + I_{v+1} K_v = 1/x."""
    v, x = grid()
    i, k = special.log_iv(v, x), special.log_kv(v, x)
    total = special.iv_ratio(v, x) + special.kv_ratio(v, x)
    assert largest(i + k + total.log() + x.log(), 1 + i.abs() + k.abs()) <= 6


@pytest.mark.parametrize("sign", [1, -1], ids=["I", "K"])
def test_recurrence(sign: int) -> None:
    """I_{v-1} - I_{v+1} = (2v/x) I_v = (K_{v+1} - K_{v-1}) I_v / K_v."""
    v, x = grid()
    ratio = special.iv_ratio if sign > 0 else special.kv_ratio
    down, up = 1 / ratio(v, x), ratio(v + 1, x)
    assert largest(sign * (down - up) - 2 * (v + 1) / x, down + up) <= 8


def test_values_and_ratios_agree() -> None:
    v, x = grid()
    for value, ratio in (("log_iv", "iv_ratio"), ("log_kv", "kv_ratio")):
        low, high = function(value)(v, x), function(value)(v + 1, x)
        step = function(ratio)(v, x).log()
        assert largest(high - low - step, 1 + low.abs() + high.abs()) <= 4


def test_monotonicity() -> None:
    """In x: log I rises, log K falls. In v: the other way round. Ratios stay in bounds."""
    v, x = grid()
    i, k = special.log_iv(v, x), special.log_kv(v, x)
    # a true step may be below the rounding of large values, and then it may be zero
    for values, along_v, along_x in ((i, -1, 1), (k, 1, -1)):
        slack = 4 * torch.finfo(torch.float64).eps * values.abs().clamp(min=1)
        assert (along_v * values.diff(dim=0) >= -slack[1:]).all()
        assert (along_x * values.diff(dim=1) >= -slack[:, 1:]).all()
    ratio_i, ratio_k = special.iv_ratio(v, x), special.kv_ratio(v, x)
    assert ((ratio_i > 0) & (ratio_i <= 1)).all()
    assert (ratio_k >= 1).all()


def test_scaled_and_plain_agree() -> None:
    v, x = grid()
    for plain, scaled, sign in (("log_iv", "log_ive", -1), ("log_kv", "log_kve", 1)):
        a, b = function(plain)(v, x), function(scaled)(v, x)
        assert largest(a + sign * x - b, 1 + a.abs() + x) <= 4


@both_dtypes
def test_scaled_functions_do_not_cancel(dtype: torch.dtype) -> None:
    """Far beyond v^2 they are -log(2 pi x)/2 and log(pi/(2x))/2: log I - x has no digit."""
    x = torch.logspace(18, 30, 50, dtype=dtype)
    eps = torch.finfo(dtype).eps
    exact = x.double()
    for v in (0.0, 0.5, 7.25):
        scaled_i, scaled_k = special.log_ive(v, x).double(), special.log_kve(v, x).double()
        expected_i = -0.5 * torch.log(2 * math.pi * exact)
        expected_k = 0.5 * torch.log(math.pi / (2 * exact))
        assert ((scaled_i / expected_i - 1).abs() <= 2 * eps).all()
        assert ((scaled_k / expected_k - 1).abs() <= 2 * eps).all()


def test_half_order_in_closed_form() -> None:
    """K_{1/2} = sqrt(pi/(2x)) exp(-x), 0F1(; 3/2; x^2/4) = sinh(x)/x, I_{3/2}/I_{1/2}."""
    x = torch.logspace(-6, 2.5, 400, dtype=torch.float64)
    k = 0.5 * torch.log(math.pi / (2 * x)) - x
    assert largest(special.log_kv(0.5, x) - k, 1 + k.abs()) <= 4
    # sinh(x)/x - 1 cancels below 1, hence the range
    wide = x[x > 2]
    f = torch.log(-torch.expm1(-2 * wide) / (2 * wide)) + wide
    assert largest(special.log_hyp0f1(0.5, wide) - f, f) <= 8
    r = 1 / torch.tanh(wide) - 1 / wide
    assert largest(special.iv_ratio(0.5, wide) - r, r) <= 8


@both_dtypes
def test_log_hyp0f1_near_zero(dtype: torch.dtype) -> None:
    """log 0F1 = x^2/(4(v+1)) - x^4/(32 (v+1)^2 (v+2)) + ..., to relative accuracy."""
    x = torch.logspace(-12, -5, 60, dtype=dtype)
    for v in (0.0, 0.25, 3.0, 1023.0):
        z = x.double() ** 2 / (4 * (v + 1))
        expected = z - z * z / (2 * (v + 2))
        result = special.log_hyp0f1(v, x).double()
        assert ((result / expected - 1).abs() <= 3 * torch.finfo(dtype).eps).all()


def test_log_hyp0f1_is_a_shifted_log_iv() -> None:
    """log 0F1(; v+1; x^2/4) = log Gamma(v+1) - v log(x/2) + log I_v(x)."""
    v, x = grid()
    gamma, power = torch.lgamma(v + 1), v * torch.log(x / 2)
    i = special.log_iv(v, x)
    difference = special.log_hyp0f1(v, x) - (gamma - power + i)
    assert largest(difference, 1 + gamma.abs() + power.abs() + i.abs()) <= 4
