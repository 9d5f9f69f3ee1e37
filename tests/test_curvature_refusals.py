"""What curvature functions refuse, before anything changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from curvkern.curvature import (
    fish_mask,
    fisher_diagonal,
    hessian_diagonal,
    hessian_trace,
    hvp,
    merge_fisher,
    spectral_density,
    synaptic_dampening_,
    top_eigenpairs,
)

NAN, INF = float("nan"), float("inf")


def cube(*values: float) -> tuple[Tensor, Callable[[], Tensor]]:
    p = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    return p, lambda: p.pow(3).sum()


@pytest.mark.parametrize("mode", ["auto", "reverse", "native"])
@pytest.mark.parametrize(
    ("v", "error", "words"),
    [
        (torch.ones(2, dtype=torch.complex128), TypeError, "v must be real, got torch.complex"),
        (torch.ones(2) > 0, TypeError, "v must be real, got torch.bool"),
        (torch.ones(2).to_sparse(), TypeError, "v must be dense, got layout torch.sparse_coo"),
        (torch.ones(2, device="meta"), ValueError, "v is on meta but its parameter on cpu"),
        (None, TypeError, "v must be tensors, got NoneType"),
        ("ab", TypeError, "v must be tensors, got str"),
        (torch.ones(2).numpy(), TypeError, "v must be tensors, got float32"),
    ],
)
def test_vectors(mode: str, v: Any, error: type[Exception], words: str) -> None:
    p, loss = cube(1.0, 2.0)
    with pytest.raises(error, match=f"hvp: {words}"):
        hvp(loss, p, v, mode=mode)


def test_losses_and_params() -> None:
    p, loss = cube(1.0, 2.0)
    with pytest.raises(TypeError, match=r"loss must be real, got torch\.complex128"):
        hvp(lambda: torch.complex(p.sum(), p.prod()), p, torch.ones(2))
    with pytest.raises(TypeError, match="params must be tensors, got NoneType"):
        hvp(loss, None, torch.ones(2))


def test_inference_mode() -> None:
    """There a graph cannot be made: zeros would be wrong."""
    p, loss = cube(1.0, 2.0)
    calls: list[Callable[[], Any]] = [
        lambda: hvp(loss, p, torch.ones(2)),
        lambda: hvp(lambda q: q[0].pow(3).sum(), p, p, mode="forward_over_reverse"),
        lambda: hessian_diagonal(loss, p),
        lambda: hessian_trace(loss, p),
        lambda: top_eigenpairs(loss, p),
        lambda: fisher_diagonal(lambda x: x @ p, p, [torch.ones(1, 2).double()]),
    ]
    for call in calls:
        with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
            call()


@pytest.mark.parametrize(
    "call",
    [
        lambda loss, p: hessian_diagonal(loss, p, 2, method="xdiag"),
        lambda loss, p: hessian_trace(loss, p, 4, method="hutchpp"),
        lambda loss, p: hessian_trace(loss, p, 4, method="xtrace"),
        lambda loss, p: top_eigenpairs(loss, p, 1),
        lambda loss, p: spectral_density(loss, p),
    ],
)
def test_products_that_are_not_finite(call: Callable[..., Any]) -> None:
    p, _ = cube(1.0, NAN, 2.0)
    with pytest.raises(ValueError, match="must be finite"):
        call(lambda: p.pow(3).sum(), p)


def test_spectrum_of_nothing() -> None:
    p, loss = cube()
    with pytest.raises(ValueError, match="spectral_density: params has no elements"):
        spectral_density(loss, p)


def test_fisher_diagonal() -> None:
    w = torch.ones(2, requires_grad=True)
    X = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    with torch.no_grad():  # as around an evaluation
        assert torch.equal(fisher_diagonal(lambda x: x @ w, w, [X])[0], torch.tensor([5.0, 2]))
    refused: list[tuple[Any, Any, type[Exception], str]] = [
        (lambda x: x * w, [X], ValueError, r"losses must have shape \(n,\) or \(\), got"),
        (lambda x: x @ w * NAN, [X], ValueError, "must be finite"),
        (lambda x: x.sum(1), [X], ValueError, "loss_fn must depend on params"),
        (lambda x: 1.0, [X], TypeError, "loss_fn must return a tensor, got float"),
        (lambda x: x @ w, None, TypeError, "batches must be iterable, got NoneType"),
    ]
    for loss, batches, error, words in refused:
        with pytest.raises(error, match=f"fisher_diagonal: .*{words}"):
            fisher_diagonal(loss, w, batches)


@pytest.mark.parametrize("bad", [NAN, INF, -1.0])
def test_fishers_that_are_none(bad: float) -> None:
    good, wrong = torch.tensor([1.0, 50.0]), torch.tensor([bad, 50.0])
    p = [torch.ones(2), torch.ones(2)]
    words = "must be finite and not negative, got 1 elements"
    with pytest.raises(ValueError, match=f"merge_fisher: fishers {words}"):
        merge_fisher([p, p], [[good, good], [good, wrong]])
    with pytest.raises(ValueError, match=f"fish_mask: fisher {words}"):
        fish_mask([good, wrong], 1)
    with pytest.raises(ValueError, match=f"synaptic_dampening_: fisher_all {words}"):
        synaptic_dampening_(p, [good, wrong], [100 * good, good])
    with pytest.raises(ValueError, match=f"synaptic_dampening_: fisher_forget {words}"):
        synaptic_dampening_(p, [good, good], [100 * good, wrong])
    assert all(bool((one == 1).all()) for one in p)  # the first, too


def test_fishers_of_other_kinds() -> None:
    one = torch.ones(2)
    whole = torch.tensor([1, 2])
    with pytest.raises(TypeError, match="merge_fisher: fishers must be tensors, got NoneType"):
        merge_fisher([[one]], [[None]])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="merge_fisher: models must be real and floating"):
        merge_fisher([[whole]], [[one]])
    with pytest.raises(TypeError, match="synaptic_dampening_: model must be real and floating"):
        synaptic_dampening_([whole], [one], [100 * one])
    with pytest.raises(TypeError, match="fish_mask: fisher must be tensors, got float"):
        fish_mask([1.0, 2.0], 1)  # type: ignore[list-item]
    assert fish_mask(torch.tensor([1.0, 2.0]), 1)[0].tolist() == [False, True]


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e308])
def test_merging_fishers_of_any_scale(scale: float) -> None:
    F = torch.tensor([scale, 0.0], dtype=torch.float64)
    models = [[torch.zeros(2).double()], [torch.ones(2).double()]]
    merged = merge_fisher(models, [[F], [F / 3]], [3.0, 1.0])[0]
    torch.testing.assert_close(merged, torch.tensor([0.1, 0.25], dtype=torch.float64))
