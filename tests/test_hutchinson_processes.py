"""AdaHessian in two processes, with and without DDP, against one; and in other company."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from adahessian_steps import batches, error, network, same, values
from curvkern.optim import AdaHessian

RANKS = 2
STEPS = 4
OPTIONS: dict[str, Any] = {"lr": 0.05, "average": "signed", "spatial": "row", "n_probes": 2}


def train(model: torch.nn.Module, optimizer: AdaHessian, part: slice) -> list[Tensor]:
    for x in batches(STEPS, torch.float64):
        if isinstance(model, DistributedDataParallel):
            with model.no_sync():
                loss = error(model, x[part])
        else:
            loss = error(model, x[part])
        optimizer.step(loss=loss)
    return values(model)


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS
    )
    part = slice(rank * 3, rank * 3 + 3)
    found = {}
    for way in ("plain", "ddp"):
        model: torch.nn.Module = network(torch.float64)
        if way == "ddp":
            model = DistributedDataParallel(model)
        optimizer = AdaHessian(model.parameters(), process_group=dist.group.WORLD, **OPTIONS)
        found[way] = train(model, optimizer, part)
    torch.save(found, f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch has no gloo"
)
def test_two_processes_are_as_one(tmp_path: Path) -> None:
    """Ranks draw the same signs, and gradients and products are those of the whole batch."""
    torch.multiprocessing.spawn(worker, (str(tmp_path),), nprocs=RANKS)
    model = network(torch.float64)
    expected = train(model, AdaHessian(model.parameters(), **OPTIONS), slice(None))
    found = [torch.load(tmp_path / str(rank)) for rank in range(RANKS)]
    for way in ("plain", "ddp"):
        assert same(found[0][way], found[1][way])
        torch.testing.assert_close(found[0][way], expected, rtol=1e-11, atol=1e-13)


def test_lstm_and_autocast() -> None:
    """Both have a second derivative on the CPU."""
    torch.manual_seed(1)
    lstm = torch.nn.LSTM(3, 4, batch_first=True)
    head = torch.nn.Linear(4, 1)
    params = [*lstm.parameters(), *head.parameters()]
    optimizer = AdaHessian(params, lr=0.1)
    x = torch.randn(5, 6, 3)
    losses = []
    for _ in range(40):
        with torch.autocast("cpu", torch.bfloat16):
            loss = (head(lstm(x)[0]).float() - x.sum(-1, keepdim=True)).square().mean()
        losses.append(float(optimizer.step(loss=loss).detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.dtype is torch.float32 and p.isfinite().all() for p in params)


def test_forked_child(run_python: Any) -> None:
    """R46: the child finishes, with the parent's bits. Torch's own loops would hang in it."""
    run_python(
        """
        import os, torch
        from curvkern.optim import AdaHessian
        torch.set_num_threads(2)
        def make():
            p = torch.linspace(-1, 1, 200_000, requires_grad=True)
            p.grad = p.detach() ** 3
            optimizer = AdaHessian([p], n_probes=2)
            optimizer.step(hz=[[p.detach() ** 2]] * 2)
            return p, optimizer
        one, two = make(), make()
        hz = [[one[0].detach() ** 2]] * 2
        one[1].step(hz=hz)
        child = os.fork()
        if child == 0:
            two[1].step(hz=hz)
            os._exit(0 if one[0].tolist() == two[0].tolist() else 1)
        assert os.waitpid(child, 0)[1] == 0
        """
    )


def test_compiled_model() -> None:
    model, twin = network(torch.float64), network(torch.float64)
    compiled = torch.compile(model, backend="eager")
    one, two = AdaHessian(model.parameters()), AdaHessian(twin.parameters())
    for x in batches(2, torch.float64):
        one.step(loss=error(compiled, x))
        two.step(loss=error(twin, x))
    torch.testing.assert_close(values(model), values(twin), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("hvp", ["auto", "reverse"])
def test_compiled_model_without_second_derivative(hvp: str) -> None:
    """Refused with a way out, and nothing has moved."""
    model = network(torch.float64)
    before = [p.clone() for p in values(model)]
    optimizer = AdaHessian(model.parameters(), hvp=hvp)
    loss = error(torch.compile(model, backend="aot_eager"), batches(1, torch.float64)[0])
    with pytest.raises(RuntimeError, match=r"torch\.compile makes has no second derivative"):
        optimizer.step(loss=loss)
    assert same(values(model), before)
    assert not optimizer.state
