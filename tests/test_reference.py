"""The plain-PyTorch twins: against the truth, SciPy and each other's code paths."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import torch
from torch import Tensor

from bessel_truth import EDGES, FIRST, FUNCTIONS, LOGARITHMS, SECOND, points, worst
from curvkern.reference import bessel, matern

#: Bound of the error: relative to max(1, |truth|), and to max(v, x), whose product with
#: log(x/v) cancels where log I or log K crosses zero. Derivatives: relative to max(1, |truth|).
VALUE = (1e-14, 1e-15)
FIRST_DERIVATIVE = 5e-13
SECOND_DERIVATIVE = 1e-11

every_function = pytest.mark.parametrize("name", FUNCTIONS)


def function(name: str):
    return getattr(bessel, name)


def ordinary(v: np.ndarray, x: np.ndarray) -> np.ndarray:
    return (v <= 1e6) & (x >= 1e-8) & (x <= 1e6)


@every_function
def test_value(name: str) -> None:
    at = points(torch.float64)
    got = function(name)(*at.tensors(torch.float64)).numpy()
    truth = at.truth[name]
    assert np.isfinite(got).all()
    if name in LOGARITHMS:
        off = np.abs((got - truth) - at.truth[f"{name}__lo"])
        bound = VALUE[0] * np.maximum(1, np.abs(truth)) + VALUE[1] * np.maximum(at.v, at.x)
    else:
        off, bound = np.abs(got - truth), VALUE[0] * np.maximum(np.abs(truth), 2.3e-308)
    assert (off <= bound).all(), worst(off / bound, at)


@pytest.mark.parametrize(("name", "variable"), FIRST)
def test_first_derivative(name: str, variable: str) -> None:
    at = points(torch.float64, ordinary)
    v, x = (t.requires_grad_() for t in at.tensors(torch.float64))
    (got,) = torch.autograd.grad(function(name)(v, x).sum(), v if variable == "dv" else x)
    check_derivative(got, at.truth[FIRST[name, variable]], at, FIRST_DERIVATIVE)


@pytest.mark.parametrize(("name", "variables"), SECOND)
def test_second_derivative(name: str, variables: str) -> None:
    at = points(torch.float64, ordinary)
    v, x = (t.requires_grad_() for t in at.tensors(torch.float64))
    outer, inner = ({"v": v, "x": x}[letter] for letter in variables[1:])
    (slope,) = torch.autograd.grad(function(name)(v, x).sum(), outer, create_graph=True)
    (got,) = torch.autograd.grad(slope.sum(), inner)
    check_derivative(got, at.truth[SECOND[name, variables]], at, SECOND_DERIVATIVE)


def check_derivative(got: Tensor, truth: np.ndarray, at, bound: float) -> None:
    error = np.abs(got.numpy() - truth) / np.maximum(1, np.abs(truth)) / bound
    assert (error <= 1).all(), worst(error, at)


@every_function
def test_derivatives_agree_with_differences(name: str) -> None:
    # one point in each region
    v = torch.tensor([0.3, 3.6, 2.4, 30.0, 140.0, 900.0], dtype=torch.float64)
    x = torch.tensor([0.4, 1.9, 7.5, 16.0, 58.0, 950.0], dtype=torch.float64)
    inputs = v.requires_grad_(), x.requires_grad_()
    assert torch.autograd.gradcheck(function(name), inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function(name), inputs, fast_mode=True)


@every_function
def test_edges(name: str) -> None:
    rows = [row for row in EDGES if row["fn"] == name]
    v, x = (torch.tensor([float(r[key]) for r in rows], dtype=torch.float64) for key in "vx")
    for row, got in zip(rows, function(name)(v, x).tolist(), strict=True):
        if row["expect"] in ("finite", "tiny"):
            assert math.isfinite(got), row
        else:
            wanted = float(row["expect"])
            assert got == wanted or (math.isnan(got) and math.isnan(wanted)), (row, got)


@pytest.mark.parametrize(
    ("name", "scipy_name"), [("log_ive", "ive"), ("log_kve", "kve")], ids=["I", "K"]
)
def test_scipy(name: str, scipy_name: str) -> None:
    v, x = np.meshgrid(np.linspace(0, 40, 60), np.logspace(-2, 3, 60))
    expected = np.log(getattr(scipy.special, scipy_name)(v, x))
    got = function(name)(torch.tensor(v), torch.tensor(x)).numpy()
    assert np.abs((got - expected) / np.maximum(1, np.abs(expected))).max() < 1e-13


@every_function
def test_where_and_gather_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under vmap and torch.compile every formula sees every element: same bits, no NaN."""
    at = points(torch.float64, ordinary)
    v, x = (t.requires_grad_() for t in at.tensors(torch.float64))
    gathered = function(name)(v, x)
    slopes = torch.autograd.grad(gathered.sum(), (v, x))
    monkeypatch.setattr(bessel, "_may_gather", lambda _: False)
    selected = function(name)(v, x)
    # the vectorised and the scalar loop of one torch operation differ by a rounding
    torch.testing.assert_close(selected, gathered, rtol=1e-14, atol=1e-14)
    for a, b in zip(torch.autograd.grad(selected.sum(), (v, x)), slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@every_function
def test_vmap_and_hessian(name: str) -> None:
    v, x = torch.rand(2, 4, 6, dtype=torch.float64) * 30
    mapped = torch.vmap(function(name))(v, x)
    torch.testing.assert_close(mapped, function(name)(v, x), rtol=1e-14, atol=1e-14)
    h = torch.func.hessian(lambda p: function(name)(p[0], p[1]))(
        torch.stack([v[0, 0], x[0, 0]])
    )
    assert torch.isfinite(h).all()
    torch.testing.assert_close(h, h.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_narrow_types_are_rounded_once(dtype: torch.dtype) -> None:
    v, x = (torch.rand(2, 50) * 20).to(dtype)
    for name in FUNCTIONS:
        got = function(name)(v, x)
        assert got.dtype is dtype
        assert torch.equal(got, function(name)(v.double(), x.double()).to(dtype))


def test_broadcasting_and_empty() -> None:
    v, x = torch.rand(3, 1), torch.rand(1, 4)
    for name in FUNCTIONS:
        assert function(name)(v, x).shape == (3, 4)
        assert function(name)(v[:0], x).shape == (0, 4)
        assert function(name)(torch.tensor(2), torch.tensor(3)).dtype is torch.float32


def test_matern_against_scipy_and_closed_forms() -> None:
    r = np.linspace(0.01, 6, 80)
    for nu in (0.3, 0.5, 1.0, 1.7, 2.5, 9.0):
        z = math.sqrt(2 * nu) * r / 0.7
        expected = 2 ** (1 - nu) / math.gamma(nu) * z**nu * scipy.special.kv(nu, z)
        rho = torch.tensor(r) / 0.7
        got = matern.matern(torch.full_like(rho, nu), rho)
        np.testing.assert_allclose(got.numpy(), expected, rtol=2e-13)
    for nu, factor in ((0.5, 1), (1.5, 1 + z), (2.5, 1 + z + z * z / 3)):
        at = torch.tensor(z / math.sqrt(2 * nu))
        got = matern.matern(torch.full_like(at, nu), at)
        np.testing.assert_allclose(got.numpy(), factor * np.exp(-z), rtol=2e-13)
    assert matern.matern(torch.full((2,), 1.7), torch.zeros(2)).tolist() == [1, 1]
