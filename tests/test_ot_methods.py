"""The methods of the compiled solver: which steps a problem is given."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from curvkern import ConvergenceWarning, ot
from curvkern.ot import _methods

SMALL = 1e-4  # an eps at which sweeps get nowhere


def costs(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def test_easy_problems_are_swept() -> None:
    C = costs(60, 60)
    swept = ot.sinkhorn(None, None, C, 0.3, method="sinkhorn")
    result = ot.sinkhorn(None, None, C, 0.3)
    assert swept.n_iter == result.n_iter < _methods.FIRST_LEG
    assert_close(result.f, swept.f, rtol=0, atol=0)


def test_hard_problems_take_newton_steps() -> None:
    C = costs(60, 60)
    with pytest.warns(ConvergenceWarning):
        ot.sinkhorn(None, None, C, SMALL, method="sinkhorn", max_iter=1000)
    result = ot.sinkhorn(None, None, C, SMALL)
    assert result.converged
    assert result.n_iter < 200
    assert_close(result.plan, ot.sinkhorn(None, None, C, SMALL, method="newton").plan)


@pytest.mark.parametrize("method", ["auto", "newton"])
def test_each_problem_of_a_batch_goes_its_own_way(method: str) -> None:
    C, eps = costs(5, 30, 40), torch.tensor([1.0, 0.03, 1e-4, 0.01, 3e-3], dtype=torch.float64)
    seen: list[tuple[int, Tensor]] = []
    result = ot.sinkhorn(
        None, None, C, eps, method=method, callback=lambda k, error: seen.append((k, error))
    )
    assert result.converged.all()
    assert len(result.n_iter.unique()) > 2
    for k, (C1, eps1) in enumerate(zip(C, eps, strict=True)):
        one = ot.sinkhorn(None, None, C1, eps1, method=method)
        assert_close(result.plan[k], one.plan, rtol=1e-4, atol=1e-8)
    assert [(k, float(error.max())) for k, error in seen] == result.history
    assert max(k for k, _ in seen) == result.n_iter.max()
    assert_close(seen[-1][1], result.marginal_error, rtol=0, atol=0)


@pytest.mark.parametrize("method", ["auto", "newton"])
def test_points_of_a_batch(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, eps = costs(3, 30, 2), costs(3, 30, 2).flip(0), torch.tensor([0.3, 3e-3, 1e-3])
    whole = ot.sinkhorn_points(x, y, eps, scale=2.0, method=method)
    assert whole.converged.all()
    matrix = ot.sinkhorn(None, None, 2 * torch.cdist(x, y).square(), eps, method=method)
    assert_close(whole.plan, matrix.plan, rtol=1e-5, atol=1e-9)
    monkeypatch.setattr(_methods, "LARGEST", 900)  # one problem at a time
    alone = ot.sinkhorn_points(x, y, eps, scale=2.0, method=method)
    assert_close(alone.f, whole.f, rtol=0, atol=0)


def test_too_many_points_for_newton_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_methods, "LARGEST", 899)
    x, y = costs(30, 2), costs(30, 2) + 0.2
    for function in (ot.sinkhorn_points, ot.sinkhorn_divergence, ot.monge_gap):
        words = f"^{function.__name__}: method 'newton' holds the costs in memory"
        with pytest.raises(ValueError, match=words):
            function(x, y, 0.1, method="newton")
    slow = ot.sinkhorn_points(x, y, 0.03)
    swept = ot.sinkhorn_points(x, y, 0.03, method="sinkhorn")
    assert slow.converged
    assert slow.n_iter > _methods.PATIENCE
    assert_close(slow.plan, swept.plan, rtol=1e-5, atol=1e-9)


def test_starts_of_the_caller_are_left_as_they_are() -> None:
    C = costs(3, 20, 20)
    f, g = costs(3, 20), costs(3, 20)
    given = f.clone(), g.clone()
    for method in ("auto", "newton"):
        eps = torch.tensor([1.0, 1e-3, 1e-4], dtype=torch.float64)
        ot.sinkhorn(None, None, C, eps, init=(f, g), method=method)
        assert_close((f, g), given, rtol=0, atol=0)


@pytest.mark.parametrize("most", [1, 39, 40, 41, 60, 61, 70])
@pytest.mark.parametrize("method", ["auto", "sinkhorn", "newton"])
def test_max_iter_is_kept(most: int, method: str) -> None:
    eps = torch.tensor([0.02, 1e-6], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        result = ot.sinkhorn(None, None, costs(2, 50, 50), eps, max_iter=most, method=method)
    assert result.n_iter.max() == most
    assert result.history[-1][0] == most
    assert result.plan.isfinite().all()
