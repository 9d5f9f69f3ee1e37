"""The compiled passes over a window: no rows, ends of memory, and no memory at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from curvkern import _mfac, _runtime
from test_memory import Guarded

WIDE = torch.float64
every_storage = pytest.mark.parametrize("storage", _mfac.STORAGES, ids=str)


@every_storage
@pytest.mark.parametrize("k", [0, 1, 3, 50])
def test_no_rows(k: int, storage: torch.dtype) -> None:
    """R20: legal, for one vector as for many."""
    window, v = torch.ones(4, 700).to(storage), torch.randn(k, 700)
    ops = torch.ops.curvkern
    assert ops.mfac_products(window, [], v).shape == (k, 0)
    none = torch.zeros(k, 0, dtype=WIDE)
    assert_close(ops.mfac_combine(window, [], none, 0.5, v, False), 0.5 * v)
    assert_close(
        ops.mfac_combine(window, [], none, 0.0, None, True), torch.zeros(k, 700).to(WIDE)
    )


@every_storage
@pytest.mark.parametrize("end", ["front", "back"])
@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_no_access_beyond_the_ends(k: int, end: str, storage: torch.dtype) -> None:
    """R54: windows, vectors and results lie against a page that is inaccessible."""
    native = _runtime.cpu_module()
    pages = [Guarded() for _ in range(4)]
    for m, d in ((1, 1), (3, 17), (5, 33), (9, 53), (33, 7)):
        kinds = ((m, d, storage), (k, d, WIDE), (k + 1, m, WIDE), (k, d, WIDE))
        window, v, found, out = (
            page.tensor(rows * width, dtype, end).view(rows, width)
            for page, (rows, width, dtype) in zip(pages, kinds, strict=True)
        )
        window.copy_(torch.randn(m, d))
        v.copy_(torch.randn(k, d))
        slots, row = list(range(m)), torch.randn(1, d)
        native.mfac_push(window, slots, m - 1, row, v, found)
        G = window.double()
        assert torch.equal(G[-1:], row.to(storage).double())
        assert_close(found, torch.cat([G[-1:], v]) @ G.T, rtol=1e-12, atol=1e-12)
        c = found[1:].clone()
        native.mfac_combine(window, slots, c, 0.5, v, out)
        assert_close(out, 0.5 * v + c @ G, rtol=1e-12, atol=1e-11)


def test_a_block_of_any_size() -> None:
    G = torch.randn(3, 40)
    out = torch.full((2, 40), torch.nan, dtype=WIDE)
    for block, target in zip((40, 2**63 - 1), out, strict=True):
        _runtime.cpu_module().mfac_block_diagonal(G, [0, 1, 2], block, 0.1, 3.0, target)
    assert out.isfinite().all()
    assert torch.equal(out[0], out[1])


def test_memory_that_ends_in_a_parallel_region(run_python: Any) -> None:
    """R31: MemoryError from whichever thread has none, and the next call works."""
    run_python(
        """
        import resource, torch
        from curvkern.fisher import StaticFisher

        torch.set_num_threads(2)
        torch.manual_seed(0)
        small = StaticFisher.from_gradients(torch.randn(4, 20_000), 1.0, block_size=3)
        expected = small.diag_inverse()  # its threads stay
        fisher = StaticFisher.from_gradients(torch.randn(2000, 4000), 1.0, block_size=2000)
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (40 << 20), resource.RLIM_INFINITY))
        try:
            fisher.diag_inverse()
        except MemoryError as error:
            assert str(error).startswith("curvkern: not enough memory")
            assert torch.equal(small.diag_inverse(), expected)
        else:
            raise AssertionError("48 MiB for each thread were there")
        """
    )
