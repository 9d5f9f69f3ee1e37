"""Fisher matrices whose columns two processes share, against one; what they exchange."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from curvkern.fisher import SlidingWindowFisher, StaticFisher
from mfac_truth import error

RANKS = 2
D, M, DAMPING = 37, 6, 1e-3
PUSHES = 9
CUT = (0, 15, D)  # shares need not be equal
STORAGES = (torch.float64, torch.float32, torch.bfloat16)

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch has no gloo"
)


def vectors() -> tuple[Tensor, Tensor]:
    """Gradients, one after another and too many for a window, and vectors to multiply."""
    generator = torch.Generator().manual_seed(2)
    G = torch.randn(PUSHES, D, dtype=torch.float64, generator=generator)
    G[4] = G[3] * (1 + 1e-6)
    return G, torch.randn(PUSHES, D, dtype=torch.float64, generator=generator)


def queries(fisher: Any, v: Tensor) -> dict[str, Any]:
    x, info = fisher.ihvp(v, return_info=True)
    own = torch.arange(v.shape[1])
    return {
        "ihvp": x,
        "residual": info["residual"],
        "other damping": fisher.ihvp(v, damping=0.5),
        "diag_inverse": fisher.diag_inverse(),
        "elements": fisher.elements(own, own.flip(0)),
        "block": fisher.inverse_block(own),
        "quad_form": fisher.quad_form(v),
        "logdet": fisher.logdet(),
        "gram": fisher.gram(),
    }


def slide(columns: slice, storage: torch.dtype, group: Any = None) -> dict[str, Any]:
    """What a window of some columns answers while gradients come."""
    G, V = (t[:, columns] for t in vectors())
    fisher = SlidingWindowFisher(G.shape[1], M, DAMPING, dtype=storage, process_group=group)
    newest = [fisher.push_ihvp(g) for g in G]
    other = [fisher.push_ihvp(g, v) for g, v in zip(G, V, strict=True)]
    found = {"newest": torch.stack(newest), "other": torch.stack(other)}
    fisher.replace(2, G[0])
    fisher.remove(1)
    fisher.set_damping(0.01)
    return {**found, **queries(fisher, V[:3])}


def static(columns: slice, storage: torch.dtype, whiten: bool, group: Any = None) -> Any:
    G, V = (t[:, columns] for t in vectors())
    return queries(
        StaticFisher.from_gradients(G.to(storage), DAMPING, whiten=whiten, process_group=group),
        V[:3],
    )


def exchanged(call: Callable[[], object]) -> list[int]:
    """Elements of each sum over the ranks that a call takes."""
    true, sizes = dist.all_reduce, []

    def spy(t: Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(t.numel())
        return true(t, *args, **kwargs)

    dist.all_reduce = spy
    try:
        call()
    finally:
        dist.all_reduce = true
    return sizes


def traffic(columns: slice) -> dict[str, list[Any]]:
    G, V = (t[:, columns] for t in vectors())
    group = dist.group.WORLD
    fisher = SlidingWindowFisher(G.shape[1], M, DAMPING, process_group=group)
    pushes = [exchanged(lambda g=g: fisher.push_ihvp(g)) for g in G]
    given: list[StaticFisher] = []
    prepared = exchanged(
        lambda: given.append(StaticFisher.from_gradients(G, DAMPING, process_group=group))
    )
    return {
        "pushes": pushes,
        "push": [exchanged(lambda: fisher.push(G[0]))],
        "push with v": [exchanged(lambda: fisher.push_ihvp(G[0], V[0]))],
        "product": [exchanged(lambda: fisher.ihvp(V[0]))],
        "static": [prepared],
        "static product": [exchanged(lambda: given[0].ihvp(V[0]))],
        "static diagonal": [exchanged(given[0].diag_inverse)],
    }


def refused(columns: slice) -> list[str]:
    """What is not finite on one rank is refused by all, who go on together."""
    G, _ = (t[:, columns] for t in vectors())
    bad = G.clone()
    if dist.get_rank() == 0:
        bad[2, 3] = torch.nan
    group = dist.group.WORLD
    fisher = SlidingWindowFisher(G.shape[1], M, DAMPING, process_group=group)
    said = []
    for call in (
        lambda: [fisher.push(g) for g in bad],
        lambda: StaticFisher.from_gradients(bad, DAMPING, process_group=group),
    ):
        try:
            call()
        except ValueError as refusal:
            said.append(str(refusal))
    fisher.push(G[2])
    return [*said, str(len(fisher))]


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS
    )
    columns, group = slice(CUT[rank], CUT[rank + 1]), dist.group.WORLD
    found: dict[str, Any] = {"traffic": traffic(columns), "refused": refused(columns)}
    for storage in STORAGES:
        found[f"window {storage}"] = slide(columns, storage, group)
        for whiten in (False, True):
            found[f"static {storage} {whiten}"] = static(columns, storage, whiten, group)
    torch.save(found, f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes has found."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(worker, (str(folder),), nprocs=RANKS)
    return [torch.load(Path(folder) / str(rank)) for rank in range(RANKS)]


def check(parts: list[dict[str, Any]], whole: dict[str, Any]) -> None:
    """Vectors of the ranks side by side are the whole one; the rest every rank has."""
    for name in ("newest", "other", "ihvp", "other damping", "diag_inverse"):
        if name in whole:
            assert error(torch.cat([p[name] for p in parts], -1), whole[name]) <= 1e-6, name
    for rank, part in enumerate(parts):
        own = slice(CUT[rank], CUT[rank + 1])
        assert error(part["block"], whole["block"][own, own]) <= 1e-6
        assert error(part["elements"], part["block"].flip(1).diagonal()) <= 1e-6
        assert (part["residual"] < 1e-5).all()
        for name in ("quad_form", "gram"):
            assert error(part[name], whole[name]) <= 1e-6, name
        assert part["logdet"] == pytest.approx(whole["logdet"], rel=1e-12)


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_windows_as_in_one_process(storage: torch.dtype, found: list[dict[str, Any]]) -> None:
    check([f[f"window {storage}"] for f in found], slide(slice(None), storage))


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_given_gradients_as_in_one_process(
    storage: torch.dtype, whiten: bool, found: list[dict[str, Any]]
) -> None:
    parts = [f[f"static {storage} {whiten}"] for f in found]
    check(parts, static(slice(None), storage, whiten))


def test_what_is_exchanged(found: list[dict[str, Any]]) -> None:
    """One number, whether all ranks can store a row, and its products with the rows."""
    for f in found:
        sizes = f["traffic"]
        assert sizes["pushes"] == [[1, min(k + 1, M)] for k in range(PUSHES)]
        assert sizes["push"] == [[1, M]]
        assert sizes["push with v"] == [[1, 2 * M]]
        assert sizes["product"] == [[M]]
        # Of given gradients all of G G', once.
        assert sizes["static"] == [[PUSHES * PUSHES]]
        assert sizes["static product"] == [[PUSHES]]
        assert sizes["static diagonal"] == [[]]


def test_what_one_rank_cannot_store_all_refuse(found: list[dict[str, Any]]) -> None:
    for f in found:
        window, given, held = f["refused"]
        assert "grad must be finite" in window
        assert "G must be finite" in given
        assert held == "3"
