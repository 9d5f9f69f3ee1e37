"""curvkern.optim.MFAC in two processes, under DDP and on FSDP2's shards, against one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from curvkern.optim import MFAC

RANKS = 2
STEPS = 7
OPTIONS = {"lr": 1e-2, "damping": 1e-3, "window": 4, "weight_decay": 0.05, "warmup": 3}
WAYS = ("ddp", "ddp sharded", "fsdp")
GROUPINGS = ("global", "per_param")

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch has no gloo"
)


def network() -> torch.nn.Module:
    """Two of its shards are uneven, one is empty on the second rank."""
    torch.manual_seed(3)
    return torch.nn.Sequential(
        torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 1)
    ).double()


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(STEPS, 8, 5, dtype=torch.float64, generator=generator)
    return x, x.sin().sum(-1, keepdim=True)


def train(model: torch.nn.Module, optimizer: MFAC, part: slice, steps: range) -> None:
    x, y = data()
    for t in steps:
        optimizer.zero_grad()
        (model(x[t, part]) - y[t, part]).square().mean().backward()
        optimizer.step()


def full(model: torch.nn.Module) -> list[Tensor]:
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return [p.detach().clone() for p in whole]


def wrapped(way: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    model = network()
    if way == "fsdp":
        from torch.distributed.fsdp import fully_shard

        fully_shard(model, mesh=dist.init_device_mesh("cpu", (RANKS,)))
    else:
        model = DistributedDataParallel(model)
    group = {} if way == "ddp" else {"process_group": dist.group.WORLD}
    return model, group


def resumed(way: str, grouping: str, part: slice) -> bool:
    """Whether a checkpoint of each rank goes on bit by bit."""
    model, group = wrapped(way)
    optimizer = MFAC(model.parameters(), grouping=grouping, **OPTIONS, **group)
    train(model, optimizer, part, range(3))
    file = io.BytesIO()
    weights = [getattr(p, "_local_tensor", p).detach().clone() for p in model.parameters()]
    torch.save(optimizer.state_dict(), file)
    train(model, optimizer, part, range(3, STEPS))
    again, group = wrapped(way)
    other = MFAC(again.parameters(), grouping=grouping, **OPTIONS, **group)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        for p, w in zip(again.parameters(), weights, strict=True):
            getattr(p, "_local_tensor", p).copy_(w)
    train(again, other, part, range(3, STEPS))
    return all(torch.equal(a, b) for a, b in zip(full(again), full(model), strict=True))


def refused(way: str) -> bool:
    """A bad gradient that one rank sees is an error of all, and nothing has moved."""
    model, group = wrapped(way)
    optimizer = MFAC(model.parameters(), **OPTIONS, **group)
    train(model, optimizer, slice(None), range(2))
    before = full(model)
    if dist.get_rank() == 0 or way == "ddp":
        grad = next(model.parameters()).grad
        getattr(grad, "_local_tensor", grad)[0, 0] = torch.nan
    try:
        optimizer.step()
    except ValueError as error:
        same = all(torch.equal(a, b) for a, b in zip(full(model), before, strict=True))
        return same and "finite" in str(error)
    return False


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS
    )
    part = slice(rank * 4, rank * 4 + 4)
    found: dict[str, Any] = {}
    for way in WAYS:
        for grouping in GROUPINGS:
            model, group = wrapped(way)
            optimizer = MFAC(model.parameters(), grouping=grouping, **OPTIONS, **group)
            train(model, optimizer, part, range(STEPS))
            held = sum(
                window["fisher"]["window"].shape[1]
                for window in optimizer.state_dict()["windows"]
            )
            found[f"{way}/{grouping}"] = full(model)
            model, group = wrapped(way)
            hooked = MFAC(
                model.parameters(), grouping=grouping, in_backward=True, **OPTIONS, **group
            )
            train(model, hooked, part, range(STEPS))
            found[f"{way}/{grouping}/in backward"] = full(model)
            found[f"{way}/{grouping}/columns"] = held
            found[f"{way}/{grouping}/resumed"] = resumed(way, grouping, part)
        found[f"{way}/refused"] = refused(way)
    model, _ = wrapped("fsdp")
    try:
        MFAC(model.parameters()).step()
    except ValueError as error:
        found["no group"] = str(error)
    torch.save(found, f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes has found."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(worker, (str(folder),), nprocs=RANKS)
    return [torch.load(Path(folder) / str(rank)) for rank in range(RANKS)]


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("way", WAYS)
def test_as_one_process(way: str, grouping: str, found: list[dict[str, Any]]) -> None:
    model = network()
    optimizer = MFAC(model.parameters(), grouping=grouping, **OPTIONS)
    train(model, optimizer, slice(None), range(STEPS))
    for rank in range(RANKS):
        for suffix in ("", "/in backward"):
            got = found[rank][f"{way}/{grouping}{suffix}"]
            torch.testing.assert_close(got, full(model), rtol=1e-6, atol=1e-6)
        assert found[rank][f"{way}/{grouping}/resumed"]
    columns = [found[rank][f"{way}/{grouping}/columns"] for rank in range(RANKS)]
    d = sum(p.numel() for p in model.parameters())
    if way == "ddp":
        assert columns == [d, d]
    else:
        # Shares are padded to be equal, and a rank without columns has one of zeros.
        assert d <= sum(columns) <= d + len(list(model.parameters()))
        assert max(columns) < 0.7 * d


@pytest.mark.parametrize("way", WAYS)
def test_a_bad_gradient_is_an_error_of_all(way: str, found: list[dict[str, Any]]) -> None:
    assert [f[f"{way}/refused"] for f in found] == [True] * RANKS


def test_shards_need_their_group(found: list[dict[str, Any]]) -> None:
    for f in found:
        assert "pass their process_group" in f["no group"]
