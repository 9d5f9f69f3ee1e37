"""The problems of tests/data/sinkhorn_cases.npz, at the tolerances that they are promised at.

Values to 1e-11, gradients to 1e-8, both relative; marginals to 1e-12 for tol 1e-13; f + g to
1e-9 eps, and 1e-6 eps where eps is tiny for the size of the problem. Each also against POT, or,
where POT needs more than ten thousand iterations, against dense Newton steps of the reference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import ot as pot
import pytest
import torch
from torch import Tensor
from torch.autograd import grad

from curvkern import ot
from curvkern._sinkhorn import Problem
from curvkern.reference import sinkhorn as reference
from curvkern.reference.costs import cost_matrix
from stored import Stored, data

TOL, VALUE, MARGINALS, DERIVATIVE = 1e-13, 1e-11, 1e-12, 1e-8
HARD = "assign_n200_eta480_hard"
SLOW = (HARD, "tiny_gauss_d2_60_3e-4")  # 35 000 and 200 000 iterations
METHODS = ("auto", "newton")


class Case(Stored):
    file = "sinkhorn_cases.npz"

    @property
    def eps(self) -> float:
        return float(self["eps"])

    @property
    def rho(self) -> tuple[float, float]:
        return float(self["rho"][0]), float(self["rho"][1])

    @property
    def is_balanced(self) -> bool:
        return bool(np.isinf(self.rho).all())

    @property
    def metric(self) -> dict[str, Any]:
        return {"cost": str(self["cost"]), "scale": float(self["scale"])}

    def tensor(self, field: str) -> Tensor:
        return torch.tensor(self[field], requires_grad=True)

    def costs(self) -> Tensor:
        """C of either kind of problem, a leaf."""
        if "C" in self:
            return self.tensor("C")
        x, y = (torch.tensor(self[key])[None] for key in "xy")
        metric = self.metric
        return (metric["scale"] * cost_matrix(x, y, metric["cost"])[0]).requires_grad_()

    def solve(self, method: str) -> tuple[ot.OTResult, dict[str, Tensor]]:
        """The result, and the tensors that it is a function of."""
        given = {key: self.tensor(key) for key in ("a", "b", "C", "x", "y") if key in self}
        weights = {"a": given["a"], "b": given["b"]}
        options = {"tol": TOL, "rho": self.rho, "method": method}
        if "C" in given:
            return ot.sinkhorn(*weights.values(), given["C"], self.eps, **options), given
        points = given["x"], given["y"], self.eps
        return ot.sinkhorn_points(*points, **weights, **self.metric, **options), given


CASES = [Case(str(name)) for name in data(Case.file)["names"]]
CLOUDS = [case for case in CASES if "x" in case]


def by_name(cases: list[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


every_method = pytest.mark.parametrize("method", METHODS)


def near(found: Tensor, truth: np.ndarray, bound: float) -> None:
    off = np.abs(found.detach().numpy() - truth).max()
    assert off <= bound * np.abs(truth).max()


@by_name(CASES)
@every_method
def test_solution(case: Case, method: str) -> None:
    result, _ = case.solve(method)
    assert result.converged
    near(result.value, case["value"], VALUE)
    near(result.cost, case["linear"], VALUE)
    near(result.kl, case["kl"], VALUE)
    a, b, f, g = (torch.tensor(case[key]) for key in "abfg")
    rho = case.rho
    off_a = (result.plan.sum(1) - a * torch.exp(-result.f / rho[0])).abs().sum() / a.sum()
    off_b = (result.plan.sum(0) - b * torch.exp(-result.g / rho[1])).abs().sum() / b.sum()
    assert off_a <= MARGINALS
    assert off_b <= MARGINALS
    apart = (result.f[:, None] + result.g) - (f[:, None] + g)
    assert apart.abs().max() <= (1e-6 if case.name == HARD else 1e-9) * case.eps


@by_name(CASES)
@every_method
def test_gradients_of_the_value(case: Case, method: str) -> None:
    result, given = case.solve(method)
    found = dict(zip(given, grad(result.value, list(given.values())), strict=True))
    da, db = found["a"].numpy(), found["b"].numpy()
    if case.is_balanced:  # up to a constant
        shift = np.mean(np.concatenate([case["grad_a"] - da, db - case["grad_b"]]))
        da, db = da + shift, db - shift
    near(torch.tensor(da), case["grad_a"], DERIVATIVE)
    near(torch.tensor(db), case["grad_b"], DERIVATIVE)
    for key in ("x", "y"):
        if key in found:
            near(found[key], case[f"grad_{key}"], DERIVATIVE)
    if "C" in found:
        near(found["C"], result.plan.detach().numpy(), VALUE)


@by_name(CASES)
@every_method
def test_gradients_of_the_plan(case: Case, method: str) -> None:
    result, given = case.solve(method)
    W, V = (
        torch.tensor(np.random.default_rng(seed).standard_normal(result.plan.shape))
        for seed in (777, 778)
    )
    loss = (result.plan * W).sum()
    near(loss, case["plan_L"], DERIVATIVE)
    if "x" in case:
        for key, slope in zip("xy", grad(loss, [given["x"], given["y"]]), strict=True):
            near(slope, case[f"plan_g{key}"], DERIVATIVE)
    C = case.costs()
    weights = torch.tensor(case["a"]), torch.tensor(case["b"])
    plan = ot.sinkhorn(*weights, C, case.eps, rho=case.rho, tol=TOL, method=method).plan
    (slope,) = grad((plan * W).sum(), C)
    near((slope * V).sum(), case["plan_gC_dot"], DERIVATIVE)
    if "plan_gC" in case:
        near(slope, case["plan_gC"], DERIVATIVE)


@by_name(CLOUDS)
@every_method
def test_second_derivatives(case: Case, method: str) -> None:
    result, given = case.solve(method)
    (slope,) = grad(result.value, given["x"], create_graph=True)
    (product,) = grad((slope * torch.tensor(case["hvp_v"])).sum(), given["x"])
    near(product, case["hvp_xx"], DERIVATIVE)


@by_name(CLOUDS)
@every_method
def test_divergence(case: Case, method: str) -> None:
    x, y = case.tensor("x"), case.tensor("y")
    weights = {key: torch.tensor(case[key]) for key in "ab"}
    divergence = ot.sinkhorn_divergence(
        x, y, case.eps, **weights, rho=case.rho[0], **case.metric, method=method, tol=TOL
    )
    near(divergence, case["divergence"], VALUE)
    for key, slope in zip("xy", grad(divergence, [x, y]), strict=True):
        near(slope, case[f"div_grad_{key}"], DERIVATIVE)


def test_three_cases_as_a_batch() -> None:
    batch = [case for case in CASES if case.name.startswith("batch")]
    a, b, x, y, eps, v = (
        torch.tensor(np.stack([case[key] for case in batch]))
        for key in ("a", "b", "x", "y", "eps", "hvp_v")
    )
    x.requires_grad_()
    result = ot.sinkhorn_points(x, y, eps, a=a, b=b, tol=TOL)
    (slope,) = grad(result.value.sum(), x, create_graph=True)
    (product,) = grad((slope * v).sum(), x)
    assert len(batch) == 3
    for k, case in enumerate(batch):
        near(result.value[k], case["value"], VALUE)
        near(slope[k], case["grad_x"], DERIVATIVE)
        near(product[k], case["hvp_xx"], DERIVATIVE)


@by_name([case for case in CASES if case.name not in SLOW])
def test_plan_of_pot(case: Case) -> None:
    """In float64 its plan is as good as the rounding of its iterations."""
    result, _ = case.solve("auto")
    a, b, C = case["a"], case["b"], case.costs().detach().numpy()
    live = np.ix_(a > 0, b > 0)  # where there is no mass, it takes the logarithm of 0
    if case.is_balanced:
        b = b * (a.sum() / b.sum())
        solver, options = pot.bregman.sinkhorn_log, {}
    else:
        solver, options = pot.unbalanced.sinkhorn_unbalanced, {"reg_m": case.rho}
    theirs = solver(
        a[a > 0], b[b > 0], C[live], reg=case.eps, numItermax=10_000, stopThr=1e-14, **options
    )
    plan = result.plan.detach().numpy()
    np.testing.assert_allclose(plan[live], theirs, rtol=0, atol=1e-10 * plan.max())
    assert plan.sum() == pytest.approx(plan[live].sum(), rel=1e-15)


@by_name([case for case in CASES if case.name in SLOW])
def test_plan_of_the_reference(case: Case) -> None:
    result, _ = case.solve("auto")
    a, b, C = torch.tensor(case["a"]), torch.tensor(case["b"]), case.costs().detach()
    b = b * (a.sum() / b.sum())
    eps = torch.tensor([case.eps], dtype=torch.float64)
    problem = Problem(
        a[None], b[None], C[None], None, None, "", 1.0, eps, torch.full((1, 2), torch.inf)
    )
    dense = reference.solve(
        problem, None, None, max_iter=1000, tol=TOL, check_every=10, method="newton"
    )
    assert dense.converged
    exponent = (dense.f[0, :, None] + dense.g[0] - C) / case.eps
    theirs = a[:, None] * b * torch.exp(exponent)
    near(result.plan, theirs.numpy(), 1e-9)
