"""curvkern.fisher.influence and hypergradient: against retraining and closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from curvkern.fisher import hypergradient, influence
from curvkern.reference.mfac import SlidingWindowFisher, StaticFisher


@pytest.mark.parametrize(("n_test", "n_train"), [(3, 70), (70, 3), (130, 140), (0, 4), (1, 1)])
def test_against_the_dense_matrix(n_test: int, n_train: int) -> None:
    test, train = torch.randn(n_test, 11), torch.randn(n_train, 11, dtype=torch.float64)
    fisher = StaticFisher.from_gradients(torch.randn(6, 11), 0.1)
    got = influence(test, train, fisher)
    wanted = -test.double() @ torch.linalg.solve(fisher.matrix(), train.T)
    assert got.dtype is torch.float64
    torch.testing.assert_close(got, wanted)
    assert influence(test, train.float(), fisher).dtype is torch.float32


def test_leaving_out_a_regression_point() -> None:
    """Least squares with unit noise, where the Hessian is known: I is the slope in a weight."""
    n, d = 40, 3
    X, y = torch.randn(n, d, dtype=torch.float64), torch.randn(n, dtype=torch.float64)
    weight = torch.ones(n, dtype=torch.float64) / n

    def solve(weight: Tensor) -> Tensor:
        H = X.T @ (weight[:, None] * X) + 1e-2 * torch.eye(d, dtype=torch.float64)
        return torch.linalg.solve(H, X.T @ (weight * y))

    def losses(w: Tensor) -> Tensor:
        return (X @ w - y) ** 2 / 2

    w = solve(weight)
    gradients = (X @ w - y)[:, None] * X
    # F of rows x_i is the Hessian itself.
    got = influence(gradients, gradients, StaticFisher.from_gradients(X, 1e-2))
    slopes = torch.func.jacrev(lambda p: losses(solve(p)))(weight)
    torch.testing.assert_close(got, slopes)
    assert (got.diagonal() <= 0).all()


@pytest.mark.parametrize(
    ("test", "train", "fisher", "kind", "words"),
    [
        (
            torch.ones(2, 3),
            torch.ones(2, 4),
            None,
            ValueError,
            r"train_grads has shape \(2, 4\)",
        ),
        (torch.ones(3), torch.ones(2, 3), None, ValueError, r"expected \(n, 3\)"),
        ([1.0], torch.ones(2, 3), None, TypeError, "test_grads must be a tensor"),
        (torch.ones(2, 3).int(), torch.ones(2, 3), None, TypeError, "must be floating"),
        (torch.ones(2, 3), torch.ones(2, 3), "F", TypeError, "method ihvp, got str"),
        (
            torch.ones(2, 3),
            torch.ones(2, 3, device="meta"),
            None,
            ValueError,
            "test_grads is on cpu but train_grads on meta",
        ),
    ],
)
def test_influence_refuses(test: Any, train: Any, fisher: Any, kind: Any, words: str) -> None:
    fisher = fisher or SlidingWindowFisher(3, 2, 1.0)
    with pytest.raises(kind, match=words):
        influence(test, train, fisher)


def test_influence_needs_products_only() -> None:
    class Bare:
        d = 5

        def ihvp(self, v: Tensor) -> Tensor:
            return v / 2

    a, b = torch.randn(3, 5), torch.randn(4, 5)
    torch.testing.assert_close(influence(a, b, Bare()), -a @ b.T / 2)
    with pytest.raises(TypeError, match="layout"):
        influence(a.to_sparse(), b, Bare())


def ridge(h: Tensor, scale: Tensor, n: int = 30, d: int = 4) -> tuple[Any, Any, Tensor]:
    """Training and validation loss and the trained weights for penalties h and a scale."""
    generator = torch.Generator().manual_seed(1)
    X, V = torch.randn(2, n, d, dtype=torch.float64, generator=generator)
    y, u = torch.randn(2, n, dtype=torch.float64, generator=generator)

    def train(w: Tensor) -> Tensor:
        return ((X @ w * scale - y) ** 2).mean() / 2 + (h.exp() * w * w).sum() / 2

    def val(w: Tensor) -> Tensor:
        return ((V @ w * scale - u) ** 2).mean() / 2

    A = scale**2 * X.T @ X / n + torch.diag(h.exp())
    return train, val, torch.linalg.solve(A, scale * X.T @ y / n)


def test_hypergradient_of_ridge_regression() -> None:
    """Against the derivative through the closed solution; scale is in both losses directly."""
    h = torch.tensor([-1.0, 0.0, -2.0, 0.5], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    train, val, solution = ridge(h, scale)
    wanted = torch.autograd.grad(val(solution), (h, scale), retain_graph=True)

    w = solution.detach().requires_grad_()
    H = torch.func.hessian(train)(w.detach()).detach()
    got = hypergradient(
        val(w), train(w), w, (h, scale), ihvp=lambda v: torch.linalg.solve(H, v)
    )
    torch.testing.assert_close(got, wanted)
    # The weights in two parts, and an object with ihvp
    first, second = w.detach()[:1].requires_grad_(), w.detach()[1:].requires_grad_()
    whole = torch.cat([first, second])

    class Solver:
        def ihvp(self, v: Tensor) -> Tensor:
            return torch.linalg.solve(H, v)

    parts = hypergradient(val(whole), train(whole), [first, second], h, ihvp=Solver())
    torch.testing.assert_close(parts, got[:1])
    assert w.grad is None
    assert h.grad is None


def test_what_does_not_depend_is_zero() -> None:
    w = torch.ones(2, requires_grad=True)
    h, direct, unused = (torch.tensor(2.0, requires_grad=True) for _ in range(3))
    got = hypergradient(
        direct * w.sum(), h * (w**2).sum() / 2, w, (h, direct, unused), ihvp=lambda v: v / 2
    )
    # dval/dw = 2, H = 2, d2 train / dw dh = w
    assert [float(g) for g in got] == [-2, 2, 0]
    flat = hypergradient(w.sum(), torch.tensor(0.0), w, h, ihvp=lambda v: v)
    assert [float(g) for g in flat] == [0]
    linear = hypergradient(w.sum(), 3 * w.sum(), w, h, ihvp=lambda v: v)
    assert [float(g) for g in linear] == [0]


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"val_loss": 1.0}, TypeError, "val_loss must be a tensor, got float"),
        ({"train_loss": torch.ones(2)}, ValueError, r"train_loss must be a scalar, got shape"),
        ({"weights": []}, ValueError, "weights is empty"),
        ({"weights": [3]}, TypeError, "weights must be tensors"),
        ({"weights": 3}, TypeError, "a tensor or a sequence of them, got int"),
        ({"hyperparameters": torch.ones(2)}, ValueError, "hyperparameters must require grad"),
        ({"ihvp": 3}, TypeError, "ihvp must be a function"),
        ({"ihvp": lambda v: v[:1]}, ValueError, r"must return shape \(2,\), got \(1,\)"),
        ({"ihvp": lambda v: None}, ValueError, "got NoneType"),
        ({"ihvp": lambda v: v / 0}, ValueError, "must be finite"),
    ],
)
def test_hypergradient_refuses(change: dict[str, Any], kind: Any, words: str) -> None:
    w, h = torch.ones(2, requires_grad=True), torch.ones(1, requires_grad=True)
    arguments = {
        "val_loss": w.sum(),
        "train_loss": (h * w * w).sum(),
        "weights": w,
        "hyperparameters": h,
        "ihvp": lambda v: v,
        **change,
    }
    with pytest.raises(kind, match=words):
        hypergradient(**arguments)
