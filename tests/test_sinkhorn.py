"""curvkern.ot: values, plans and derivatives of the solvers, against the truth and POT."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import numpy as np
import ot as pot
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from curvkern import ConvergenceWarning, ot
from sinkhorn_truth import CASES, TIGHT, Case, every_case

VALUE = 1e-13  # relative
PLAN = 1e-12  # of the largest entry
DERIVATIVE = 1e-10  # relative


def near(found: Tensor | float, truth: np.ndarray | float, bound: float) -> None:
    found = np.asarray(found.detach() if isinstance(found, Tensor) else found)
    assert np.abs(found - truth).max() <= bound * max(np.abs(truth).max(), 1e-3)


@every_case
@pytest.mark.parametrize("method", ["auto", "newton"])
def test_value_and_plan(case: Case, method: str) -> None:
    result = case.solve(method=method)
    assert result.converged
    assert result.marginal_error <= TIGHT
    near(result.value, case["value"], VALUE)
    near(result.cost, case["linear"], PLAN)
    near(result.kl, case["kl"], PLAN)
    near(result.plan, case["plan"], PLAN)
    near(result.gap, 0.0, 1e-9)
    reached = np.isfinite(case["sum"])
    sums = (result.f[:, None] + result.g[None, :]).numpy()
    near(sums[reached], case["sum"][reached], 1e-11)


@every_case
def test_first_derivatives(case: Case) -> None:
    for group in case.groups:
        directions = case.direction(group)
        arguments = case.arguments()
        inputs = [arguments[key].requires_grad_() for key in directions]
        result = case.solve(arguments)
        for output, truth in ((result.value, "value"), (case.loss(result), "loss")):
            slopes = torch.autograd.grad(output, inputs, retain_graph=True)
            along = sum((s * d).sum() for s, d in zip(slopes, directions.values(), strict=True))
            near(along, case[f"{truth}_{group}"], DERIVATIVE)


@every_case
def test_second_derivatives(case: Case) -> None:
    for group in case.groups:
        directions = case.direction(group)
        arguments = case.arguments()
        inputs = [arguments[key].requires_grad_() for key in directions]
        value = case.solve(arguments).value
        slopes = torch.autograd.grad(value, inputs, create_graph=True)
        along = sum((s * d).sum() for s, d in zip(slopes, directions.values(), strict=True))
        curvatures = torch.autograd.grad(along, inputs, allow_unused=True)
        twice = sum(
            (c * d).sum()
            for c, d in zip(curvatures, directions.values(), strict=True)
            if c is not None
        )
        near(twice, case[f"curvature_{group}"], DERIVATIVE)


@every_case
def test_forward_derivatives(case: Case) -> None:
    for group in case.groups:
        directions = case.direction(group)
        arguments = case.arguments()

        def outputs(*moved: Tensor, arguments=arguments, keys=tuple(directions)):
            result = case.solve({**arguments, **dict(zip(keys, moved, strict=True))})
            return result.value, case.loss(result)

        points = tuple(arguments[key] for key in directions)
        _, (value, loss) = torch.func.jvp(outputs, points, tuple(directions.values()))
        near(value, case[f"value_{group}"], DERIVATIVE)
        near(loss, case[f"loss_{group}"], DERIVATIVE)


def random_problem(n: int = 7, m: int = 9, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    a, b = rng.random(n) + 0.1, rng.random(m) + 0.1
    return tuple(map(torch.tensor, (a / a.sum(), b / b.sum(), rng.random((n, m)))))


OUTPUTS = {
    "value": lambda r: r.value,
    "f and g": lambda r: (r.f, r.g),
    "plan": lambda r: r.plan,
    "cost": lambda r: r.cost,
    "kl": lambda r: r.kl,
    "apply": lambda r: r.apply(torch.linspace(-1, 2, 3, dtype=torch.float64)),
    "apply transposed": lambda r: r.apply(torch.eye(2, 2, dtype=torch.float64), transpose=True),
}


@pytest.mark.parametrize(
    ("output", "rho"), [*((output, None) for output in OUTPUTS), ("plan", (0.7, 1.2))]
)
def test_gradcheck(output: str, rho: tuple[float, float] | None) -> None:
    a, b, C = random_problem(2, 3)
    balance = torch.exp if rho else lambda t: t.softmax(-1)
    inputs = [a.log(), b.log(), C, torch.tensor(0.3, dtype=torch.float64)]
    if rho:
        inputs += [torch.tensor(r, dtype=torch.float64) for r in rho]
    inputs = [t.requires_grad_() for t in inputs]

    def function(a: Tensor, b: Tensor, C: Tensor, eps: Tensor, *rho: Tensor):
        result = ot.sinkhorn(balance(a), balance(b), C, eps, rho=rho or None, tol=TIGHT)
        return OUTPUTS[output](result)

    assert torch.autograd.gradcheck(
        function, inputs, check_batched_grad=output == "f and g", fast_mode=True
    )
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True, atol=1e-4)


@pytest.mark.parametrize("eps", [0.02, 1.0])
def test_plan_of_pot(eps: float) -> None:
    a, b, C = (t.numpy() for t in random_problem())
    theirs = pot.sinkhorn(
        a, b, C, eps, method="sinkhorn_log", stopThr=1e-14, numItermax=100_000
    )
    result = ot.sinkhorn(a, b, C, eps, tol=TIGHT)
    np.testing.assert_allclose(result.plan, theirs, atol=1e-12)
    assert isinstance(result.plan, np.ndarray)


def test_plan_of_pot_unbalanced() -> None:
    a, b, C = (t.numpy() for t in random_problem())
    theirs = pot.unbalanced.sinkhorn_unbalanced(
        a, 2 * b, C, 0.1, 0.7, stopThr=1e-14, numItermax=100_000
    )
    result = ot.sinkhorn(a, 2 * b, C, 0.1, rho=0.7, tol=TIGHT)
    np.testing.assert_allclose(result.plan, theirs, atol=1e-10)


def test_tiny_eps_approaches_the_exact_cost() -> None:
    a, b, C = (t.numpy() for t in random_problem(20, 20))
    result = ot.sinkhorn(a, b, C, 1e-5)
    assert result.converged
    assert abs(result.cost - pot.emd2(a, b, C)) < 1e-4


def test_points_equal_the_matrix() -> None:
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    distances = {
        "sqeuclidean": torch.cdist(x, y) ** 2,
        "half_sqeuclidean": torch.cdist(x, y) ** 2 / 2,
        "euclidean": torch.cdist(x, y),
        "l1": torch.cdist(x, y, p=1),
    }
    for kind, C in distances.items():
        points = ot.sinkhorn_points(x, y, 0.5, cost=kind, scale=3.0, tol=TIGHT)
        matrix = ot.sinkhorn(None, None, 3 * C, 0.5, tol=TIGHT)
        assert_close(points.plan, matrix.plan, rtol=1e-11, atol=1e-13)


def test_gradients_of_the_value_need_no_solve(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a system was solved")

    monkeypatch.setattr(ot._gradients, "dual_system", refuse)
    a, b, C = (t.requires_grad_() for t in random_problem())
    result = ot.sinkhorn(a.softmax(0), b.softmax(0), C, 0.1)
    assert all(slope is not None for slope in torch.autograd.grad(result.value, (a, b, C)))


def test_points_in_many_dimensions_far_from_the_origin() -> None:
    x, y = torch.randn(6, 40, dtype=torch.float64), torch.randn(5, 40, dtype=torch.float64)
    at_origin = ot.sinkhorn_points(x, y, 5.0, tol=TIGHT)
    far = ot.sinkhorn_points(x + 1e4, y + 1e4, 5.0, tol=TIGHT)
    assert_close(far.plan, at_origin.plan, rtol=1e-8, atol=1e-11)


def test_a_batch_equals_its_problems() -> None:
    problems = [random_problem(seed=seed) for seed in range(3)]
    a, b, C = (torch.stack(parts) for parts in zip(*problems, strict=True))
    eps = torch.tensor([1.0, 0.1, 0.003], dtype=torch.float64)
    rho = torch.tensor([torch.inf, 0.5, torch.inf], dtype=torch.float64)
    C.requires_grad_()
    result = ot.sinkhorn(a, b, C, eps, rho=rho, tol=TIGHT)
    assert result.converged.all()
    assert result.plan.shape == (3, 7, 9)
    (slope,) = torch.autograd.grad(result.f.sum() + result.value.sum(), C)
    for k, (a1, b1, C1) in enumerate(problems):
        C1.requires_grad_()
        one = ot.sinkhorn(a1, b1, C1, eps[k], rho=rho[k], tol=TIGHT)
        assert_close(result.value[k], one.value, rtol=1e-12, atol=0)
        assert_close(result.plan[k], one.plan, rtol=1e-9, atol=1e-13)
        (expected,) = torch.autograd.grad(one.f.sum() + one.value, C1)
        assert_close(slope[k], expected, rtol=1e-8, atol=1e-9)


def test_what_has_no_batch_is_shared() -> None:
    a, b, C = random_problem()
    batch = torch.stack([C, 2 * C])
    result = ot.sinkhorn(a, None, batch, 0.3, tol=TIGHT)
    one = ot.sinkhorn(a, None, 2 * C, 0.3, tol=TIGHT)
    assert_close(result.plan[1], one.plan, rtol=1e-9, atol=1e-13)
    shared = ot.sinkhorn(torch.stack([a, a.flip(0)]), b, C, 0.3, tol=TIGHT)
    assert_close(shared.plan[0], ot.sinkhorn(a, b, C, 0.3, tol=TIGHT).plan)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_narrow_dtypes(dtype: torch.dtype) -> None:
    a, b, C = (t.to(dtype) for t in random_problem())
    C.requires_grad_()
    result = ot.sinkhorn(a, b, C, 0.2)
    wide = ot.sinkhorn(
        a.double(), b.double() * (a.double().sum() / b.double().sum()), C.double(), 0.2
    )
    assert result.value.dtype == result.f.dtype == result.plan.dtype == dtype
    assert result.marginal_error.dtype == torch.float64
    assert result.converged
    bound = 4 * torch.finfo(dtype).eps
    assert_close(result.plan.double(), wide.plan, rtol=bound, atol=bound)
    (slope,) = torch.autograd.grad(result.value, C)
    assert slope.dtype == dtype
    assert_close(slope.double(), wide.plan, rtol=bound, atol=bound)


def test_a_warm_start_saves_the_work() -> None:
    a, b, C = random_problem()
    cold = ot.sinkhorn(a, b, C, 0.05)
    warm = ot.sinkhorn(a, b, C, 0.05, init=cold)
    assert warm.converged
    assert warm.n_iter < cold.n_iter
    assert_close(ot.sinkhorn(a, b, C, 0.05, init=(cold.f, cold.g)).plan, cold.plan)


def test_history_and_callback() -> None:
    a, b, C = random_problem()
    seen = []
    result = ot.sinkhorn(
        a, b, C, 0.05, method="sinkhorn", check_every=7, tol=1e-6,
        callback=lambda iteration, error: seen.append((iteration, float(error.max()))),
    )  # fmt: skip
    assert seen == result.history
    assert [iteration for iteration, _ in seen[:-1]] == list(range(7, seen[-1][0], 7))
    assert seen[-1][1] <= 1e-6


def test_a_raising_callback_propagates() -> None:
    def stop(iteration: int, error: Tensor) -> None:
        raise KeyError("enough")

    a, b, C = random_problem()
    with pytest.raises(KeyError, match="enough"):
        ot.sinkhorn(a, b, C, 1e-4, callback=stop)
    assert ot.sinkhorn(a, b, C, 0.1).converged


@pytest.mark.parametrize("method", ["auto", "sinkhorn", "newton"])
def test_one_iteration_warns_once(method: str) -> None:
    a, b, C = random_problem()
    with pytest.warns(ConvergenceWarning) as caught:
        result = ot.sinkhorn(a, b, C, 1e-3, max_iter=1, method=method)
    assert len(caught) == 1
    assert "after 1 iteration:" in str(caught[0].message)
    assert "tol" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert result.n_iter == 1
    assert not result.converged
    assert torch.isfinite(result.plan).all()


@pytest.mark.parametrize("method", ["auto", "sinkhorn", "newton"])
@pytest.mark.parametrize("eps", [1e-2, 1e-4, 1e-6])
def test_hard_problems_are_finite_and_honest(eps: float, method: str) -> None:
    a, b, C = (t.float() for t in random_problem(12, 12))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        result = ot.sinkhorn(a, b, C, eps, max_iter=300, method=method)
    P = result.plan.double()
    assert torch.isfinite(P).all()
    assert torch.isfinite(result.value)
    off = (P.sum(1) - a.double()).abs().sum() + (P.sum(0) - b.double()).abs().sum()
    assert bool(result.converged) == bool(result.marginal_error <= 1e-9)
    assert not result.converged or off < 1e-5  # a plan in float32


def test_the_gap_bounds_the_error_of_the_value() -> None:
    a, b, C = random_problem()
    exact = ot.sinkhorn(a, b, C, 0.02, tol=TIGHT)
    with pytest.warns(ConvergenceWarning):
        rough = ot.sinkhorn(a, b, C, 0.02, max_iter=3, method="sinkhorn")
    off = float(exact.value - rough.value)
    assert 0 < off <= rough.gap
    assert exact.gap < 1e-12


def test_sparse_plans() -> None:
    a, b, C = random_problem()
    result = ot.sinkhorn(a, b, C, 0.05)
    P = result.plan
    kept = result.plan_sparse(threshold=0.01)
    assert_close(kept.to_dense(), torch.where(P > 0.01, P, 0.0))
    largest = result.plan_sparse(k=2).to_dense()
    assert ((largest > 0).sum(1) == 2).all()
    assert_close(largest.amax(1), P.amax(1))
    arrays = ot.sinkhorn(a.numpy(), b.numpy(), C.numpy(), 0.05).plan_sparse(threshold=0.01)
    np.testing.assert_allclose(arrays.toarray(), kept.to_dense().numpy())
    batch = ot.sinkhorn(a, b, torch.stack([C, C + C**2]), 0.05).plan_sparse(k=3)
    assert [plan.shape for plan in batch] == [(7, 9), (7, 9)]
    for arguments in ({}, {"threshold": 0.1, "k": 1}, {"threshold": -1.0}, {"k": 0}):
        with pytest.raises(ValueError, match="plan_sparse"):
            result.plan_sparse(**arguments)


def test_a_sparse_plan_of_arrays_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    result = ot.sinkhorn(None, None, np.eye(3), 0.1)
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    with pytest.raises(ImportError, match="needs SciPy; install it, or pass tensors"):
        result.plan_sparse(k=1)


def test_apply() -> None:
    a, b, C = random_problem()
    result = ot.sinkhorn(a, b, C, 0.05)
    v, w = torch.randn(9, 2, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    assert_close(result.apply(v), result.plan @ v)
    assert_close(result.apply(w, transpose=True), result.plan.T @ w)
    with pytest.raises(ValueError, match=r"\(9,\) or \(9, k\)"):
        result.apply(w)
    arrays = ot.sinkhorn(a.numpy(), b.numpy(), C.numpy(), 0.05)
    big_endian = arrays.apply(v.numpy().astype(">f8"))
    np.testing.assert_allclose(big_endian, result.apply(v).numpy(), rtol=1e-12)
    for one, wrong, words in (
        (result, [1.0] * 9, "tensor, got list"),
        (arrays, [1.0] * 9, "array, got list"),
        (arrays, np.ones(9, dtype=int), "array, got ndarray of int64"),
        (arrays, v, "array, got Tensor of torch.float64"),
        (result, v.numpy(), "tensor, got ndarray of float64"),
    ):
        with pytest.raises(TypeError, match=f"apply: v must be a floating {words}"):
            one.apply(wrong)


def test_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in CASES if case.name == "zeros")
    arguments = {key: t.requires_grad_() for key, t in case.arguments().items()}

    def everything() -> list[Tensor]:
        result = case.solve(arguments)
        outputs = [result.value, result.plan, result.cost, result.kl, result.apply(result.g)]
        outputs.append(result.apply(result.f, transpose=True))
        total = sum(output.sum() for output in outputs)
        inputs = [arguments[key] for key in ("a", "b", "x", "y", "eps")]
        value = torch.autograd.grad(result.value, inputs, retain_graph=True)
        return [*outputs, result.gap, *value, *torch.autograd.grad(total, inputs)]

    whole = everything()
    monkeypatch.setattr(ot._kernel, "BLOCK", 14)
    for part, expected in zip(everything(), whole, strict=True):
        assert_close(part, expected, rtol=1e-10, atol=1e-12)


def test_a_forked_child_finishes(run_python: Callable[..., object]) -> None:
    run_python("""
        import os
        import torch
        from curvkern import ot

        C = torch.rand(300, 300, dtype=torch.float64, requires_grad=True)
        ot.sinkhorn(None, None, C, 0.5).plan.sum().backward()
        child = os.fork()
        if child == 0:
            result = ot.sinkhorn(None, None, C, 0.5)
            result.plan[0, 0].backward()
            os._exit(0 if result.converged else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    """)


def test_forked_children_read_results(run_python: Callable[..., object]) -> None:
    """Without a solve of their own first: loops of torch would wait for lost threads."""
    run_python("""
        import os, time, warnings
        warnings.simplefilter("ignore")
        import torch
        from curvkern import ot

        torch.set_num_threads(2)
        C, x = torch.rand(500, 500).double(), torch.rand(500, 3).double()
        matrix, points = ot.sinkhorn(None, None, C, 0.5), ot.sinkhorn_points(x, x + 1, 0.5)
        histograms = C[:3].softmax(1)
        calls = [
            lambda: matrix.plan,
            lambda: matrix.gap,
            lambda: matrix.apply(C),
            lambda: matrix.plan_sparse(k=3),
            lambda: points.transport(x),
            lambda: points.potential_g(x),
            lambda: ot.barycenter(histograms, None, 0.1, x=x, max_iter=3),
            lambda: ot.soft_rank(C[:3]),
            lambda: ot.quadratic_ot(None, None, C, 1.0),
        ]
        for call in calls:
            call()
        for number, call in enumerate(calls):
            child = os.fork()
            if child == 0:
                call()
                os._exit(0)
            done, last = 0, time.monotonic() + 60
            while not done and time.monotonic() < last:
                time.sleep(0.01)
                done, status = os.waitpid(child, os.WNOHANG)
            if not done:
                os.kill(child, 9)
            assert done and os.waitstatus_to_exitcode(status) == 0, number
    """)


def test_repr() -> None:
    a, b, C = random_problem()
    assert repr(ot.sinkhorn(a, b, C.requires_grad_(), 1.0)).startswith(
        "OTResult(n=7, m=9, value="
    )
    batch = ot.sinkhorn(a, b, torch.stack([C, C]), 1.0)
    assert "batch=2" in repr(batch)
    assert "2 converged" in repr(batch)
    meta = ot.sinkhorn(None, None, C.to("meta"), 1.0)
    assert repr(meta) == "OTResult(n=7, m=9, no values)"
    seen = []

    def value(C: Tensor) -> Tensor:
        result = ot.sinkhorn(None, None, C, 1.0)
        seen.append(repr(result))
        return result.value

    torch.func.vmap(value)(torch.stack([C, C]))
    assert seen == ["OTResult(n=7, m=9, no values)"]
