"""curvkern.curvature's Fisher diagonal, and merging, masks and dampening made of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from curvkern.curvature import fish_mask, fisher_diagonal, merge_fisher, synaptic_dampening_

entropy = torch.nn.functional.cross_entropy


def logistic() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    w = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    return x, torch.randint(4, (40,), generator=generator), w


def test_empirical() -> None:
    """(p - e_y) x' squared, on average, whatever the batches."""
    x, y, w = logistic()
    r = (x @ w.detach().T).softmax(1) - torch.nn.functional.one_hot(y, 4)
    expected = (r.square().T @ x.square()) / len(x)
    for size in (1, 7, 40):
        batches = zip(x.split(size), y.split(size), strict=True)
        (found,) = fisher_diagonal(
            lambda b: entropy(b[0] @ w.T, b[1], reduction="none"), [w], batches
        )
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert w.grad is None


def test_sampled() -> None:
    """Its expectation is the Fisher information, sum_c p_c (p - e_c)^2 x^2."""
    x, _, w = logistic()
    p = (x @ w.detach().T).softmax(1)
    exact = ((p * (1 - p)).T @ x.square()) / len(x)
    generator = torch.Generator().manual_seed(3)
    before = torch.random.get_rng_state()
    (found,) = fisher_diagonal(
        lambda b: b @ w.T, [w], [x] * 60, mode="sampled", generator=generator
    )
    torch.testing.assert_close(found, exact, rtol=0.2, atol=0.01)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_halves_and_unused() -> None:
    w = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    unused = torch.ones(2, requires_grad=True)
    found = fisher_diagonal(lambda x: (w * x).sum(), [w, unused], [1.0, 3.0])
    assert found[0].dtype is torch.float32
    assert [f.tolist() for f in found] == [[5, 5, 5], [0, 0]]


def test_merge() -> None:
    models = [torch.nn.Linear(2, 3) for _ in range(3)]
    fishers = [[torch.rand_like(p) for p in m.parameters()] for m in models]
    weights = [1.0, 2.0, 0.5]
    found = merge_fisher(models, fishers, weights)
    for i, merged in enumerate(found):
        parts = [list(m.parameters())[i].detach() for m in models]
        share = [w * f[i] for w, f in zip(weights, fishers, strict=True)]
        expected = sum(s * p for s, p in zip(share, parts, strict=True)) / sum(share)
        torch.testing.assert_close(merged, expected)
    same = merge_fisher(models, [[torch.zeros_like(p) for p in m.parameters()] for m in models])
    expected = torch.stack([m.weight.detach() for m in models]).mean(0)
    torch.testing.assert_close(same[0], expected)


def test_mask() -> None:
    fisher = [torch.rand(4, 5), torch.rand(()), torch.rand(0), torch.rand(7)]
    for k, count in ((0, 0), (5, 5), (28, 28), (0.25, 7)):
        masks = fish_mask(fisher, k)
        assert [m.shape for m in masks] == [f.shape for f in fisher]
        chosen = torch.cat([f[m].reshape(-1) for f, m in zip(fisher, masks, strict=True)])
        others = torch.cat([f[~m].reshape(-1) for f, m in zip(fisher, masks, strict=True)])
        assert len(chosen) == count
        assert not count or not len(others) or chosen.min() >= others.max()


def test_dampening() -> None:
    layer = torch.nn.Linear(6, 5)
    before = [p.detach().clone() for p in layer.parameters()]
    every, forget = ([torch.rand_like(p) for p in before] for _ in range(2))
    forget[0][0] = 0
    assert synaptic_dampening_(layer, every, forget, 1.5, 0.8) is layer
    for p, old, F, f in zip(layer.parameters(), before, every, forget, strict=True):
        for got, a, b, c in zip(
            *(t.detach().reshape(-1).tolist() for t in (p, old, F, f)), strict=True
        ):
            expected = a * min(0.8 * b / c, 1) if c > 1.5 * b else a
            assert got == pytest.approx(expected, rel=1e-6)


P = torch.ones(2, requires_grad=True)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: fisher_diagonal(lambda b: P.sum(), [P], []), ValueError, "no example"),
        (
            lambda: fisher_diagonal(lambda b: P, [P], [1], mode="true"),
            ValueError,
            "mode must be",
        ),
        (lambda: fisher_diagonal(lambda b: P, [P], [1], mode="sampled"), ValueError, "logits"),
        (lambda: fisher_diagonal(lambda b: P, [P.detach()], [1]), ValueError, "require grad"),
        (lambda: merge_fisher([[P]], []), ValueError, "got 1 models, 0 fishers"),
        (lambda: merge_fisher([[P]], [[P[:1]]]), ValueError, "fishers has shape"),
        (
            lambda: merge_fisher([[P]], [[P]], [-1.0]),
            ValueError,
            "weights must not be negative",
        ),
        (lambda: fish_mask([P], 3), ValueError, "k must be at most 2, got 3"),
        (lambda: fish_mask([P], 1.5), ValueError, r"a count or in \(0, 1\)"),
        (lambda: fish_mask([P], "1"), TypeError, "k must be an integer"),
        (
            lambda: synaptic_dampening_([P], [P], [P], -1.0),
            ValueError,
            "alpha must be positive",
        ),
        (lambda: synaptic_dampening_([P], [P], []), ValueError, "fisher_forget has 0 tensors"),
    ],
)
def test_refusals(call: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        call()
