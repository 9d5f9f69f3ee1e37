"""The passes over a window on a GPU, on the host and, where there is one, on a GPU.

One source makes both, so the host shows whether the kernels are right; what it cannot show are
races within a barrier's reach, beyond what running blocks and threads backwards, too, brings
to light.
Truth: the same sums in plain torch, in float64; and the passes of the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from curvkern import _mfac, _mfac_device, _mfac_tiles, _runtime
from curvkern.fisher import SlidingWindowFisher, StaticFisher

WIDE = torch.float64
both_devices = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
)
every_storage = pytest.mark.parametrize("storage", _mfac.STORAGES, ids=str)

# Rows and columns: fewer than a warp has; no multiple of a load; one more than a group of rows,
# a launch's slots or a chunk of coefficients; several tiles, parts and panels, and one less.
SIZES = [
    (1, 1), (3, 2), (4, 8), (5, 250), (8, 1024), (31, 1025), (33, 4096), (64, 2047), (129, 514),
    (70, 9000), (481, 33), (513, 40), (1100, 136), (2, 300_001), (6, 270_000),
]  # fmt: skip


def window_of(m: int, d: int, storage: torch.dtype, shift: int = 0) -> Tensor:
    """Some rows; with a shift they begin at no multiple of 16 bytes."""
    flat = torch.randn(m * d + shift, dtype=WIDE).to(storage)
    return flat[shift:].reshape(m, d)


def slots_of(m: int, count: int) -> list[int]:
    return torch.randperm(m)[:count].tolist()


def close(found: Tensor, wanted: Tensor, terms: Tensor) -> None:
    """Within some roundings of the sum of the terms' absolute values."""
    assert found.shape == wanted.shape
    limit = 4e-16 * terms + 1e-300
    if found.dtype is torch.float32:
        limit = limit + 2.0**-24 * wanted.abs()
    assert bool(((found.double() - wanted).abs() <= 4 * limit).all())


def on_both(
    device: str,
    monkeypatch: pytest.MonkeyPatch,
    out: Tensor,
    run: Callable[[Callable[[Any], Any], Tensor], None],
) -> Tensor:
    """What run(to device, out) writes; the same bits again, on the host in another order."""
    found = []
    for stream in (0, 1):
        if device == "cpu":
            monkeypatch.setattr(_mfac_device, "_stream", lambda window, s=stream: s)
        there = torch.full_like(out, torch.nan, device=device)
        run(lambda t: t.to(device, copy=True) if torch.is_tensor(t) else t, there)
        found.append(there.cpu())
    assert torch.equal(*found)
    return found[0]


@both_devices
@every_storage
@pytest.mark.parametrize(("m", "d"), SIZES)
def test_products(
    m: int, d: int, storage: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    window, slots = window_of(m, d, storage), slots_of(m, (3 * m + 3) // 4)
    k = (m + d) % 10 + 1
    v = torch.randn(k, d, dtype=torch.float32 if m % 2 else WIDE)
    G = window[slots].double()
    found = on_both(
        device,
        monkeypatch,
        torch.empty(k, len(slots), dtype=WIDE),
        lambda to, out: _mfac_device.products(to(window), slots, to(v), out),
    )
    close(found, v.double() @ G.T, v.double().abs() @ G.abs().T)
    cpu = torch.ops.curvkern.mfac_products(window, slots, v)
    close(found, cpu, v.double().abs() @ G.abs().T)


@both_devices
@every_storage
@pytest.mark.parametrize(("m", "d"), SIZES)
def test_push(
    m: int, d: int, storage: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    window, slots = window_of(m, d, storage), slots_of(m, m - m // 3)
    into, k = (7 * m) % len(slots), (0, 1, 3, 8)[(m + d) % 4]
    gradient = torch.randn(1, d, dtype=WIDE if d % 2 else torch.float32)
    v = torch.randn(k, d, dtype=torch.float32 if m % 2 else WIDE)
    wanted = window.clone()
    wanted[slots[into]] = gradient[0].to(storage)
    if storage is torch.bfloat16:
        wanted[slots[into]] = gradient[0].float().to(storage)
    written = []

    def run(to: Callable[[Any], Any], out: Tensor) -> None:
        written.append(to(window))
        _mfac_device.push(written[-1], slots, into, to(gradient), to(v), out)

    found = on_both(device, monkeypatch, torch.empty(k + 1, len(slots), dtype=WIDE), run)
    for there in written:
        assert torch.equal(there.cpu(), wanted)
    G = wanted[slots].double()
    rows = torch.cat([G[into, None], v.double()])
    close(found, rows @ G.T, rows.abs() @ G.abs().T)
    cpu = torch.ops.curvkern.mfac_push(window, slots, into, gradient, v)
    close(found, cpu, rows.abs() @ G.abs().T)
    assert torch.equal(window, wanted)


@both_devices
@every_storage
@pytest.mark.parametrize(("m", "d"), SIZES)
def test_combine(
    m: int, d: int, storage: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    window, slots = window_of(m, d, storage), slots_of(m, m - m // 3)
    k, wide = (m + d) % 6 + 1, bool(d % 2)
    coefficient = torch.randn(k, len(slots), dtype=WIDE)
    v = torch.randn(k, d, dtype=torch.float32 if m % 2 else WIDE) if k != 2 else None
    found = on_both(
        device,
        monkeypatch,
        torch.empty(k, d, dtype=WIDE if wide else torch.float32),
        lambda to, out: _mfac_device.combine(
            to(window), slots, to(coefficient), -0.7, to(v), out
        ),
    )
    G, first = window[slots].double(), torch.zeros(k, d) if v is None else v.double()
    terms = coefficient.abs() @ G.abs() + first.abs()
    close(found, coefficient @ G - 0.7 * first, terms)
    cpu = torch.ops.curvkern.mfac_combine(window, slots, coefficient, -0.7, v, wide)
    close(found, cpu.double(), terms + 1e9 * 2.0**-24 * cpu.abs() * (not wide))


@both_devices
@every_storage
@pytest.mark.parametrize("shift", [1, 2, 4])
def test_rows_that_begin_anywhere(shift: int, storage: torch.dtype, device: str) -> None:
    """A part of a larger tensor: the loads are those that its address allows."""
    flat = torch.randn(5 * 64 + shift, dtype=WIDE).to(storage)
    there = flat.to(device)
    window, part = flat[shift:].view(5, 64), there[shift:].view(5, 64)
    assert part.data_ptr() % 16 == shift * part.itemsize % 16
    slots, v = [4, 0, 2], torch.randn(2, 64, dtype=WIDE)
    out = torch.empty(3, 3, dtype=WIDE, device=device)
    _mfac_device.push(part, slots, 1, v[:1].to(device), v.to(device), out)
    window[0] = v[0].float().to(storage) if storage is torch.bfloat16 else v[0].to(storage)
    assert torch.equal(there.cpu(), flat)  # and nothing else was written
    G = window[slots].double()
    assert_close(out.cpu(), torch.cat([G[1:2], v]) @ G.T, rtol=1e-13, atol=1e-13)
    y = torch.empty(3, 64, dtype=WIDE, device=device)
    _mfac_device.combine(part, slots, out, 0.0, None, y)
    assert_close(y.cpu(), out.cpu() @ G, rtol=1e-13, atol=1e-12)


@both_devices
@every_storage
@pytest.mark.parametrize(("first", "d"), [(0, 64), (1, 64), (4, 60), (3, 1), (8, 5000)])
def test_some_columns(first: int, d: int, storage: torch.dtype, device: str) -> None:
    """Of a wider window: as a copy of them but for the width of loads, and alone written."""
    wider = window_of(6, 5017, storage).to(device)
    before, columns = wider.clone(), slice(first, first + d)
    part, copied = wider[:, columns], wider[:, columns].contiguous()
    slots, v = [4, 0, 2], torch.randn(2, d, dtype=WIDE, device=device)
    found = []
    for window in (part, copied):
        out = torch.empty(3, 3, dtype=WIDE, device=device)
        _mfac_device.push(window, slots, 1, v[:1], v, out)
        y = torch.empty(3, d, dtype=WIDE, device=device)
        _mfac_device.combine(window, slots, out, 0.0, None, y)
        found.append((out, y, window))
    assert_close(*found, rtol=1e-13, atol=1e-10)
    before[:, columns] = copied
    assert torch.equal(wider, before)


@both_devices
def test_nothing_to_read(device: str) -> None:
    window = torch.ones(3, 5, device=device)
    v = torch.randn(2, 5, device=device)
    _mfac_device.products(window, [0], v[:0], torch.empty(0, 1, dtype=WIDE, device=device))
    _mfac_device.products(window, [], v, torch.empty(2, 0, dtype=WIDE, device=device))
    none = torch.empty(2, 0, dtype=WIDE, device=device)
    out = torch.empty_like(v)
    _mfac_device.combine(window, [], none, 0.5, v, out)
    assert_close(out, 0.5 * v)
    _mfac_device.combine(window, [], none, 0.0, None, out)
    assert torch.equal(out, torch.zeros_like(out))
    out = torch.full((2, 2), torch.nan, dtype=WIDE, device=device)
    _mfac_device.products(window[:, :0], [0, 1], v[:, :0], out)
    assert torch.equal(out, torch.zeros_like(out))
    _mfac_device.combine(window[:, :0], [0, 1], out, 0.0, None, v[:, :0])


@both_devices
def test_rounding_of_the_row(device: str) -> None:
    """To nearest, ties to even, by way of float32; infinities where it overflows."""
    bits = torch.arange(-(2**31), 2**31, 2**31 // 1500 + 1, dtype=torch.int64).to(torch.int32)
    row = bits.view(torch.float32)
    row = row[torch.isfinite(row)]
    ties = torch.tensor([0x3F808000, 0x3F818000, 0x00008000, 0x7F7F8000]).to(torch.int32)
    row = torch.cat([row, ties.view(torch.float32), torch.zeros(1), -torch.zeros(1)])[None]
    for gradient in (row, row.double()):
        window = torch.zeros(2, row.shape[1], dtype=torch.bfloat16, device=device)
        out = torch.empty(1, 2, dtype=WIDE, device=device)
        there = gradient.to(device)
        _mfac_device.push(window, [0, 1], 1, there, there[:0], out)
        assert torch.equal(
            window[1].cpu().view(torch.int16), row[0].bfloat16().view(torch.int16)
        )


def through_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operations of the CPU by the kernels of a GPU, on the host."""
    module: Any = _runtime.cpu_module()

    class Module:
        def __getattr__(self, name: str) -> Any:
            return getattr(module, name)

        def mfac_products(self, window: Tensor, slots: Any, v: Tensor, out: Tensor) -> None:
            _mfac_device.products(window, slots, v, out)

        def mfac_push(self, *arguments: Any) -> None:
            _mfac_device.push(*arguments)

        def mfac_combine(self, *arguments: Any) -> None:
            _mfac_device.combine(*arguments)

    monkeypatch.setattr(_runtime, "cpu_module", Module)


@every_storage
@pytest.mark.parametrize("shape", [(5, 3), (33, 40), (70, 2100)])
def test_a_ring_on_the_host(
    shape: tuple[int, int], storage: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    m, d = shape
    fishers = [SlidingWindowFisher(d, m, 1e-3, dtype=storage) for _ in range(2)]
    rows = torch.randn(m + 5, d)
    v = torch.randn(3, d, dtype=WIDE)
    answers = []
    for fisher in fishers:
        for g in rows[:-1]:
            fisher.push(g)
        newest = fisher.push_ihvp(rows[-1])
        fisher.remove(m // 2)
        fisher.replace(0, rows[0])
        answers.append((newest.double(), fisher.push_ihvp(rows[1], v), fisher.ihvp(v)))
        through_the_device(monkeypatch)
    assert_close(answers[1], answers[0], rtol=1e-6, atol=1e-9)
    assert_close(answers[1][1:], answers[0][1:], rtol=1e-9, atol=1e-9)


@pytest.mark.cuda
@every_storage
@pytest.mark.parametrize("shape", [(5, 3), (33, 40), (70, 2100), (64, 100_001)])
def test_a_ring_on_a_gpu(shape: tuple[int, int], storage: torch.dtype) -> None:
    """Every query, on a stream of its own."""
    m, d = shape
    rows, v = torch.randn(m + 5, d), torch.randn(3, d, dtype=WIDE)
    answers = []
    for device in ("cpu", "cuda"):
        there = v.to(device)
        fisher = SlidingWindowFisher(d, m, 1e-3, dtype=storage, device=device)
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
            for g in rows[:-1].to(device):
                fisher.push(g)
            newest = fisher.push_ihvp(rows[-1].to(device)).double()
            x = fisher.push_ihvp(rows[0].to(device), there)
            static = StaticFisher.from_gradients(fisher._window.clone(), 1e-3)
            found = [
                newest, x, fisher.ihvp(there), fisher.quad_form(there), fisher.gram(),
                fisher.diag_inverse(), static.ihvp(there), static.diag_inverse(),
            ]  # fmt: skip
            torch.cuda.current_stream().synchronize()
        answers.append([t.cpu() for t in found])
    assert_close(answers[1][0], answers[0][0], rtol=1e-6, atol=1e-9)
    assert_close(answers[1][1:], answers[0][1:], rtol=1e-9, atol=1e-9)


@both_devices
@every_storage
@pytest.mark.parametrize("slots", [[8, 2, 5], list(range(9))], ids=str)
def test_tiles(slots: list[int], storage: torch.dtype, device: str) -> None:
    """What a build without CUDA kernels does there, and the passes that have none."""
    window = window_of(9, 40_000, storage)
    v, c = torch.randn(2, 40_000), torch.randn(2, len(slots), dtype=WIDE)
    root = torch.randn(len(slots), len(slots), dtype=WIDE).tril()
    G, V, C = (t.to(device, copy=True) for t in (window, v, c))
    ops = torch.ops.curvkern

    def compare(found: Tensor, wanted: Tensor) -> None:
        assert_close(found.cpu(), wanted, rtol=1e-11, atol=1e-8)

    out = torch.empty(3, len(slots), dtype=WIDE, device=device)
    _mfac_tiles.push(G, slots, 1, V[:1], V, out)
    compare(out, ops.mfac_push(window, slots, 1, v[:1], v))
    assert torch.equal(G.cpu(), window)
    _mfac_tiles.products(G, slots, V, out[:2])
    compare(out[:2], ops.mfac_products(window, slots, v))
    out = torch.empty(2, 40_000, dtype=WIDE, device=device)
    _mfac_tiles.combine(G, slots, C, 0.5, V, out)
    compare(out, ops.mfac_combine(window, slots, c, 0.5, v, True))
    _mfac_tiles.combine(G, slots, C, 0.5, None, out)
    compare(out, ops.mfac_combine(window, slots, c, 0.5, None, True))
    out = torch.empty(len(slots), len(slots), dtype=WIDE, device=device)
    _mfac_tiles.gram(G, slots, out)
    compare(out, ops.mfac_gram(window, slots))
    out = torch.empty(40_000, dtype=WIDE, device=device)
    _mfac_tiles.whitened_squares(G, slots, root.to(device), out)
    compare(out, ops.mfac_whitened_squares(window, slots, root))


@pytest.mark.cuda
@every_storage
def test_not_finite_on_a_gpu(storage: torch.dtype) -> None:
    fisher = SlidingWindowFisher(5000, 3, 0.1, dtype=storage, device="cuda")
    for bad in (torch.nan, torch.inf, -torch.inf):
        g = torch.randn(5000, device="cuda")
        g[4321] = bad
        with pytest.raises(ValueError, match="push: grad must be finite"):
            fisher.push(g)
    with pytest.raises(ValueError, match="push: grad must be finite"):
        fisher.push(
            torch.full((5000,), 1e308 if storage != WIDE else torch.inf).double().cuda()
        )
    assert len(fisher) == 0


def test_arguments_are_checked() -> None:
    """Whatever calls the module itself."""
    module: Any = _runtime.cpu_module()
    window, v = torch.ones(3, 4), torch.ones(2, 4)
    out, room = torch.empty(3, 2, dtype=WIDE), torch.empty(1000, dtype=WIDE)
    coefficient, y = torch.ones(2, 2, dtype=WIDE), torch.empty(2, 4)
    slots = [0, 2]
    push, add = module.mfac_device_products, module.mfac_device_combine
    for kind, text, call in [
        (ValueError, "mfac_products: slots must be rows of window, which has 3, got 3",
         lambda: push(window, [0, 3], 0, None, v, room, out, 0)),
        (ValueError, "mfac_products: gradient must have one row",
         lambda: push(window, slots, 0, v, v, room, out, 0)),
        (ValueError, "mfac_products: into must be the place of a slot",
         lambda: push(window, slots, 2, v[:1], v, room, out, 0)),
        (ValueError, r"mfac_products: out must have shape \(2, 2\)",
         lambda: push(window, slots, 0, None, v, room, out, 0)),
        (ValueError, "mfac_products: v must have rows of 4 elements",
         lambda: push(window, slots, 0, None, torch.ones(2, 3), room, out, 0)),
        (ValueError, "mfac_products: workspace must have at least 8 elements",
         lambda: push(window, slots, 0, v[:1], v, room[:7], out, 0)),
        (TypeError, "mfac_products: workspace must be float64",
         lambda: push(window, slots, 0, v[:1], v, room.float(), out, 0)),
        (TypeError, "mfac_products: window must be float32, float64 or bfloat16, got float16",
         lambda: push(window.half(), slots, 0, v[:1], v, room, out, 0)),
        (ValueError, r"mfac_combine: coefficient must have shape \(2, 2\)",
         lambda: add(window, slots, coefficient[:1], 1.0, v, room, y, 0)),
        (ValueError, "mfac_combine: v has 1 rows but coefficient has 2",
         lambda: add(window, slots, coefficient, 1.0, v[:1], room, y, 0)),
        (ValueError, "mfac_combine: workspace must have at least 2 elements",
         lambda: add(window, slots, coefficient, 1.0, v, room[:1], y, 0)),
    ]:  # fmt: skip
        with pytest.raises(kind, match=text):
            call()


def test_cuda_module_refuses_cpu_tensors() -> None:
    try:
        module: Any = _runtime.cuda_module()
    except NotImplementedError as error:
        pytest.skip(str(error))
    v, wide = torch.ones(1, 4), torch.ones(1, 1, dtype=WIDE)
    with pytest.raises(ValueError, match="mfac_products: window must be on cuda, got cpu"):
        module.mfac_device_products(v, [0], 0, v, v, wide, wide, 0)
    with pytest.raises(ValueError, match="mfac_combine: window must be on cuda, got cpu"):
        module.mfac_device_combine(v, [0], wide, 1.0, v, wide, v, 0)


def test_workspace_stays_small() -> None:
    """A five-hundredth of a float32 window for a push and a product, and no more with d."""
    size = _runtime.cpu_module().mfac_device_workspace
    for m, d in [(32, 10**6), (128, 10**6), (1024, 10**6), (1024, 10**9), (10_000, 10**8)]:
        assert 8 * size(m, d, 2) <= 4 * m * d / 200
        assert size(m, d, 100) == size(m, d, 8)
    assert np.iinfo(np.int64).max > size(10**6, 10**12, 8) > 0
