"""curvkern.curvature: products, diagonals, traces and spectra of Hessians that are known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import curvkern
from curvkern.curvature import (
    hessian_diagonal,
    hessian_trace,
    hvp,
    spectral_density,
    top_eigenpairs,
)
from hutchinson_truth import META, Field, Model, every_model

DISTRIBUTIONS = pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])


class Quadratic:
    """p' A p / 2, of two parameters."""

    def __init__(self, A: Tensor, cut: int = 5) -> None:
        self.A, n = A, len(A)
        self.params = [torch.zeros(cut, dtype=A.dtype, requires_grad=True),
                       torch.zeros(n - cut, 1, dtype=A.dtype, requires_grad=True)]  # fmt: skip

    def loss(self) -> Tensor:
        p = torch.cat([t.reshape(-1) for t in self.params])
        return p @ self.A @ p / 2

    def split(self, v: Tensor) -> list[Tensor]:
        first, second = v.split([p.numel() for p in self.params])
        return [first, second[:, None]]


def flat(tensors: Any) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def symmetric(n: int = 20, seed: int = 0) -> Tensor:
    A = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (A + A.T) / 2


# Products -----------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("mode", ["auto", "reverse", "forward_over_reverse", "native"])
def test_hvp(name: str, mode: str) -> None:
    for dtype, bar in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        model = Model(name, dtype)
        loss: Any = model.loss
        if mode == "forward_over_reverse":
            loss = lambda params, model=model: model.loss(params)  # noqa: E731
        elif mode == "reverse":
            loss = model.loss()
        else:
            loss = lambda model=model: model.loss()  # noqa: E731
        for z, expected in zip(model.field["Z"], model.field.tensor("HZ"), strict=True):
            if mode == "forward_over_reverse" and model.meta["kind"].endswith("_mse"):
                with pytest.raises(RuntimeError, match="use mode 'reverse'"):
                    hvp(loss, model.params, model.split(z), mode=mode)
                break
            got = model.flat(hvp(loss, model.params, model.split(z), mode=mode))
            scale = float(model.hessian.abs().max()) * len(z) ** 0.5
            assert float((got.double() - expected).abs().max()) <= bar * scale


def test_hvp_of_parameters_of_every_kind() -> None:
    """R19"""
    linear, unused = torch.ones(3, requires_grad=True), torch.ones(2, 2, requires_grad=True)
    scalar, empty = torch.ones((), requires_grad=True), torch.ones(0, requires_grad=True)
    params = [linear, unused, scalar, empty]
    v = [torch.ones_like(p) for p in params]

    def loss(_: Any = None) -> Tensor:
        return linear.sum() + scalar**3 + empty.sum()

    found = hvp(loss, params, v)
    assert [t.tolist() for t in found] == [[0] * 3, [[0, 0], [0, 0]], 6, []]
    assert hvp(linear.sum(), linear, v[0]).tolist() == [0, 0, 0]
    assert hvp(scalar**2, scalar, torch.tensor(2.0)) == 4
    frozen = torch.ones(2)
    with pytest.raises(ValueError, match="params must require grad, number 1 does not"):
        hvp(loss, [linear, frozen], [linear, frozen])
    with pytest.raises(ValueError, match=r"loss must be a scalar, got shape \(3,\)"):
        hvp(linear * 2, [linear], [linear])
    with pytest.raises(ValueError, match=r"v has shape \(2,\) for a parameter of shape \(3,\)"):
        hvp(loss, [linear], [torch.ones(2)])
    with pytest.raises(ValueError, match="v has 2 tensors but params has 1"):
        hvp(loss, [linear], [linear, linear])
    with pytest.raises(ValueError, match=r"one of auto, reverse, .*, native, got 'backward'"):
        hvp(loss, params, v, mode="backward")
    with pytest.raises(ValueError, match="takes a function of the list of parameters"):
        hvp(loss(), params, v, mode="forward_over_reverse")
    with pytest.raises(TypeError, match="loss must be a tensor or a closure, got str"):
        hvp("loss", params, v)
    with pytest.raises(ValueError, match="params is empty"):
        hvp(loss, [], [])


def test_calls_leave_gradients_and_graphs_alone() -> None:
    p = torch.ones(3, requires_grad=True)
    loss = (p**3).sum()
    for _ in range(2):
        hvp(loss, p, torch.ones(3))
        hessian_diagonal(loss, p)
    assert p.grad is None
    loss.backward()
    assert p.grad.tolist() == [3, 3, 3]


# The diagonal -------------------------------------------------------------------------------


@every_model
@DISTRIBUTIONS
def test_diagonal_is_unbiased_with_the_variance_of_the_formula(
    name: str, distribution: str
) -> None:
    """R18; probes that are always -1 have no variance and a bias of all other entries."""
    model, n = Model(name), 256
    generator = torch.Generator().manual_seed(7)
    diagonal, variance = hessian_diagonal(
        model.loss, model.params, n, distribution=distribution, generator=generator,
        return_variance=True,
    )  # fmt: skip
    exact = Field(f"stats/{name}/{distribution}").tensor("var") / n
    scale = float(model.hessian.abs().max())
    z = (model.flat(diagonal) - model.hessian.diagonal()) / (exact + 1e-20 * scale**2).sqrt()
    assert float(z.abs().max()) < 5.5
    if len(z) > 8 and float(exact.max()) > 1e-6 * scale**2:
        big = exact > 1e-6 * scale**2
        ratio = (model.flat(variance)[big] / exact[big]).mean()
        assert 0.7 < float(ratio) < 1.4


@pytest.mark.parametrize("probes", [4000])
def test_four_thousand_probes(probes: int) -> None:
    """R18 on a quadratic: means within five standard errors, variances within a tenth."""
    A = symmetric()
    q = Quadratic(A)
    diagonal, variance = hessian_diagonal(q.loss, q.params, probes, return_variance=True)
    exact = (A.square().sum(1) - A.diagonal() ** 2) / probes
    assert float(((flat(diagonal) - A.diagonal()) / exact.sqrt()).abs().max()) < 5
    assert float((flat(variance) / exact - 1).abs().max()) < 0.1


def test_given_probes() -> None:
    model = Model("tanh")
    Z, HZ = model.field.tensor("Z"), model.field.tensor("HZ")
    probes = [model.split(z) for z in Z]
    diagonal, variance = hessian_diagonal(
        model.loss, model.params, probes=probes, return_variance=True
    )
    D = Z * HZ
    torch.testing.assert_close(model.flat(diagonal), D.mean(0), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(model.flat(variance), D.var(0) / len(Z), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", META["xdiag"])
def test_xdiag(name: str) -> None:
    field = Field(f"xdiag/{name}")
    A, W = field.tensor("A"), field.tensor("W")
    q = Quadratic(A)
    probes = [q.split(w) for w in W.T]
    found, variance = hessian_diagonal(
        q.loss, q.params, method="xdiag", probes=probes, return_variance=True
    )
    torch.testing.assert_close(flat(found), field.tensor("expected"), rtol=1e-10, atol=1e-12)
    assert (flat(variance) >= 0).all()
    if name == "lowrank":
        assert float(flat(variance).max()) < 1e-24


def test_xdiag_is_unbiased() -> None:
    A = symmetric(12)
    q = Quadratic(A)
    found = torch.stack(
        [
            flat(hessian_diagonal(q.loss, q.params, 4, method="xdiag",
                                  generator=torch.Generator().manual_seed(s)))
            for s in range(300)
        ]
    )  # fmt: skip
    z = (found.mean(0) - A.diagonal()) / (found.std(0) / math.sqrt(len(found)))
    assert float(z.abs().max()) < 4.5


def test_generators() -> None:
    """R48"""
    q = Quadratic(symmetric())
    before = torch.random.get_rng_state()
    for distribution in ("rademacher", "gaussian"):
        one, two, other = (
            flat(hessian_diagonal(q.loss, q.params, 2, distribution=distribution,
                                  generator=torch.Generator().manual_seed(s)))
            for s in (1, 1, 2)
        )  # fmt: skip
        assert torch.equal(one, two)
        assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(*(flat(hessian_diagonal(q.loss, q.params)) for _ in range(2)))


def test_diagonal_of_bfloat16() -> None:
    p = torch.ones(5, dtype=torch.bfloat16, requires_grad=True)
    (found,) = hessian_diagonal((p**2).sum(), [p], 3)
    assert found.dtype is torch.bfloat16
    assert found.tolist() == [2] * 5


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"n_probes": 0}, ValueError, "n_probes must be at least 1, got 0"),
        ({"n_probes": 1.5}, TypeError, "n_probes must be an int"),
        ({"return_variance": True}, ValueError, "needs n_probes of at least 2"),
        ({"method": "diag"}, ValueError, "method must be one of"),
        ({"distribution": "sphere"}, ValueError, "one of rademacher, gaussian, got 'sphere'"),
        ({"generator": 3}, TypeError, "generator must be a torch.Generator, got int"),
        ({"probes": [[torch.ones(4)]]}, ValueError, "probes has shape"),
        ({"probes": []}, ValueError, "number of probes must be at least 1"),
        ({"loss": torch.ones(3, requires_grad=True) * 2}, ValueError, "scalar"),
    ],
)
def test_refusals(options: dict[str, Any], kind: type[Exception], words: str) -> None:
    p = torch.ones(3, requires_grad=True)
    for function in (hessian_diagonal, hessian_trace):
        given = dict(options)
        if function is hessian_trace and "return_variance" in given:
            given["n_probes"] = 1
        with pytest.raises(kind, match=words):
            function(given.pop("loss", (p**2).sum()), [p], **given)


# The trace ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["hutchinson", "hutchpp", "xtrace"])
@DISTRIBUTIONS
def test_trace_is_unbiased(method: str, distribution: str) -> None:
    A = symmetric(16, 3)
    q = Quadratic(A)
    found, variances = zip(
        *(
            hessian_trace(q.loss, q.params, 4, method=method, distribution=distribution,
                          generator=torch.Generator().manual_seed(s), return_variance=True)
            for s in range(250)
        ),
        strict=True,
    )  # fmt: skip
    values = torch.stack(found)
    z = (values.mean() - A.trace()) / (values.std() / math.sqrt(len(values)))
    assert abs(float(z)) < 4
    if method == "hutchinson":
        assert float(torch.stack(variances).mean() / values.var()) == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("method", ["hutchpp", "xtrace"])
def test_trace_of_low_rank_is_exact(method: str) -> None:
    field = Field("xdiag/lowrank")
    A = field.tensor("A")
    q = Quadratic(A)
    found = hessian_trace(q.loss, q.params, 6, method=method)
    assert float(found) == pytest.approx(float(A.trace()), abs=1e-11)


# The spectrum -------------------------------------------------------------------------------


@every_model
def test_top_eigenpairs(name: str) -> None:
    model = Model(name)
    values = torch.linalg.eigvalsh(model.hessian)
    order = {
        "magnitude": values.abs().argsort(descending=True),
        "largest": values.argsort(descending=True),
        "smallest": values.argsort(),
    }
    for which, index in order.items():
        found = top_eigenpairs(
            model.loss, model.params, 2, which=which, tol=1e-9,
            generator=torch.Generator().manual_seed(1),
        )  # fmt: skip
        scale = float(values.abs().max())
        assert found.converged
        torch.testing.assert_close(found.values, values[index[:2]], rtol=0, atol=1e-8 * scale)
        for value, v in zip(found.values, found.vectors, strict=True):
            v = model.flat(v)
            assert float(v.norm()) == pytest.approx(1)
            off = model.hessian @ v - value * v
            assert float(off.norm()) < 1e-7 * scale


def test_eigenpairs_that_do_not_converge_warn_once() -> None:
    """R08"""
    A = torch.diag(torch.linspace(0.9, 1, 300, dtype=torch.float64))
    q = Quadratic(A)
    with pytest.warns(curvkern.ConvergenceWarning, match=r"after 5 products.*max_iter") as log:
        found = top_eigenpairs(q.loss, q.params, max_iter=5)
    assert len(log) == 1
    assert not found.converged
    assert found.iterations == 5
    with pytest.raises(ValueError, match="k must be at most 300, got 301"):
        top_eigenpairs(q.loss, q.params, 301)


def test_spectral_density() -> None:
    """All moments that Gauss quadrature has exactly, on average over probes."""
    spectrum = torch.cat([torch.linspace(-1, 0, 40), torch.tensor([5.0, 9.0])]).double()
    Q = torch.linalg.qr(symmetric(42, 5))[0]
    q = Quadratic(Q @ torch.diag(spectrum) @ Q.T)
    found = spectral_density(q.loss, q.params, 200, steps=12, width=0.3, points=400,
                             generator=torch.Generator().manual_seed(2))  # fmt: skip
    for power in (0, 1, 2, 3):
        got = (found.weights * found.nodes**power).sum(1).mean()
        expected = (spectrum**power).mean()
        assert float(got) == pytest.approx(float(expected), rel=0.08, abs=0.02)
    step = found.grid[1] - found.grid[0]
    assert float(found.density.sum() * step) == pytest.approx(1, abs=1e-3)
    exact = torch.exp(-0.5 * ((found.grid[:, None] - spectrum) / 0.3) ** 2).sum(1)
    exact /= len(spectrum) * 0.3 * math.sqrt(2 * math.pi)
    assert float((found.density - exact).abs().sum() * step) < 0.1


def test_spectral_density_of_a_linear_loss() -> None:
    p = torch.ones(4, requires_grad=True)
    found = spectral_density(p.sum(), p, 2, points=8)
    assert float(found.nodes.abs().max()) == 0
    assert found.density.isfinite().all()
