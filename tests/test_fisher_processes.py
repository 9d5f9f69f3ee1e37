"""Fisher objects whose columns two processes share, against one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing import assert_close

from curvkern.fisher import SlidingWindowFisher, StaticFisher

RANKS = 2
D, M, DAMPING = 41, 6, 1e-3
COLUMNS = [slice(0, 17), slice(17, D)]  # of each rank
WIDE = torch.float64

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch has no gloo"
)


def rows() -> Tensor:
    return torch.randn(M + 3, D, generator=torch.Generator().manual_seed(2))


def vectors() -> Tensor:
    return torch.randn(3, D, dtype=WIDE, generator=torch.Generator().manual_seed(3))


def answers(fisher: Any, v: Tensor) -> dict[str, Any]:
    """What concerns columns, and what is the same on all ranks."""
    x, info = fisher.ihvp(v, return_info=True)
    return {
        "columns": [x, fisher.ihvp(v[0]), fisher.diag_inverse()],
        "all": [fisher.quad_form(v), fisher.gram(), torch.tensor(fisher.logdet(), dtype=WIDE)],
        "residual": info["residual"],
    }


def window(columns: slice, group: Any = None) -> tuple[SlidingWindowFisher, dict[str, Any]]:
    G, v = rows()[:, columns], vectors()[:, columns]
    fisher = SlidingWindowFisher(G.shape[1], M, DAMPING, process_group=group)
    for g in G[:-2]:
        fisher.push(g)
    steps = [fisher.push_ihvp(G[-2]), fisher.push_ihvp(G[-1], v)]
    fisher.replace(1, G[0])
    fisher.remove(0)
    found = answers(fisher, v)
    return fisher, {**found, "columns": [*steps, *found["columns"]]}


def static(columns: slice, group: Any = None) -> dict[str, Any]:
    G = rows()[:, columns].contiguous()
    fisher = StaticFisher.from_gradients(G, DAMPING, process_group=group)
    return answers(fisher, vectors()[:, columns])


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS
    )
    group, columns = dist.group.WORLD, COLUMNS[rank]
    sent: list[int] = []
    reduce = dist.all_reduce

    def counted(t: Tensor, **options: Any) -> Any:
        sent.append(t.numel())
        return reduce(t, **options)

    dist.all_reduce = counted
    fisher, found = window(columns, group)
    G, v = rows()[:, columns], vectors()[:, columns]
    found = {"window": found, "static": static(columns, group)}
    for name, call in {
        "push": lambda: fisher.push(G[0]),
        "push_ihvp": lambda: fisher.push_ihvp(G[1]),
        "ihvp": lambda: fisher.ihvp(v[0]),
        "from_gradients": lambda: StaticFisher.from_gradients(G, 1.0, process_group=group),
    }.items():
        sent.clear()
        call()
        found[f"{name} sends"] = list(sent)
    state = fisher.state_dict()
    again = SlidingWindowFisher(fisher.d, M, DAMPING, process_group=group)
    again.load_state_dict(state)
    before = fisher.ihvp(v)
    bad = G[0].clone()
    bad[0] = torch.nan if rank == 0 else bad[0]
    try:
        fisher.push(bad)
    except ValueError as error:
        found["refused"] = "finite" in str(error) and torch.equal(fisher.ihvp(v), before)
    found["resumed"] = torch.equal(again.push_ihvp(G[2]), fisher.push_ihvp(G[2]))
    torch.save(found, f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes has found."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(worker, (str(folder),), nprocs=RANKS)
    return [torch.load(Path(folder) / str(rank)) for rank in range(RANKS)]


@pytest.mark.parametrize("kind", ["window", "static"])
def test_as_one_process(kind: str, found: list[dict[str, Any]]) -> None:
    every = slice(0, D)
    wanted = window(every)[1] if kind == "window" else static(every)
    parts = [f[kind]["columns"] for f in found]
    joined = [torch.cat(pair, -1) for pair in zip(*parts, strict=True)]
    assert_close(joined, wanted["columns"], rtol=1e-6, atol=1e-6)
    for f in found:
        assert_close(f[kind]["all"], wanted["all"], rtol=1e-10, atol=1e-10)
        assert (f[kind]["residual"] < 1e-9).all()


def test_what_is_exchanged(found: list[dict[str, Any]]) -> None:
    """The products with the rows, and whether a gradient is finite; never a row."""
    for f in found:
        count = M - 1 + 1  # one was removed
        assert f["push sends"] == [1, count]
        assert f["push_ihvp sends"] == [1, M]
        assert f["ihvp sends"] == [M]
        assert f["from_gradients sends"] == [(M + 3) ** 2]


def test_refusals_and_states(found: list[dict[str, Any]]) -> None:
    """A gradient that one rank cannot store is an error of all; each has its own state."""
    for f in found:
        assert f["refused"]
        assert f["resumed"]
