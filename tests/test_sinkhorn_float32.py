"""Derivatives for float32 input: as good as rounding the exact ones once, at any eps.

A gradient of cost, kl or plan is the sum of two, one through the potentials, each larger than
the sum by up to 1 / eps: a float32 rounding of either would show as 1e-7 / eps. They are summed
in float64, so that what is left is the rounding of the result, half an eps of float32 relative
to an entry; as much again allows for the cotangents, which come in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from curvkern import ot

EPS = torch.finfo(torch.float32).eps
TOL = 1e-10
N, M = 14, 11


class Dense:
    """Derivatives from the plan in float64, by NumPy's least squares: nothing of the package.

    With z = (p, q) the solution of r p + P q = (P W) 1, P' p + s q = (P W)' 1 the gradient of
    <P, W> in C is P (p_i + q_j - W) / eps.
    """

    def __init__(self, a: np.ndarray, b: np.ndarray, C: np.ndarray, eps: float) -> None:
        self.C, self.eps = C, eps
        level, f, g = max(eps, 1.0), np.zeros(len(a)), np.zeros(len(b))
        while True:  # Sinkhorn down a path of eps, then Newton's method
            for _ in range(200):
                f = -level * np.logaddexp.reduce(np.log(b) + (g - C) / level, 1)
                g = -level * np.logaddexp.reduce(
                    np.log(a)[:, None] + (f[:, None] - C) / level, 0
                )
            if level == eps:
                break
            level = max(eps, level / 2)
        for _ in range(50):
            self.P = a[:, None] * b * np.exp((f[:, None] + g - C) / eps)
            p, q = self.solve(eps * (a - self.P.sum(1)), eps * (b - self.P.sum(0)))
            f, g = f + p, g + q
        self.exponent = (f[:, None] + g - C) / eps
        self.P = a[:, None] * b * np.exp(self.exponent)
        off = np.abs(self.P.sum(1) - a).sum() + np.abs(self.P.sum(0) - b).sum()
        assert off < 1e-15 * (1 + 1 / eps) * a.sum()  # exponents round by 1e-16 / eps

    def solve(self, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        P = self.P
        M = np.block([[np.diag(P.sum(1)), P], [P.T, np.diag(P.sum(0))]])
        z = np.linalg.lstsq(M, np.concatenate([u, v]), rcond=1e-14)[0]
        return z[: len(u)], z[len(u) :]

    def plan(self, W: np.ndarray) -> np.ndarray:
        PW = self.P * W
        p, q = self.solve(PW.sum(1), PW.sum(0))
        return self.P * (p[:, None] + q - W) / self.eps

    def cost(self) -> np.ndarray:
        return self.P + self.plan(self.C)

    def kl(self) -> np.ndarray:
        # d sum P log(P / a b') = <dP, log(P / a b')>, as the sum of dP is 0
        return self.plan(self.exponent)


def problem(eps: float) -> tuple[Tensor, Tensor, Tensor, Dense]:
    """Float32 weights and costs, and the derivatives for their exact values.

    Of costs s_i + t_j + eps r_ij all but the last term leaves the plan as it is: at every eps
    it is dense and moves, where that of random costs freezes.
    """
    rng = np.random.default_rng(3)
    s, t = rng.random(N), rng.random(M)
    C = np.float32(s[:, None] + t + eps * rng.standard_normal((N, M)))
    a, b = (
        np.full(N, np.float32(M)),
        np.full(M, np.float32(N)),
    )  # masses that are equal, exactly
    return *map(torch.tensor, (a, b, C)), Dense(*map(np.float64, (a, b, C)), eps)


def relative(found: Tensor, truth: np.ndarray) -> float:
    assert found.dtype == torch.float32
    return float(np.abs(found.double().numpy() - truth).max() / np.abs(truth).max())


W = torch.tensor(np.random.default_rng(4).standard_normal((N, M)), dtype=torch.float32)
OUTPUTS: dict[str, tuple[Callable, Callable]] = {
    "cost": (lambda r: r.cost, lambda dense: dense.cost()),
    "kl": (lambda r: r.kl, lambda dense: dense.kl()),
    "value": (lambda r: r.value, lambda dense: dense.P),
    "plan": (lambda r: (r.plan * W).sum(), lambda dense: dense.plan(W.double().numpy())),
    "apply": (
        lambda r: r.apply(W[0, :]) @ W[:, 0],
        lambda dense: dense.plan(np.outer(W[:, 0].double(), W[0, :].double())),
    ),
}


@pytest.mark.parametrize("eps", [1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("output", OUTPUTS)
def test_gradients_in_the_costs(output: str, eps: float) -> None:
    a, b, C, dense = problem(eps)
    C.requires_grad_()
    function, expected = OUTPUTS[output]
    (slope,) = torch.autograd.grad(function(ot.sinkhorn(a, b, C, eps, tol=TOL)), C)
    assert relative(slope, expected(dense)) <= EPS


@pytest.mark.parametrize("eps", [1e-3, 1e-4])
@pytest.mark.parametrize("output", ["cost", "kl", "plan"])
def test_gradients_in_the_points(output: str, eps: float) -> None:
    rng = np.random.default_rng(5)  # clouds as wide as the blur, at a distance of 1
    x, y = (np.float32(np.sqrt(eps) * rng.standard_normal((k, 2))) for k in (N, M))
    y += np.float32(1)
    between = x.astype(float)[:, None] - y.astype(float)
    a, b = np.full(N, np.float32(M)), np.full(M, np.float32(N))
    dense = Dense(*map(np.float64, (a, b)), (between**2).sum(2), eps)
    points = torch.tensor(x, requires_grad=True)
    result = ot.sinkhorn_points(
        points, torch.tensor(y), eps, a=torch.tensor(a), b=torch.tensor(b), tol=TOL
    )
    function, expected = OUTPUTS[output]
    (slope,) = torch.autograd.grad(function(result), points)
    truth = (expected(dense)[:, :, None] * 2 * between).sum(1)
    assert relative(slope, truth) <= EPS


def test_forward_mode_and_second_derivatives() -> None:
    a, b, C, dense = problem(1e-4)

    def cost(C: Tensor) -> Tensor:
        return ot.sinkhorn(a, b, C, 1e-4, tol=TOL).cost

    along = torch.func.jvp(cost, (C,), (W,))[1]
    terms = dense.cost() * W.double().numpy()
    assert abs(float(along) - terms.sum()) <= EPS * np.abs(terms).sum()
    wide = C.double()

    def product(C: Tensor) -> Tensor:
        return torch.autograd.functional.hvp(cost, C, W.to(C.dtype))[1]

    a, b = a.double(), b.double()
    narrow, exact = product(C), product(wide)
    assert relative(narrow, exact.numpy()) <= EPS


def test_divergences_that_nearly_vanish() -> None:
    """Values of 1 whose difference is 1e-6, and gradients likewise."""
    rng = np.random.default_rng(6)
    x = torch.tensor(rng.random((N, 2)), dtype=torch.float32)
    y = x + 1e-3 * torch.tensor(rng.random((N, 2)), dtype=torch.float32)
    narrow, wide = x.clone().requires_grad_(), x.double().requires_grad_()
    found = ot.sinkhorn_divergence(narrow, y, 0.5, tol=TOL)
    truth = ot.sinkhorn_divergence(wide, y.double(), 0.5, tol=TOL)
    assert found.dtype == torch.float32
    assert abs(found.item() - truth.item()) <= EPS * truth.item()
    slope, expected = (torch.autograd.grad(*p)[0] for p in ((found, narrow), (truth, wide)))
    assert relative(slope, expected.numpy()) <= EPS
    gap = ot.monge_gap(narrow, y, 1e-3, tol=TOL)
    exact = ot.monge_gap(wide, y.double(), 1e-3, tol=TOL)
    slope, expected = (torch.autograd.grad(*p)[0] for p in ((gap, narrow), (exact, wide)))
    assert relative(slope, expected.numpy()) <= EPS


def test_points_of_two_dtypes() -> None:
    x, y = torch.rand(5, 2), torch.rand(4, 2, dtype=torch.float64)
    mixed, wide = ot.sinkhorn_points(x, y, 0.1), ot.sinkhorn_points(x.double(), y, 0.1)
    assert mixed.value.dtype == torch.float64
    torch.testing.assert_close(mixed.plan, wide.plan, rtol=0, atol=0)
