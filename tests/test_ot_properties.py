"""curvkern.ot: laws that hold for every problem."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.testing import assert_close

from curvkern import ot

TOL = 1e-12
quick = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 2**31)
sizes = st.integers(1, 6)
epsilons = st.sampled_from([0.03, 0.3, 3.0])


def problem(seed: int, n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights with a zero now and then, costs of both signs with +inf now and then."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    a, b, C = random(n), random(m), 2 * random(n, m) - 1
    a[1:][random(n - 1) < 0.2], b[1:][random(m - 1) < 0.2] = 0.0, 0.0
    forbidden = random(n, m) < 0.2
    forbidden[0], forbidden[:, 0] = False, False  # through the first points all is feasible
    a[0], b[0] = a.sum() + 1, b.sum() + 1
    return a / a.sum(), b / b.sum(), torch.where(forbidden, torch.inf, C)


@given(seed=seeds, n=sizes, m=sizes, eps=epsilons)
@quick
def test_marginals_and_certificates(seed: int, n: int, m: int, eps: float) -> None:
    a, b, C = problem(seed, n, m)
    result = ot.sinkhorn(a, b, C, eps, tol=TOL)
    P = result.plan
    assert result.converged
    assert (P >= 0).all()
    assert (P[torch.isinf(C)] == 0).all()
    assert (P.sum(1) - a).abs().sum() + (P.sum(0) - b).abs().sum() <= 2 * TOL
    assert result.gap <= 1e-9
    assert_close(result.value, result.cost + eps * result.kl, rtol=1e-10, atol=1e-11)
    assert_close((a * result.f).sum(), (b * result.g).sum(), rtol=1e-9, atol=1e-11)


@given(seed=seeds, n=sizes, m=sizes, eps=epsilons)
@quick
def test_symmetries(seed: int, n: int, m: int, eps: float) -> None:
    a, b, C = problem(seed, n, m)
    result = ot.sinkhorn(a, b, C, eps, tol=TOL)

    turned = ot.sinkhorn(b, a, C.T, eps, tol=TOL)
    assert_close(turned.plan.T, result.plan, rtol=1e-8, atol=1e-11)
    assert_close(turned.f, result.g, rtol=1e-8, atol=1e-9)

    rows, columns = torch.randperm(n), torch.randperm(m)
    mixed = ot.sinkhorn(a[rows], b[columns], C[rows][:, columns], eps, tol=TOL)
    assert_close(mixed.plan, result.plan[rows][:, columns], rtol=1e-8, atol=1e-11)

    shift = torch.linspace(-1, 1, n, dtype=torch.float64)
    moved = ot.sinkhorn(a, b, C + shift[:, None], eps, tol=TOL)
    assert_close(moved.plan, result.plan, rtol=1e-8, atol=1e-11)
    assert_close(moved.value, result.value + (a * shift).sum(), rtol=1e-9, atol=1e-10)


@given(seed=seeds, n=sizes, m=sizes, exponent=st.sampled_from([-30, -3, 6, 30]))
@quick
def test_scales(seed: int, n: int, m: int, exponent: int) -> None:
    a, b, C = problem(seed, n, m)
    result = ot.sinkhorn(a, b, C, 0.1, tol=TOL)
    s = 10.0**exponent
    costly = ot.sinkhorn(a, b, s * C, s * 0.1, tol=TOL)
    assert_close(costly.plan, result.plan, rtol=1e-8, atol=1e-11)
    assert_close(costly.value / s, result.value, rtol=1e-9, atol=1e-11)
    light = ot.sinkhorn(1e-30 * a, 1e-30 * b, C, 0.1, tol=TOL)
    assert light.converged
    assert_close(1e30 * light.plan, result.plan, rtol=1e-8, atol=1e-11)


@given(seed=seeds, n=sizes, m=sizes)
@quick
def test_penalties_grow_to_constraints(seed: int, n: int, m: int) -> None:
    a, b, C = problem(seed, n, m)
    hard = ot.sinkhorn(a, b, C, 0.3, tol=TOL)
    soft = ot.sinkhorn(a, b, C, 0.3, rho=1e6, tol=TOL)
    semi = ot.sinkhorn(a, b, C, 0.3, rho=(None, 1e6), tol=TOL)
    assert_close(soft.plan, hard.plan, rtol=1e-4, atol=1e-5)
    assert_close(semi.plan.sum(1), a, rtol=1e-9, atol=1e-11)
    assert soft.value <= semi.value + 1e-9 <= hard.value + 2e-9


@given(seed=seeds, n=sizes, m=sizes, kind=st.sampled_from(["sqeuclidean", "euclidean", "l1"]))
@quick
def test_divergence_is_a_divergence(seed: int, n: int, m: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.rand(k, 2, generator=generator, dtype=torch.float64) for k in (n, m))
    a, b, _ = problem(seed, n, m)
    options = {"cost": kind, "rho": 0.5 if seed % 2 else None, "tol": TOL}
    there = ot.sinkhorn_divergence(x, y, 0.1, a=a, b=b, **options)
    back = ot.sinkhorn_divergence(y, x, 0.1, a=b, b=a, **options)
    assert there >= -1e-11
    assert_close(there, back, rtol=1e-8, atol=1e-11)
    itself = ot.sinkhorn_divergence(x, x.flip(0), 0.1, a=a, b=a.flip(0), **options)
    assert abs(itself) < 1e-10


def test_one_point() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    result = ot.sinkhorn(None, None, -3 * one, 0.5)
    assert_close(result.plan, one)
    assert_close(result.value, -3 * one[0, 0])
    weights = torch.tensor([0.2, 0.8], dtype=torch.float64)
    assert_close(ot.sinkhorn(None, weights, one.expand(1, 2), 0.5).plan[0], weights)
