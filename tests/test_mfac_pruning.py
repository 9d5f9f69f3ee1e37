"""curvkern.fisher.obs_prune: against truths in 100 digits, constrained solves, and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from curvkern import fisher as native
from curvkern.fisher import SlidingWindowFisher, obs_prune
from curvkern.reference.mfac import StaticFisher
from mfac_truth import Problem, error, problems

MODES = ("simultaneous", "joint", "greedy")


class Plain:
    """Any inverse will do: nothing but the two methods."""

    def __init__(self, fisher: StaticFisher) -> None:
        self.ihvp, self.diag_inverse = fisher.ihvp, fisher.diag_inverse


def static(problem: Problem) -> StaticFisher:
    return StaticFisher.from_gradients(problem.tensor("G"), problem["damping"])


def window(fisher: StaticFisher) -> SlidingWindowFisher:
    """The same Fisher matrix as a window."""
    rows = fisher.G
    native = SlidingWindowFisher(
        fisher.d, len(rows), fisher.damping, dtype=torch.float64, block_size=fisher.block_size
    )
    for g in rows:
        native.push(g)
    return native


def random(d: int, rows: int, damping: float = 1e-3, **options: Any):
    w = torch.randn(d, dtype=torch.float64)
    return w, StaticFisher.from_gradients(torch.randn(rows, d), damping, **options)


def constrained(w: Tensor, F: Tensor, zero: Tensor) -> Tensor:
    """argmin of (x - w)' F (x - w) with zeros at S: the others solve F_RR d = F_RS w_S."""
    x = torch.zeros_like(w)
    rest = ~zero
    back = torch.linalg.solve(F[rest][:, rest], F[rest][:, zero] @ w[zero])
    x[rest] = w[rest] + back
    return x


@pytest.mark.parametrize("wrap", [lambda f: f, Plain, window], ids=["twin", "plain", "window"])
@problems("prune")
def test_truth(problem: Problem, wrap: Any) -> None:
    w, fisher, k = problem.tensor("w"), wrap(static(problem)), problem["k"]
    bar = problem.tolerance(torch.float64)
    dropped = set(problem["order"][:k].tolist())
    for mode in MODES:
        new, mask, saliency = obs_prune(w, fisher, n=k, mode=mode)
        assert error(new, problem[mode]) <= bar
        assert (new[~mask] == 0).all()
        gone = set((~mask).nonzero()[:, 0].tolist())
        if mode == "greedy":
            assert gone == set(problem["greedy_order"].tolist())
        else:
            assert gone == dropped
            assert error(saliency, problem["saliency"]) <= bar
        by_share = obs_prune(w, fisher, sparsity=k / len(w), mode=mode)
        assert torch.equal(by_share[0], new)
    change = obs_prune(w, fisher, n=k, mode="joint")[0] - w
    loss = change @ static(problem).matrix() @ change / 2
    assert error(loss, problem["joint_loss"]) <= bar


@pytest.mark.parametrize("block", [None, 3])
def test_order_of_losses(block: int | None) -> None:
    """No update of the same set loses less than the joint one; greedy is its own optimum."""
    w, fisher = random(24, 15)
    F = fisher.matrix()
    loss = {}
    for mode in MODES:
        new, mask, _ = obs_prune(w, fisher, n=12, mode=mode, block=block)
        assert int((~mask).sum()) == 12
        loss[mode] = float((new - w) @ F @ (new - w))
        if mode != "simultaneous":
            torch.testing.assert_close(new, constrained(w, F, ~mask))
    assert loss["joint"] <= loss["simultaneous"]


@pytest.mark.parametrize("wrap", [lambda f: f, Plain, window], ids=["twin", "plain", "window"])
@pytest.mark.parametrize("mode", MODES)
def test_block(mode: str, wrap: Any) -> None:
    """The saliency of a group is the least loss of dropping it."""
    w, fisher = random(20, 9)
    F, fisher = fisher.matrix(), wrap(fisher)
    new, mask, saliency = obs_prune(w, fisher, n=4, mode=mode, block=4)
    for i, value in enumerate(saliency):
        zero = torch.zeros(20, dtype=torch.bool)
        zero[4 * i : 4 * i + 4] = True
        change = constrained(w, F, zero) - w
        # The greedy mode also tells what those that stayed would cost now.
        if mode != "greedy" or i == int(saliency.argmin()):
            torch.testing.assert_close(value, change @ F @ change / 2)
    assert saliency.shape == (5,)
    assert torch.equal(mask.view(5, 4).all(1), mask.view(5, 4).any(1))
    assert not mask.view(5, 4)[saliency.argmin()].any()
    # One group alone: all modes agree.
    torch.testing.assert_close(new, constrained(w, F, ~mask))


@pytest.mark.parametrize("mode", MODES)
def test_mask(mode: str) -> None:
    w, fisher = random(30, 12)
    mask = torch.rand(30) > 0.4
    w[~mask] = torch.nan  # what has been dropped is not looked at
    new, left, saliency = obs_prune(w, fisher, sparsity=0.8, mode=mode, mask=mask)
    assert int((~left).sum()) == 24
    assert not (left & ~mask).any()
    assert (new[~left] == 0).all()
    assert torch.isinf(saliency[~mask]).all()
    if mode != "simultaneous":
        start = torch.where(mask, w, 0.0)
        torch.testing.assert_close(new, constrained(start, fisher.matrix(), ~left))
    again = obs_prune(new, fisher, n=0, mode=mode, mask=left)
    assert torch.equal(again[0], new)
    assert torch.equal(again[1], left)


@pytest.mark.parametrize("mode", MODES)
def test_greedy_in_steps_and_everything(mode: str) -> None:
    w, fisher = random(18, 7)
    zeros, mask, _ = obs_prune(w, fisher, sparsity=1.0, mode=mode)
    assert not mask.any()
    assert not zeros.any()
    if mode == "greedy":
        half, mask, _ = obs_prune(w, fisher, n=6, mode=mode)
        two = obs_prune(half, fisher, n=5, mode=mode, mask=mask)
        one = obs_prune(w, fisher, n=11, mode=mode)
        torch.testing.assert_close(two[0], one[0])
        assert torch.equal(two[1], one[1])


def kept(fisher: StaticFisher) -> native.StaticFisher:
    """The same Fisher matrix as the compiled object."""
    return native.StaticFisher.from_gradients(
        fisher.G, fisher.damping, block_size=fisher.block_size
    )


@pytest.mark.parametrize("wrap", [lambda f: f, window, kept], ids=["twin", "window", "static"])
@pytest.mark.parametrize("mode", MODES)
def test_block_diagonal_fisher(mode: str, wrap: Any) -> None:
    """Each block of the Fisher answers for itself."""
    G, w = torch.randn(9, 23), torch.randn(23, dtype=torch.float64)
    fisher = wrap(StaticFisher.from_gradients(G, 1e-2, block_size=8))
    new, mask, _ = obs_prune(w, fisher, n=10, mode=mode)
    for at in (slice(0, 8), slice(8, 16), slice(16, 23)):
        alone = StaticFisher.from_gradients(G[:, at], 1e-2)
        n = int((~mask[at]).sum())
        part, part_mask, _ = obs_prune(w[at], alone, n=n, mode=mode)
        torch.testing.assert_close(part, new[at])
        assert torch.equal(part_mask, mask[at])


@pytest.mark.parametrize("mode", MODES)
def test_ties_go_in_order(mode: str) -> None:
    fisher = StaticFisher.from_gradients(torch.zeros(2, 100), 0.5)
    w, mask, saliency = obs_prune(torch.ones(100), fisher, n=40, mode=mode)
    assert mask.tolist() == [False] * 40 + [True] * 60
    assert w.tolist() == [0] * 40 + [1] * 60
    assert saliency.tolist() == [0.25] * 100


def test_shapes_and_dtypes() -> None:
    w, fisher = random(12, 5)
    matrix = w.view(3, 4)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        new, mask, saliency = obs_prune(matrix.to(dtype), fisher, n=5)
        assert new.dtype is dtype
        assert saliency.dtype is torch.float64
        assert new.shape == mask.shape == saliency.shape == (3, 4)
    flat = obs_prune(w, fisher, n=5)[0]
    assert torch.equal(obs_prune(matrix, fisher, n=5)[0].flatten(), flat)
    expanded = torch.ones(1).expand(12)
    assert int((obs_prune(expanded, fisher, n=3)[0] == 0).sum()) == 3


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"mode": "jiont"}, ValueError, "mode must be one of simultaneous, joint, greedy"),
        ({"n": None}, ValueError, "either sparsity or n"),
        ({"sparsity": 0.5}, ValueError, "either sparsity or n"),
        ({"n": -1}, ValueError, "got -1"),
        ({"n": 13}, ValueError, "12 weights that are left, got 13"),
        ({"n": 2.0}, TypeError, "n must be an int"),
        ({"n": None, "sparsity": 1.5}, ValueError, r"sparsity must be in \[0, 1\], got 1.5"),
        ({"n": None, "sparsity": float("nan")}, ValueError, "sparsity"),
        ({"n": None, "sparsity": "0.5"}, TypeError, "sparsity must be a number"),
        ({"block": 5}, ValueError, "block must divide the 12 weights, got 5"),
        ({"block": 4, "n": 3}, ValueError, "multiple of 4"),
        ({"block": 1.5}, TypeError, "block"),
        ({"w": [1.0]}, TypeError, "w must be a tensor"),
        ({"w": torch.ones(12, dtype=torch.int64)}, TypeError, "w must be floating"),
        ({"w": torch.ones(13)}, ValueError, "13 weights, but fisher has dimension 12"),
        ({"w": torch.full((12,), torch.inf)}, ValueError, "w must be finite"),
        ({"fisher": 3}, TypeError, "fisher must have a method ihvp"),
        ({"mask": torch.ones(12)}, TypeError, "mask must be a bool tensor"),
        ({"mask": torch.ones(3, 4, dtype=torch.bool)}, ValueError, "mask has shape"),
        ({"mask": torch.arange(12) > 1, "block": 3}, ValueError, "throughout each block"),
        (
            {"mask": torch.arange(12) > 5, "n": None, "sparsity": 0.25},
            ValueError,
            "already dropped 0.5",
        ),
    ],
)
def test_refusals(change: dict[str, Any], kind: type[Exception], words: str) -> None:
    w, fisher = random(12, 5)
    arguments = {"w": w, "fisher": fisher, "n": 3, **change}
    with pytest.raises(kind, match=words):
        obs_prune(arguments.pop("w"), arguments.pop("fisher"), **arguments)


def test_devices_are_not_mixed() -> None:
    fisher = native.StaticFisher.from_gradients(torch.ones(2, 12), 1.0)
    with pytest.raises(ValueError, match="w is on meta but fisher on cpu"):
        obs_prune(torch.ones(12, device="meta"), fisher, n=3)


@pytest.mark.parametrize("mode", ["joint", "greedy"])
def test_an_inverse_that_rounding_has_spoilt(mode: str) -> None:
    class Spoilt:
        def ihvp(self, v: Tensor) -> Tensor:
            return v @ torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64)

        def diag_inverse(self) -> Tensor:
            return torch.ones(2)

    with pytest.raises(ValueError, match="obs_prune: fisher's inverse must be positive def"):
        obs_prune(torch.ones(2), Spoilt(), n=2, mode=mode)


@pytest.mark.parametrize("drop", [0, 3, 6])
@pytest.mark.parametrize("seed", range(8))
def test_greedy_blocks_beside_a_mask(seed: int, drop: int) -> None:
    """Of what the mask has dropped nothing but rounding is left in the inverse."""
    torch.manual_seed(seed)
    w, fisher = random(12, 5)
    mask = torch.ones(12, dtype=torch.bool)
    mask[3:6] = False
    new, left, saliency = obs_prune(w, fisher, n=drop, mode="greedy", mask=mask, block=3)
    assert int((~left).sum()) == 3 + drop
    assert saliency[1] == torch.inf
    F = torch.linalg.inv(fisher.ihvp(torch.eye(12, dtype=torch.float64)))
    start = torch.where(mask, w, 0.0)
    zero = ~left if drop else ~mask
    wanted = constrained(start, F, zero) if drop else start
    assert error(new, wanted) <= 1e-8


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("block", [None, 3])
def test_blocks_of_a_static_fisher(mode: str, block: int | None) -> None:
    w, twin = random(12, 5, block_size=6)
    fisher = native.StaticFisher.from_gradients(twin.G, twin.damping, block_size=6)
    for got, wanted in zip(
        obs_prune(w, fisher, n=6, mode=mode, block=block),
        obs_prune(w, twin, n=6, mode=mode, block=block),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)


def test_sparse_weights_are_refused() -> None:
    w, fisher = random(12, 5)
    with pytest.raises(TypeError, match="w has layout"):
        obs_prune(w.to_sparse(), fisher, n=1)
