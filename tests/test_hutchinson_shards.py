"""The optimizers of the Hutchinson family on parameters that fully_shard has cut."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from adahessian_steps import batches, error, network
from curvkern.optim import OASIS, SANIA, AdaHessian, SophiaG, SophiaH

RANKS, STEPS = 2, 5
WIDE = torch.float64
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "AdaHessian": lambda p: AdaHessian(p, 0.05, n_probes=2, average="signed", spatial="row"),
    "stale": lambda p: AdaHessian(p, 0.05, update_every=2, lazy="ema_stale"),
    "OASIS": lambda p: OASIS(p, 0.05),
    "SANIA": SANIA,
    "SophiaH": lambda p: SophiaH(p, 0.02, update_every=2, n_probes=2),
    "SophiaG": lambda p: SophiaG(p, 0.02, update_every=2),
}


def sharded() -> tuple[torch.nn.Module, dict[str, Tensor]]:
    """A module to call, and parameters by their names, of which this rank has some rows."""
    from torch.distributed.fsdp import fully_shard

    model = network(WIDE)
    fully_shard(model, mesh=dist.init_device_mesh("cpu", (RANKS,)))
    return network(WIDE), dict(model.named_parameters())


def loss_of(model: torch.nn.Module, params: dict[str, Tensor], x: Tensor) -> Tensor:
    """fully_shard's own backward has no second derivative; that of full_tensor has one."""
    whole = {name: p.full_tensor() for name, p in params.items()}  # type: ignore[attr-defined]
    y = torch.func.functional_call(model, whole, (x,))
    return (y - x.sum(1, keepdim=True)).square().mean()


def advance(optimizer: Any, loss: Callable[[], Tensor]) -> None:
    if isinstance(optimizer, SophiaG):
        optimizer.step(loss, sampled_loss=loss)
    else:
        optimizer.step(loss)


def whole(params: dict[str, Tensor]) -> list[Tensor]:
    return [p.full_tensor().detach() for p in params.values()]  # type: ignore[attr-defined]


def refused(make: Callable[[dict[str, Tensor]], Any]) -> str:
    model, params = sharded()
    before = whole(params)
    try:
        optimizer = make(params)
        advance(optimizer, lambda: loss_of(model, params, batches(1, WIDE)[0]))
    except (ValueError, NotImplementedError) as error:
        assert all(map(torch.equal, before, whole(params)))
        return str(error)
    return ""


def spoiled() -> str:
    """A gradient that is not finite in the rows of one rank is an error of both."""
    model, params = sharded()
    optimizer = AdaHessian(params.values())
    w = params["0.weight"]

    def loss() -> Tensor:
        row = w.full_tensor()[3]  # type: ignore[attr-defined]
        return (
            loss_of(model, params, batches(1, WIDE)[0])
            + (row - row.detach()).abs().sqrt().sum()
        )

    try:
        optimizer.step(loss)
    except ValueError as error:
        return str(error)
    return ""


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS
    )
    found: dict[str, Any] = {}
    for name, make in OPTIMIZERS.items():
        model, params = sharded()
        optimizer = make(params.values())
        probes = optimizer.draw_probes()
        found[f"{name}/probes"] = [z.full_tensor().reshape(-1) for one in probes for z in one]
        for t, x in enumerate(batches(STEPS, WIDE)):
            advance(optimizer, lambda m=model, p=params, x=x: loss_of(m, p, x))
            if t == 2:
                file = io.BytesIO()
                torch.save(optimizer.state_dict(), file)
                weights = [p.to_local().detach().clone() for p in params.values()]
        found[name] = whole(params)
        found[f"{name}/rows"] = [p.to_local().shape[0] for p in params.values()]
        model, params = sharded()
        again = make(params.values())
        with torch.no_grad():
            for p, w in zip(params.values(), weights, strict=True):
                p.to_local().copy_(w)
        file.seek(0)
        again.load_state_dict(torch.load(file, weights_only=True))
        for x in batches(STEPS, WIDE)[3:]:
            advance(again, lambda m=model, p=params, x=x: loss_of(m, p, x))
        found[f"{name}/resumed"] = all(map(torch.equal, whole(params), found[name]))
    # Products that are given: sharded ones, and whole ones, which are cut.
    for kind in ("sharded", "whole"):
        model, params = sharded()
        optimizer = AdaHessian(params.values(), 0.05)
        for p in params.values():
            p.grad = p.detach() * 3
        hz = [p.grad if kind == "sharded" else p.grad.full_tensor() for p in params.values()]
        optimizer.step(hz=[hz])
        found[f"hz/{kind}"] = whole(params)
    found["across"] = refused(lambda p: AdaHessian(p.values(), spatial=(2, 15, 1, 1)))
    found["spoiled"] = spoiled()
    torch.save(found, f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes has found."""
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("torch has no gloo")
    folder = tmp_path_factory.mktemp("shards")
    torch.multiprocessing.spawn(worker, (str(folder),), nprocs=RANKS)
    return [torch.load(Path(folder) / str(rank)) for rank in range(RANKS)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_as_one_process(name: str, found: list[dict[str, Any]]) -> None:
    """The same signs and numbers, and each rank has moved its rows only."""
    model = network(WIDE)
    optimizer = OPTIMIZERS[name](model.parameters())
    probes = [z.reshape(-1) for one in optimizer.draw_probes() for z in one]
    for x in batches(STEPS, WIDE):
        advance(optimizer, lambda x=x: error(model, x))
    for f in found:
        assert all(map(torch.equal, f[f"{name}/probes"], probes))
        expected = [p.detach() for p in model.parameters()]
        torch.testing.assert_close(f[name], expected, rtol=1e-9, atol=1e-11)
        assert f[f"{name}/resumed"]
    assert [f[f"{name}/rows"] for f in found] == [[2, 2, 2, 2], [2, 2, 1, 1]]


@pytest.mark.parametrize("kind", ["sharded", "whole"])
def test_given_products(kind: str, found: list[dict[str, Any]]) -> None:
    model = network(WIDE)
    optimizer = AdaHessian(model.parameters(), 0.05)
    for p in model.parameters():
        p.grad = p.detach() * 3
    optimizer.step(hz=[[p.grad for p in model.parameters()]])
    for f in found:
        expected = [p.detach() for p in model.parameters()]
        torch.testing.assert_close(f[f"hz/{kind}"], expected, rtol=1e-12, atol=1e-14)


def test_refusals_of_all_ranks(found: list[dict[str, Any]]) -> None:
    for f in found:
        assert "blocks of 15 elements" in f["across"]
        assert "across shards of 2 rows" in f["across"]
        assert "gradients must be finite on all ranks; nothing was changed" in f["spoiled"]
