"""Chains whose last stages take a group of small images at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from curvkern import _sparseconv
from sparseconv_chains import (
    LIMITS,
    Model,
    chains,
    first_is_native,
    grouped,
    guarded,
    native,
)


@pytest.fixture(autouse=True)
def _first_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    first_is_native(monkeypatch)


@pytest.mark.parametrize("name", chains(1))
@torch.no_grad()
def test_bits_do_not_depend_on_groups(name: str, thread_counts: Any) -> None:
    found = 0
    for batch in (1, 3, 8, 33):
        for size in ((1, 1), (2, 3), (4, 4), (7, 7)):
            model = Model(chains(6)[name]).eval()
            for dtype in (torch.float32, torch.float64, torch.bfloat16):
                model = model.to(dtype)
                x = torch.randn(batch, 6, *size).to(dtype)
                thread_counts(1)
                expected = model.one_by_one(x)
                for threads in (1, 2):
                    thread_counts(threads)
                    chain = native(model, x)
                    found += chain.group[1] > 1
                    for _ in range(2):  # what is left of a group does not reach the next
                        assert torch.equal(chain(x), expected), (batch, size, dtype, threads)
    assert found >= (0 if name == "first" else 60)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("name", ["separable", "inverted", "tensorflow", "pointwise"])
@torch.no_grad()
def test_groups_from_any_stage_on(
    name: str, limits: Any, thread_counts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After bands, across residuals, of larger images, and nothing beyond the ends (R54)."""
    monkeypatch.setattr(_sparseconv.Chain, "limits", limits)
    for first in range(len(chains(1)[name])):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            model = Model(chains(5)[name]).eval().to(dtype)
            images = torch.randn(7, 5, 9, 11).to(dtype)
            expected = model.one_by_one(images)
            for count in (1, 3, 7):
                grouped(monkeypatch, (first, count))
                for threads in (1, 2):
                    thread_counts(threads)
                    chain = native(model, images)
                    if dtype is torch.bfloat16:  # which numpy, and guarded, do not know
                        assert torch.equal(chain(images), expected), (first, count, threads)
                        continue
                    x, _kept = guarded(images)
                    y, _also = guarded(torch.zeros_like(expected))
                    room = torch.full((chain._native.workspace(),), torch.nan)
                    workspace, _too = guarded(room)
                    chain._native.run(x, workspace, y)
                    assert torch.equal(y, expected), (first, count, threads)


@torch.no_grad()
def test_groups_are_of_small_images(thread_counts: Any) -> None:
    """As many images as fit, for each thread as many, and none where little is gained."""
    sizes = [(256, 16, 16), (64, 8, 8), (512, 4, 4), (512, 4, 4)]
    found = []
    for threads in (1, 2):
        thread_counts(threads)
        for batch in (1, 2, 5, 8, 20, 32, 33):
            found.append(_sparseconv.Chain.grouping(sizes, torch.float32, batch, 0))
    alone, late, early = (3, 1), 2, 1
    assert found[:7] == [alone, (late, 2), (late, 5), *((early, n) for n in (8, 10, 16, 11))]
    assert found[7:] == [alone, alone, (late, 3), (late, 4), *((early, n) for n in (10, 16, 9))]
    wide = [(8192, 4, 4)] * 2  # one image fits
    assert _sparseconv.Chain.grouping(wide, torch.float32, 32, 0) == (1, 1)
    assert _sparseconv.Chain.grouping(sizes, torch.float32, 32, 3) == alone


@pytest.mark.parametrize(
    ("name", "group", "message"),
    [
        ("separable", (0, 0), "images of the batch"),
        ("separable", (0, 3), "images of the batch"),
        ("separable", (-1, 1), "begin at a stage"),
        ("separable", (5, 1), "begin at a stage"),
        ("first", (2, 2), "one image at a time"),
        ("odd", (3, 2), "one image at a time"),
    ],
)
def test_groups_that_are_refused(
    name: str, group: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = Model(chains(3)[name]).eval(), torch.randn(2, 3, 9, 9)
    stages: list[Any] = []
    make = _sparseconv.Chain.__init__

    def keep(self: _sparseconv.Chain, shape: Any, dtype: Any, made: Any, group: Any) -> None:
        stages[:] = made
        make(self, shape, dtype, made, group)

    monkeypatch.setattr(_sparseconv.Chain, "__init__", keep)
    native(model, x)
    with pytest.raises(ValueError, match=message):
        _sparseconv.Chain(x.shape, x.dtype, stages, group)
