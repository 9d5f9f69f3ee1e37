"""curvkern.ot: what is refused and in which words, and what else an argument may be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from curvkern import ot

A = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
B = torch.tensor([0.4, 0.6], dtype=torch.float64)
C = torch.tensor([[0.0, 1.0], [2.0, 0.5], [0.3, 0.7]], dtype=torch.float64)
X = torch.tensor([[0.0, 1.0], [2.0, 0.5], [0.3, 0.7]], dtype=torch.float64)


def solve(a: Any = A, b: Any = B, C: Any = C, eps: Any = 0.1, **options: Any) -> ot.OTResult:
    return ot.sinkhorn(a, b, C, eps, **options)


def changed(tensor: Tensor, index: Any, value: float) -> Tensor:
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


NAN, INF = float("nan"), float("inf")
VALUES = {
    "nan in C": ({"C": changed(C, (1, 0), NAN)}, r"C has nan at \[1, 0\]"),
    "-inf in C": ({"C": changed(C, (1, 0), -INF)}, "C must not be -inf"),
    "infeasible row": ({"C": changed(C, 1, INF)}, "infeasible: row 1 has mass"),
    "infeasible column": ({"C": changed(C, (slice(None), 1), INF)}, "infeasible: column 1"),
    "row to empty columns": (
        {"C": changed(C, (2, 0), INF), "b": torch.tensor([1.0, 0.0], dtype=torch.float64)},
        "infeasible: row 2",
    ),
    "a range beyond float64": (
        {"C": C.new_tensor([[-1.5e308, 1e308], [1.0, 2.0], [INF, 3.0]])},
        r"C goes from -1.5e\+308 to 1e\+308, a range beyond float64",
    ),
    "negative a": ({"a": A - 0.25}, r"a must be non-negative, got -0.0\d+ at \[0\]"),
    "negative b": ({"b": B - 0.5}, "b must be non-negative"),
    "nan in a": ({"a": changed(A, 1, NAN)}, r"a must be finite, got nan at \[1\]"),
    "inf in b": ({"b": changed(B, 1, INF)}, "b must be finite, got inf"),
    "no mass": ({"a": 0 * A, "rho": 1.0}, "a has no mass"),
    "unequal masses": ({"b": 2 * B}, "equal masses, but a sums to 1 and b to 2"),
    "eps 0": ({"eps": 0}, "eps must be positive and finite, got 0"),
    "eps < 0": ({"eps": -0.1}, "eps must be positive"),
    "eps nan": ({"eps": NAN}, "eps must be positive"),
    "eps inf": ({"eps": INF}, "eps must be positive"),
    "eps of a batch": ({"eps": torch.tensor([0.1, 0.0])}, "eps must be positive"),
    "rho 0": ({"rho": 0.0}, "rho must be positive"),
    "rho nan": ({"rho": (1.0, NAN)}, "rho must be positive"),
    "a in two lengths": ({"a": B}, r"C has shape \(3, 2\) but a has length 2"),
    "b in two lengths": ({"b": A}, r"C has shape \(3, 2\) but b has length 3"),
    "C of one dimension": ({"C": A}, r"C must have shape \(n, m\) or \(B, n, m\), got \(3,\)"),
    "a of three dimensions": ({"a": A[None, None]}, "a must have shape"),
    "two batches": (
        {"a": A.expand(2, 3), "C": C.expand(4, 3, 2)},
        "C has a batch of 4 but a one of 2",
    ),
    "batches of eps": ({"C": C.expand(4, 3, 2), "eps": torch.ones(3)}, "C has a batch of 4"),
    "eps of two dimensions": ({"eps": torch.ones(1, 1)}, "eps must be a number or have shape"),
    "empty C": ({"C": C[:0], "a": A[:0]}, "C is empty"),
    "empty a": ({"a": A[:0]}, "a is empty"),
    "method": ({"method": "sinkhrn"}, "method must be one of 'auto', 'sinkhorn', 'newton'"),
    "max_iter < 0": ({"max_iter": -1}, "max_iter must be at least 1, got -1"),
    "tol < 0": ({"tol": -1e-9}, "tol must be non-negative"),
    "tol nan": ({"tol": NAN}, "tol must be non-negative"),
    "check_every 0": ({"check_every": 0}, "check_every must be at least 1"),
    "three rhos": ({"rho": (1.0, 1.0, 1.0)}, "rho must be a number or a pair, got 3"),
    "init of another length": ({"init": (B, B)}, "f of init has shape"),
    "nan in init": ({"init": (A * NAN, B)}, "f of init must be finite"),
}
KINDS = {
    "eps is a string": ({"eps": "0.1"}, "eps must be a number or a tensor, got str"),
    "eps is None": ({"eps": None}, "eps must be a number or a tensor, got NoneType"),
    "eps is a bool": ({"eps": True}, "eps must be a number or a tensor, got bool"),
    "rho is a string": ({"rho": "1"}, "rho must be a number"),
    "C is None": ({"C": None}, "C must be a tensor or a NumPy array, got NoneType"),
    "C is a list": ({"C": C.tolist()}, "C must be a tensor or a NumPy array, got list"),
    "a is an object": ({"a": object()}, "a must be a tensor or a NumPy array, got object"),
    "C is complex": ({"C": C.to(torch.complex128)}, "C must be float.*torch.complex128"),
    "C is bool": ({"C": C > 0}, "C must be float.*torch.bool"),
    "C is integer": ({"C": C.long()}, "C must be float.*torch.int64"),
    "a is integer": ({"a": A.long()}, "a must be float.*torch.int64"),
    "C is sparse": ({"C": C.to_sparse()}, "C has layout torch.sparse_coo"),
    "a is NumPy": ({"a": A.numpy()}, "a is a ndarray but C is a tensor"),
    "C is NumPy": ({"C": C.numpy()}, "a is a Tensor but C is not a tensor"),
    "method is None": ({"method": None}, "method must be a string, got NoneType"),
    "max_iter is a float": ({"max_iter": 10.0}, "max_iter must be an integer, got float"),
    "tol is a string": ({"tol": "1e-9"}, "tol must be a number, got str"),
    "callback": ({"callback": 3}, "callback must be callable, got int"),
    "init": ({"init": 3}, r"init must be an OTResult or a pair \(f, g\), got int"),
    "misspelt option": ({"max_itr": 3}, "max_itr"),
}


@pytest.mark.parametrize("name", VALUES)
def test_value_error(name: str) -> None:
    changes, words = VALUES[name]
    with pytest.raises(ValueError, match="sinkhorn: .*" + words):
        solve(**changes)


@pytest.mark.parametrize("name", KINDS)
def test_type_error(name: str) -> None:
    changes, words = KINDS[name]
    with pytest.raises(TypeError, match="sinkhorn.*" + words):
        solve(**changes)


def test_refused_arrays() -> None:
    arrays = (A.numpy(), B.numpy(), C.numpy())
    for dtype in (np.int64, np.complex128, bool):
        with pytest.raises(TypeError, match=f"must be floating.*{np.dtype(dtype)}"):
            ot.sinkhorn(*arrays[:2], arrays[2].astype(dtype), 0.1)
    with pytest.raises(TypeError, match="masked"):
        ot.sinkhorn(*arrays[:2], np.ma.masked_array(arrays[2]), 0.1)


def test_refusals_of_points() -> None:
    y = X[:2]
    with pytest.raises(
        ValueError, match=r"sinkhorn_points: x must be finite, got nan at \[1, 0\]"
    ):
        ot.sinkhorn_points(changed(X, (1, 0), NAN), y, 0.1)
    with pytest.raises(ValueError, match="x has points in 2 dimensions but y in 1"):
        ot.sinkhorn_points(X, y[:, :1], 0.1)
    with pytest.raises(
        ValueError, match=r"cost must be one of 'sqeuclidean', .*; got 'cosine'"
    ):
        ot.sinkhorn_points(X, y, 0.1, cost="cosine")
    with pytest.raises(ValueError, match="scale must be positive and finite, got 0"):
        ot.sinkhorn_points(X, y, 0.1, scale=0)
    with pytest.raises(ValueError, match=r"x has shape \(3, 2\) but a has length 2"):
        ot.sinkhorn_points(X, y, 0.1, a=B)
    with pytest.raises(ValueError, match="y is empty"):
        ot.sinkhorn_points(X, y[:0], 0.1)


@pytest.mark.parametrize("method", ["auto", "sinkhorn", "newton"])
def test_points_beyond_the_range_of_their_costs(method: str) -> None:
    for kind, far in (("sqeuclidean", 1e160), ("euclidean", 1e160), ("l1", 1e305)):
        with pytest.raises(ValueError, match=f"x and y are up to .* where '{kind}' costs are"):
            ot.sinkhorn_points(X, far - far * X, 0.1, scale=1e6, cost=kind, method=method)
    moved = ot.sinkhorn_points(1e150 * X, 1e150 * X[:2], 1e299, method=method)
    expected = ot.sinkhorn_points(X, X[:2], 0.1, method=method)
    assert_close(moved.value / 1e300, expected.value)


def test_too_large() -> None:
    huge = torch.zeros(1, 1, dtype=torch.float64).expand(2**40, 2**20)
    with pytest.raises(MemoryError, match=r"sinkhorn: .* is too large"):
        ot.sinkhorn(None, None, huge, 0.1)
    point = torch.zeros(1, 1)
    with pytest.raises(MemoryError, match=r"sinkhorn_points: .* is too large"):
        ot.sinkhorn_points(point[None].expand(2**40, 2**20, 1), point, 0.1)
    with pytest.raises(MemoryError, match=r"apply: .* is too large"):
        solve().apply(point.expand(C.shape[1], 2**50))
    line = torch.zeros(1, dtype=torch.float64).expand(1, 2**40)
    result = solve()
    result._f = line
    with pytest.raises(MemoryError, match=r"plan: .* is too large"):
        result.plan  # noqa: B018
    assert solve().converged


def test_devices() -> None:
    with pytest.raises(ValueError, match="sinkhorn: C is on cpu but a is on meta"):
        solve(a=A.to("meta"))


# Other guises of the same numbers ------------------------------------------------------------


def same(result: ot.OTResult) -> None:
    assert_close(torch.as_tensor(result.plan), solve().plan, rtol=0, atol=1e-15)


def test_strides() -> None:
    wide = torch.full((6, 5), NAN, dtype=torch.float64)
    wide[::2, 1:3] = C
    same(solve(C=wide[::2, 1:3]))
    same(solve(C=C.T.contiguous().T))
    shared = solve(C=C[:1].expand(3, 2))
    assert_close(shared.plan, solve(C=C[:1].repeat(3, 1)).plan, rtol=0, atol=0)


def test_a_negative_bit() -> None:
    negated = torch._neg_view(-C)
    assert negated.is_neg()
    same(solve(C=negated))


def test_a_subclass() -> None:
    class Own(Tensor):
        pass

    same(solve(C=C.as_subclass(Own)))


def test_arrays_in_any_layout() -> None:
    a, b, costs = A.numpy(), B.numpy(), C.numpy()
    frozen = costs.copy()
    frozen.flags.writeable = False
    for array in (
        costs[::-1].copy()[::-1],
        np.asfortranarray(costs),
        costs.astype(">f8"),
        frozen,
    ):
        same(ot.sinkhorn(a, b, array, 0.1))


def test_numpy_results() -> None:
    result = ot.sinkhorn(A.numpy(), B.numpy().astype(np.float32), C.numpy(), np.float64(0.1))
    assert isinstance(result.f, np.ndarray)
    assert result.f.dtype == np.float64
    assert isinstance(result.value, np.float64)
    assert result.converged.dtype == bool
    assert isinstance(result.apply(np.ones(2)), np.ndarray)


def test_mixed_dtypes_promote() -> None:
    assert solve(a=A.float()).plan.dtype == torch.float64
    assert solve(C=C.half(), a=A.float(), b=B.float()).plan.dtype == torch.float32


def test_autocast_changes_nothing() -> None:
    a, b, costs = A.float(), B.float(), C.float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = solve(a=a, b=b, C=costs)
        (slope,) = torch.autograd.grad((result.plan * costs).sum(), costs)
    plain = solve(a=a, b=b, C=costs)
    assert_close(result.plan, plain.plan, rtol=0, atol=0)
    assert_close(
        slope, torch.autograd.grad((plain.plan * costs).sum(), costs)[0], rtol=0, atol=0
    )


def test_no_graph_where_none_is_wanted() -> None:
    costs = C.clone().requires_grad_()
    assert solve(C=costs).value.requires_grad
    assert not solve().value.requires_grad
    with torch.no_grad():
        result = solve(C=costs)
        assert not result.value.requires_grad
        assert not result.plan.requires_grad
    with torch.inference_mode():
        assert solve(C=costs).plan.is_inference()


def test_in_place_edits_are_noticed() -> None:
    costs = C.clone().requires_grad_() * 1
    result = solve(C=costs)
    costs.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.value.backward()
    with pytest.raises(RuntimeError, match="modified in place"):
        result.plan  # noqa: B018


def test_in_place_edits_of_potentials() -> None:
    result = solve()
    result.g.add_(1.0)
    with pytest.raises(RuntimeError, match="f or g was modified in place"):
        result.plan  # noqa: B018
    arrays = ot.sinkhorn(A.numpy(), B.numpy(), C.numpy(), 0.1)
    expected = arrays.plan
    arrays.f += 1.0
    assert (arrays.plan == expected).all()


def test_zero_weights_have_finite_gradients() -> None:
    a = changed(A, slice(None), 0.5)
    a[1] = 0
    b = torch.tensor([1.0, 0.0], dtype=torch.float64)
    inputs = [t.clone().requires_grad_() for t in (a, b, C)]
    result = ot.sinkhorn(*inputs, 0.1)
    assert (result.plan[1] == 0).all()
    assert (result.plan[:, 1] == 0).all()
    for output in (result.value, result.plan.sum(), result.f.sum(), result.cost):
        for slope in torch.autograd.grad(output, inputs, retain_graph=True):
            assert torch.isfinite(slope).all()


def test_a_forbidden_row_without_mass() -> None:
    a = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64)
    costs = changed(C, 1, INF).requires_grad_()
    result = solve(a=a, C=costs)
    assert result.converged
    assert torch.isfinite(result.f).all()
    (slope,) = torch.autograd.grad(result.value + result.plan[0, 0], costs)
    assert torch.isfinite(slope).all()


def test_parts_that_do_not_meet() -> None:
    """Two problems in one matrix: the dual has two constants free."""
    costs = torch.full((4, 4), INF, dtype=torch.float64)
    first, second = torch.rand(2, 2, 2, dtype=torch.float64)
    costs[:2, :2], costs[2:, 2:] = first, second
    costs.requires_grad_()
    result = ot.sinkhorn(None, None, costs, 0.2, tol=1e-13)
    single = first.clone().requires_grad_()
    alone = ot.sinkhorn(None, None, single, 0.2, tol=1e-13)
    assert_close(result.plan[:2, :2], alone.plan / 2, rtol=1e-11, atol=0)
    (slope,) = torch.autograd.grad(result.plan[0, 0], costs)
    (expected,) = torch.autograd.grad(alone.plan[0, 0] / 2, single)
    assert_close(slope[:2, :2], expected, rtol=1e-10, atol=1e-13)
    assert_close(slope[2:], torch.zeros_like(slope[2:]))
