"""torch.ops.curvkern.hutchinson_*: steps, probes and means over probes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from curvkern import _cpu, _hutchinson
from curvkern.reference import hutchinson as reference
from curvkern.reference import philox
from hutchinson_lists import (
    REFERENCE,
    ROW,
    ROWS,
    SEED,
    SHAPES,
    STEPS,
    adahessian,
    bar_of,
    compare,
    moved,
    tensors,
)
from hutchinson_truth import META, Field, spatial_of
from test_memory import Guarded
from test_rng import KNOWN_ANSWERS

OPS = torch.ops.curvkern
STORAGES = pytest.mark.parametrize("dtype", _hutchinson.STORAGES, ids=str)


@pytest.mark.parametrize("name", META["steps"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("way", ["native", "reference"])
def test_stored_steps(name: str, dtype: torch.dtype, way: str) -> None:
    c, field = META["steps"][name], Field(f"step/{name}")
    shapes, probes = c["shapes"], c["npr"]
    p = [field.tensor(f"p{i}", dtype) for i in range(len(shapes))]
    m, v = ([torch.zeros_like(t) for t in p] for _ in "mv")
    blocks = [_hutchinson.spatial_block(s, spatial_of(c)) for s in shapes]
    for t in range(3):
        g = [field.tensor(f"t{t}/g{i}", dtype) for i in range(len(p))]
        hz, z = (
            [
                field.tensor(f"t{t}/{kind}{a}_{i}", dtype).to(dtype)
                for a in range(probes)
                for i in range(len(p))
            ]
            for kind in ("hz", "z")
        )
        row = reference.Row(c["lr"], c["b1"], c["b2"], c["eps"], c["wd"], c["k"],
                            1 - c["b1"] ** (t + 1), 1 - c["b2"] ** (t + 1),
                            signed=float(c.get("signed", False)))  # fmt: skip
        step = OPS.hutchinson_step if way == "native" else reference.step
        step(p, g, hz, z, m, v, [], blocks, [0] * len(p), [0] * len(p), list(row), 1.0, False,
             0, 0)  # fmt: skip
    bar = 1e-12 if dtype is torch.float64 else 5e-5
    for key, found in (("P", p), ("M", m), ("V", v)):
        for i, got in enumerate(found):
            expected = field.tensor(f"{key}{i}")
            torch.testing.assert_close(got.double(), expected, rtol=bar, atol=bar * 1e-2)


@STORAGES
@pytest.mark.parametrize("probes", [1, 3])
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_native_equals_reference(
    dtype: torch.dtype, probes: int, row: dict[str, float]
) -> None:
    """Also when D is kept, taken from before, and when neither is there."""
    for change in ("fresh", "no copy of D", "stale", "hold", "z"):
        a = changed(adahessian(dtype, probes, **row), change)
        one, two = moved(a), moved(a)
        OPS.hutchinson_step(*one)
        reference.step(*two)
        compare(one, two, bar_of(dtype))


def changed(a: list[Any], change: str) -> list[Any]:
    """Arguments of AdaHessian's step without new products, without D kept, with z."""
    if change in ("stale", "hold"):
        a[2] = []
    if change in ("no copy of D", "hold"):
        a[6] = []
    if change == "z":
        a[3] = [philox.signs(h.numel(), 0, 1, 2, 3).view(h.shape).to(h) for h in a[2]]
    return a


@STORAGES
@pytest.mark.parametrize("name", ["sophia", "metric", "descent"])
@pytest.mark.parametrize("change", ["fresh", "z", "no last", "three probes"])
def test_relatives_equal_reference(name: str, dtype: torch.dtype, change: str) -> None:
    a = STEPS[name](dtype, 3 if change == "three probes" else 1)
    if change == "z" and name != "descent":
        a = changed(a, "z")
    if change == "no last":
        at = {"sophia": [2], "metric": [5, 6], "descent": [3, 4]}[name]  # sophia: no products
        a = [[] if i in at else part for i, part in enumerate(a)]
    one, two = moved(a), moved(a)
    sums = getattr(OPS, f"hutchinson_{name}")(*one)
    expected = REFERENCE[name](*two)
    compare(one, two, bar_of(dtype))
    if name == "metric":
        torch.testing.assert_close(sums, expected, rtol=10 * bar_of(dtype), atol=0)


@STORAGES
@pytest.mark.parametrize("name", STEPS)
def test_threads_change_no_bit(name: str, dtype: torch.dtype, thread_counts: Any) -> None:
    results = []
    for threads in (1, 2, 3):
        thread_counts(threads)
        for signed in (0.0, 1.0):
            a = STEPS[name](dtype, 2)
            if name == "step":
                a = adahessian(dtype, 2, signed=signed)
            sums = getattr(OPS, f"hutchinson_{name}")(*a)
            results.append(tensors(a) + ([] if sums is None else [sums]))
    for k, other in enumerate(results[2:]):
        assert all(torch.equal(a, b) for a, b in zip(results[k % 2], other, strict=True))


def test_one_call_is_many_calls() -> None:
    """Nothing depends on what else is in the list."""
    together, apart = (adahessian(torch.float32, 2) for _ in range(2))
    OPS.hutchinson_step(*together)
    n = len(SHAPES)
    for i in range(n):
        lists = [x[i::n] for x in apart[:7]]
        OPS.hutchinson_step(*lists, *(x[i : i + 1] for x in apart[7:10]), *apart[10:])
    assert all(
        torch.equal(a, b) for a, b in zip(tensors(together), tensors(apart), strict=True)
    )


@pytest.mark.parametrize("spatial", ["none", "conv", "row", (2, 3, 4, 5), (-1, -1, -1, -1)])
@pytest.mark.parametrize(
    "shape", [(), (0,), (7,), (4, 6), (3, 4, 5), (2, 3, 4, 5), (2, 3, 2, 2, 2)]
)
def test_modes_are_flat_blocks(spatial: Any, shape: tuple[int, ...]) -> None:
    """Means over dimensions, as torch takes them, are those of flat blocks."""
    D = torch.randn(shape, dtype=torch.float64)
    block = _hutchinson.spatial_block(shape, spatial)
    parts = [part.mean().expand_as(part) for part in D.reshape(-1).split(block)]
    flat = torch.cat(parts).view(shape) if D.numel() else D
    torch.testing.assert_close(flat, reference.spatial_mean(D, spatial), rtol=1e-12, atol=0)


@STORAGES
@pytest.mark.parametrize("signed", [0.0, 1.0], ids=["abs", "signed"])
@pytest.mark.parametrize("block", [2, 3, 4, 5, 9, 15, 16, 17, 25, 49, 63, 64, 100, 5000])
@pytest.mark.parametrize("size", [1, 8, 143, 144, 145, 4032, 9001, 12345])
def test_means_of_blocks(size: int, block: int, signed: float, dtype: torch.dtype) -> None:
    """With beta2 = 0, v is the square of the mean of its block: whole tiles, and their ends."""
    hz = torch.randn(size, generator=torch.Generator().manual_seed(size)).to(dtype)
    wide = _hutchinson.state_dtype(dtype)
    p, m, v = torch.zeros(size, dtype=dtype), torch.zeros(size, dtype=wide), torch.ones(size)
    v = v.to(wide)
    row = reference.Row(0.1, 0.9, 0.0, 1e-3, 0.0, 1.0, 0.1, 1.0, signed=signed)
    OPS.hutchinson_step([p], [torch.zeros_like(p)], [hz], [], [m], [v], [], [block], [0], [0],
                        list(row), 1.0, False, 0, 0)  # fmt: skip
    D = hz.double() if signed else hz.double().abs()
    means = torch.cat([part.mean().expand_as(part) for part in D.split(block)])
    bar = 1e-14 if wide is torch.float64 else 1e-6
    torch.testing.assert_close(v.double().sqrt(), means.abs(), rtol=bar, atol=bar)
    assert not m.any()
    assert not p.any()


@STORAGES
@pytest.mark.parametrize("end", ["front", "back"])
def test_no_access_beyond_the_ends(end: str, dtype: torch.dtype) -> None:
    """R54: what a step with means takes lies against a page that is inaccessible."""
    pages = [Guarded() for _ in range(5)]
    wide = _hutchinson.state_dtype(dtype)
    for size in (1, 9, 17, 72, 143, 144, 145, 288, 1000):
        tensors = [
            page.tensor(size, kind, end).copy_(torch.randn(size))
            for page, kind in zip(pages, (dtype, dtype, dtype, wide, wide), strict=True)
        ]
        for t in tensors:
            t.abs_()
        lists = [tensors[:1], tensors[1:2], tensors[2:3], [], tensors[3:4], tensors[4:]]
        rest = [[], [9], [0], [0], [*ROW], 1.0, False, 0, 0]
        expected = moved(lists)
        OPS.hutchinson_step(*lists, *rest)
        reference.step(*expected, *rest)
        compare(lists, expected, bar_of(dtype))


# Probes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_reference_philox(counter: Any, key: Any, expected: Any) -> None:
    assert tuple(philox.philox4x32(np.array([counter]), key)[0].tolist()) == expected


@STORAGES
@pytest.mark.parametrize("offset", [0, 1, 31, 128, 4095, 2**40 + 77])
def test_signs(dtype: torch.dtype, offset: int) -> None:
    """As the reference draws them, from any offset, in tensors of any size."""
    sizes = [0, 1, 5, 127, 128, 4096, 9001]
    out = [torch.full((n,), 7.0, dtype=dtype) for n in sizes]
    offsets = [offset + sum(sizes[:i]) for i in range(len(sizes))]
    OPS.hutchinson_signs(out, offsets, SEED, 9, 2)
    whole = philox.signs(sum(sizes), offset, SEED, 9, 2)
    assert torch.equal(torch.cat(out), whole.to(dtype))
    block = _cpu.philox(
        [offset // 128 & 0xFFFFFFFF, offset // 128 >> 32, 9, 2], [SEED & 0xFFFFFFFF, SEED >> 32]
    )
    bit = block[offset % 128 // 32] >> (offset % 32) & 1
    assert whole[0] == (-1 if bit else 1)


def test_signs_are_fair_and_independent() -> None:
    """Also between neighbours, probes, steps and seeds; bounds are five standard deviations."""
    n = 1 << 16
    draws = []
    for seed, step, probe in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (SEED, 5, 3)):
        out = [torch.empty(n)]
        OPS.hutchinson_signs(out, [0], seed, step, probe)
        assert set(out[0].tolist()) == {-1.0, 1.0}
        draws.append(out[0])
    bound = 5 / math.sqrt(n)
    for i, z in enumerate(draws):
        assert abs(z.mean()) < bound
        for lag in (1, 2, 31, 32, 64, 128):
            assert abs((z[lag:] * z[:-lag]).mean()) < bound
        for other in draws[:i]:
            assert abs((z * other).mean()) < bound


@STORAGES
@pytest.mark.parametrize("given", [False, True])
def test_accumulate(dtype: torch.dtype, given: bool) -> None:
    """Mean and variance over five probes, of float64."""
    sizes, probes = [4, 5000, 0, 131], 5
    wide = _hutchinson.state_dtype(dtype)
    mean, square = ([torch.zeros(n, dtype=wide) for n in sizes] for _ in "ms")
    offsets = [sum(sizes[:i]) for i in range(len(sizes))]
    seen: list[list[Tensor]] = [[] for _ in sizes]
    for probe in range(probes):
        hz = [torch.randn(n).add(3).to(dtype) for n in sizes]
        z = [torch.empty_like(h) for h in hz]
        OPS.hutchinson_signs(z, offsets, SEED, 1, probe)
        OPS.hutchinson_accumulate(
            mean, square, hz, z if given else [], offsets, SEED, 1, probe, probe + 1
        )
        for kept, a, b in zip(seen, z, hz, strict=True):
            kept.append((a * b).double())
    for kept, m, s in zip(seen, mean, square, strict=True):
        D = torch.stack(kept)
        torch.testing.assert_close(m.double(), D.mean(0), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            s.double(), (D - D.mean(0)).square().sum(0), rtol=1e-4, atol=1e-4
        )


def test_is_finite() -> None:
    for dtype in _hutchinson.STORAGES:
        x = torch.ones(100_001, dtype=dtype)
        assert _hutchinson.is_finite([x, x[:0]])
        for bad in (math.nan, math.inf, -math.inf):
            for at in (0, 77, 100_000):
                x[at] = bad
                assert not _hutchinson.is_finite([x[:3].clone().fill_(1), x])
                x[at] = 1


def test_what_was_saved_for_backward_is_noticed() -> None:
    """R34: a step on a parameter that a graph still needs is an error of that graph."""
    p = torch.ones(3, requires_grad=True)
    loss = (p * p).sum()
    one = [torch.ones(3)]
    with torch.no_grad():
        OPS.hutchinson_step([p], one, one, [], [torch.ones(3)], [torch.ones(3)], [], [1], [0],
                            [0], list(ROW), 1.0, False, 0, 0)  # fmt: skip
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
