"""The steps of the Hutchinson family on a GPU, on the host and, where there is one, on a GPU.

One source makes both, so the host shows whether the kernels are right; what it cannot show are
races within a barrier's reach, beyond what running blocks and threads backwards, too, brings
to light.
Truth: the same steps in plain torch, and those of the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from adahessian_steps import batches, error, network, quiet, values
from curvkern import _hutchinson, _hutchinson_device, _runtime
from curvkern.optim import OASIS, SANIA, AdaHessian, SophiaG, SophiaH
from curvkern.reference import hutchinson as reference
from curvkern.reference import philox
from hutchinson_lists import (
    OFFSETS,
    REFERENCE,
    ROWS,
    SEED,
    SHAPES,
    STEPS,
    Lists,
    adahessian,
    bar_of,
    compare,
    moved,
    tensors,
)

both_devices = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
)
every_storage = pytest.mark.parametrize("dtype", _hutchinson.STORAGES, ids=str)


def on(device: str) -> Callable[[Tensor], Tensor]:
    """A copy that begins where the tensor does, relative to a load."""

    def copied(tensor: Tensor) -> Tensor:
        before = tensor.storage_offset()
        flat = torch.empty(before + tensor.numel(), dtype=tensor.dtype, device=device)
        return flat[before:].view(tensor.shape).copy_(tensor)

    return copied


def run_both_ways(
    name: str, a: list[Any], device: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Any], Tensor]:
    """The arguments after the step, and a metric's sums; the same bits in another order."""
    found = []
    for stream in (0, 1):
        if device == "cpu":
            monkeypatch.setattr(_hutchinson_device, "_stream", lambda t, s=stream: s)
        here = moved(a, on(device))
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        more = [sums] if name == "metric" else []
        _hutchinson_device.step(name, *here, *more)
        found.append((here, sums.cpu()))
    assert all(
        torch.equal(x, y)
        for x, y in zip(tensors(found[0][0]), tensors(found[1][0]), strict=True)
    )
    assert torch.equal(found[0][1], found[1][1])
    return found[0]


@both_devices
@every_storage
@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize("change", ["fresh", "no copy of D", "stale", "hold", "z", "shifted"])
def test_adahessian(
    dtype: torch.dtype,
    row: dict[str, float],
    change: str,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probes = 1 + ROWS.index(row) % 3
    a = adahessian(dtype, probes, shift=int(change == "shifted"), **row)
    if change in ("stale", "hold"):
        a[2] = []
    if change in ("no copy of D", "hold"):
        a[6] = []
    if change == "z":
        a[3] = [philox.signs(h.numel(), 0, 1, 2, 3).view(h.shape).to(h) for h in a[2]]
    found, _ = run_both_ways("step", a, device, monkeypatch)
    plain, cpu = moved(a), moved(a)
    reference.step(*plain)
    compare(found, plain, bar_of(dtype))
    torch.ops.curvkern.hutchinson_step(*cpu)
    compare(found, cpu, bar_of(dtype))


@both_devices
@every_storage
@pytest.mark.parametrize("name", ["sophia", "metric", "descent"])
@pytest.mark.parametrize("change", ["fresh", "shifted", "no last"])
def test_relatives(
    name: str, dtype: torch.dtype, change: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = STEPS[name](dtype, 2, shift=int(change == "shifted"))
    if change == "no last":
        at = {"sophia": [2], "metric": [5, 6], "descent": [3, 4]}[name]  # sophia: no products
        a = [[] if i in at else part for i, part in enumerate(a)]
    found, sums = run_both_ways(name, a, device, monkeypatch)
    plain = moved(a)
    expected = REFERENCE[name](*plain)
    compare(found, plain, bar_of(dtype))
    if name == "metric":
        assert_close(sums, expected, rtol=10 * bar_of(dtype), atol=0)


@both_devices
@every_storage
def test_signs_and_means(
    dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    offsets = [2**40 + 3 + at for at in OFFSETS]
    x = Lists(dtype, 3, 1)
    run_both_ways("signs", [x.p, offsets, SEED, 9, 2], device, monkeypatch)
    z = moved([x.p], on(device))[0]
    _hutchinson_device.step("signs", z, offsets, SEED, 9, 2)
    wanted = [torch.empty_like(p) for p in x.p]
    reference.fill_signs(wanted, offsets, SEED, 9, 2)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(z, wanted, strict=True))
    n = len(SHAPES)
    for given in (False, True):
        for squares in (False, True):
            mean, square = ([torch.zeros_like(s) for s in x.states[0]] for _ in "ms")
            a = [mean, square if squares else [], x.hz[:n], x.hz[n : 2 * n] if given else [],
                 offsets, SEED, 9, 2, 3]  # fmt: skip
            found, _ = run_both_ways("accumulate", a, device, monkeypatch)
            plain = moved(a)
            reference.accumulate(*plain)
            compare(found, plain, bar_of(dtype))


@both_devices
def test_one_call_is_many_calls(device: str) -> None:
    """Nothing depends on what else is in the list, or on how many words a launch takes."""
    a = adahessian(torch.float32, 2)
    many = [
        part * 40 if isinstance(part, list) and len(part) == len(SHAPES) else part for part in a
    ]
    many[2] = a[2][: len(SHAPES)] * 40 + a[2][len(SHAPES) :] * 40
    together, apart = moved(many, on(device)), moved(a, on(device))
    _hutchinson_device.step("step", *together)
    _hutchinson_device.step("step", *apart)
    for at in (0, 4, 5, 6):
        for i, t in enumerate(together[at]):
            assert torch.equal(t, apart[at][i % len(SHAPES)])


@both_devices
def test_a_block_of_many_tiles(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mean is summed over many tiles."""
    x = torch.randn(300_003)
    a: list[Any] = [[x], [x * 2], [x * 3], [], [x.abs()], [x.abs()], [], [200_000], [0], [0],
                    adahessian(torch.float32)[10][:11], 1.0, True, 1, 0]  # fmt: skip
    found, _ = run_both_ways("step", a, device, monkeypatch)
    plain = moved(a)
    reference.step(*plain)
    compare(found, plain, 1e-5)


# Optimizers ---------------------------------------------------------------------------------


@pytest.mark.cuda
@quiet
@pytest.mark.parametrize("make", [AdaHessian, OASIS, SANIA, SophiaH, SophiaG])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_training_on_a_gpu(make: type[Any], dtype: torch.dtype) -> None:
    """The numbers of the CPU, and the state where the parameters are."""
    found = []
    for device in ("cuda", "cpu"):
        model = network(dtype).to(device)
        optimizer = make(model.parameters())
        for x in batches(6, dtype):
            loss = error(model, x.to(device))
            if make is SophiaG:
                optimizer.step(loss=loss, sampled_loss=error(model, x.to(device)))
            else:
                optimizer.step(loss=loss)
        found.append([v.cpu() for v in values(model)])
        for p, state in optimizer.state.items():
            assert all(t.device == p.device for t in state.values() if torch.is_tensor(t))
    bar = 1e-9 if dtype is torch.float64 else 1e-3 if dtype is torch.float32 else 5e-2
    for a, b in zip(*found, strict=True):
        assert_close(a, b, rtol=bar, atol=bar)


@pytest.mark.cuda
def test_side_stream_and_repetition() -> None:
    """R53: the same bits on another stream, three times."""
    results = []
    for _ in range(3):
        with torch.cuda.stream(torch.cuda.Stream()):
            a = moved(adahessian(torch.float32, 2), on("cuda"))
            torch.ops.curvkern.hutchinson_step(*a)
            torch.cuda.current_stream().synchronize()
        results.append([t.cpu() for t in tensors(a)])
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


# Refusals -----------------------------------------------------------------------------------


def test_what_the_binding_refuses() -> None:
    module: Any = _runtime.cpu_module()
    a = adahessian(torch.float32)

    def room(size: int) -> Tensor:
        return torch.empty(size, dtype=torch.float64)

    step = module.hutchinson_device_step
    for change, kind, text in [
        ({1: a[1][1:]}, ValueError, "hutchinson_step: grads has 7 entries, expected 8"),
        ({7: [0] * 8}, ValueError, "hutchinson_step: blocks must be at least 1"),
        ({8: [-1] * 8}, ValueError, "hutchinson_step: offsets must not be negative"),
        ({9: [2] * 8}, ValueError, "hutchinson_step: rows must be those of settings, got 2"),
        ({10: [0.0]}, ValueError, "hutchinson_step: settings must have rows of 11 numbers"),
        ({4: a[0][::-1]}, ValueError, "m has shape"),
        ({0: [t.half() for t in a[0]]}, TypeError, "float32, float64 or bfloat16, got float16"),
    ]:
        with pytest.raises(kind, match=text):
            step(*(change.get(i, part) for i, part in enumerate(a)), room, 0)
    for bad in (lambda n: room(n - 1), lambda n: room(n).float()):
        with pytest.raises(
            ValueError, match=r"hutchinson_step: workspace must have \d+ float64"
        ):
            step(*a, bad, 0)


def test_cuda_module_refuses_cpu_tensors() -> None:
    try:
        module: Any = _runtime.cuda_module()
    except NotImplementedError as error:
        pytest.skip(str(error))
    with pytest.raises(ValueError, match="hutchinson_step: params must be on cuda, got cpu"):
        module.hutchinson_device_step(*adahessian(torch.float32), lambda n: None, 0)
