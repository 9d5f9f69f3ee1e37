"""curvkern.ot under torch.func, torch.compile, fake tensors, and as operations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, vmap
from torch.testing import assert_close

from curvkern import ot

TOL = 1e-13
W = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)
Y = torch.tensor([[0.1, 0.2], [0.7, 0.3], [0.4, 0.9], [0.8, 0.8]], dtype=torch.float64)


def matrix_value(C: Tensor) -> Tensor:
    return ot.sinkhorn(None, None, C, 0.3, tol=TOL).value


def matrix_plan(C: Tensor) -> Tensor:
    return (ot.sinkhorn(None, None, C, 0.3, tol=TOL).plan * W).sum()


def points_value(x: Tensor) -> Tensor:
    return ot.sinkhorn_points(x, Y, 0.3, tol=TOL, cost="euclidean").value


def points_plan(x: Tensor) -> Tensor:
    return (ot.sinkhorn_points(x, Y, 0.3, tol=TOL).apply(Y) ** 2).sum()


FUNCTIONS = [
    (matrix_value, (3, 4)),
    (matrix_plan, (3, 4)),
    (points_value, (3, 2)),
    (points_plan, (3, 2)),
]
every_function = pytest.mark.parametrize(
    ("function", "shape"), FUNCTIONS, ids=lambda p: getattr(p, "__name__", "")
)


@every_function
def test_second_derivatives_in_all_modes(
    function: Callable[[Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    at = torch.rand(shape, dtype=torch.float64)
    expected = torch.autograd.functional.hessian(function, at)
    for outer in (jacrev, jacfwd):
        for inner in (jacrev, jacfwd):
            assert_close(outer(inner(function))(at), expected, rtol=1e-9, atol=1e-10)


@every_function
def test_vmap(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    batch = torch.rand(2, 3, *shape, dtype=torch.float64)
    each = torch.stack([torch.stack([function(t) for t in row]) for row in batch])
    assert_close(vmap(vmap(function))(batch), each, rtol=1e-10, atol=1e-12)
    slopes = torch.stack([grad(function)(t) for t in batch[0]])
    assert_close(vmap(grad(function))(batch[0]), slopes, rtol=1e-9, atol=1e-11)
    curvature = vmap(hessian(function))(batch[0])[0]
    assert_close(curvature, hessian(function)(batch[0, 0]), rtol=1e-8, atol=1e-9)


def test_vmap_over_what_is_not_the_cost() -> None:
    C = torch.rand(3, 4, dtype=torch.float64)
    a = torch.rand(5, 3, dtype=torch.float64).softmax(-1)
    eps = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5], dtype=torch.float64)
    mapped = vmap(lambda a, eps: ot.sinkhorn(a, None, C, eps, tol=TOL).f, out_dims=1)(a, eps)
    assert_close(mapped.T, ot.sinkhorn(a, None, C, eps, tol=TOL).f, rtol=1e-10, atol=1e-11)


def test_values_are_checked_under_transforms() -> None:
    with pytest.raises(ValueError, match="C has nan"):
        grad(matrix_value)(torch.full((3, 4), torch.nan, dtype=torch.float64))
    with pytest.raises(ValueError, match="C has nan"):
        vmap(matrix_value)(torch.full((2, 3, 4), torch.nan, dtype=torch.float64))


# To trace a graph takes seconds: two stand for all.
@pytest.mark.parametrize(
    ("function", "shape"), FUNCTIONS[1:3], ids=lambda p: getattr(p, "__name__", "")
)
def test_compile(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    at = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    result = compiled(at)
    assert_close(result, function(at), rtol=1e-12, atol=0)
    (slope,) = torch.autograd.grad(result, at)
    assert_close(slope, grad(function)(at.detach()), rtol=1e-10, atol=1e-12)


def test_meta_tensors_have_shapes_only() -> None:
    C = torch.empty(5, 3, 4, device="meta")
    result = ot.sinkhorn(None, None, C, 0.1)
    assert result.plan.shape == (5, 3, 4)
    assert result.f.shape == (5, 3)
    assert result.value.shape == result.converged.shape == (5,)
    assert result.plan.device.type == "meta"


def test_opcheck() -> None:
    wide = {"dtype": torch.float64}
    a, b, C = (
        torch.full((2, 3), 1 / 3, **wide),
        torch.full((2, 4), 1 / 4, **wide),
        torch.rand(2, 3, 4, **wide),
    )
    eps, rho = torch.ones(2, **wide), torch.full((2, 2), torch.inf, **wide)
    problem = (a, b, C, None, None, "", 1.0, eps, rho)
    options = ("sinkhorn", "auto", 100, 1e-9, 10, 1e-8, False)
    torch.library.opcheck(torch.ops.curvkern.ot_solve.default, (*problem, None, None, *options))
    f, g = torch.rand(2, 3, dtype=torch.float64), torch.rand(2, 4, dtype=torch.float64)
    for transposed in (False, True):
        torch.library.opcheck(
            torch.ops.curvkern.ot_dual_system.default, (*problem, f, g, f, g, transposed)
        )


def test_large_systems_are_iterated(monkeypatch: pytest.MonkeyPatch) -> None:
    C = torch.rand(30, 20, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(30, 20, dtype=torch.float64)
    plan = ot.sinkhorn(None, None, C, 0.05, tol=TOL).plan
    (direct,) = torch.autograd.grad((plan * weights).sum(), C, retain_graph=True)
    monkeypatch.setattr(ot._linear, "DIRECT", 0)
    (iterated,) = torch.autograd.grad((plan * weights).sum(), C)
    assert_close(iterated, direct, rtol=1e-9, atol=1e-12)
