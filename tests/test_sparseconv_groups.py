"""Chains whose last stages take a group of small images at once."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from curvkern import _sparseconv, sparse
from sparseconv_chains import (
    LIMITS,
    Layer,
    Model,
    assert_fenced,
    chains,
    depthwise,
    first_is_native,
    fused_modules,
    grouped,
    measuring,
    native,
    pointwise,
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
    for first in range(len(chains(1)[name]) + 1):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            model = Model(chains(5)[name]).eval().to(dtype)
            images = torch.randn(7, 5, 9, 11).to(dtype)
            expected = model.one_by_one(images)
            for count in (1, 3, 7):
                grouped(monkeypatch, (first, count))
                for threads in (1, 2):
                    thread_counts(threads)
                    assert_fenced(native(model, images), images, expected, 0.0)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernel", [3, 5])
@torch.no_grad()
def test_filters_alone(
    kernel: int, dtype: torch.dtype, thread_counts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strides that leave rows and columns unused, and no product whose scratch is larger."""
    for size in itertools.product(range(3, 10), repeat=2):
        for padding in (0, (1, 0, 1, 0)):
            room = min(size) + (padding != 0) - kernel
            if room < 0:
                continue
            layers: list[Layer]
            layers = [(depthwise(2, kernel, stride=2, padding=padding), 0, None)]
            if room >= 4:  # of which 3 x 3 pixels or more are left
                last = depthwise(2, 3, 4, stride=2, padding=padding, activation="relu6")
                layers.append((last, 1, None))
            model = Model(layers).eval().to(dtype)
            images = torch.randn(17, 2, *size).to(dtype)
            expected = model.one_by_one(images)
            for count in (9, 16):  # the last group is smaller, and fills no register
                grouped(monkeypatch, (0, count))
                for threads in (1, 2):
                    thread_counts(threads)
                    assert_fenced(native(model, images), images, expected, 0.0)


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


def depthwise_stage(
    kernel: tuple[int, int] = (3, 3), stride: int = 1, dilation: int = 1
) -> _sparseconv.Stage:
    weight = torch.ones(4, 1, *kernel)
    return _sparseconv.Chain.depthwise(0, weight, None, stride, [4] * 4, dilation, "none")


@pytest.mark.parametrize(
    ("stages", "group", "message"),
    [
        ([depthwise_stage()], (0, 0), "images of the batch"),
        ([depthwise_stage()], (0, 3), "images of the batch"),
        ([depthwise_stage()], (-1, 1), "begin at a stage"),
        ([depthwise_stage()], (2, 1), "begin at a stage"),
        ([depthwise_stage((7, 7))], (0, 2), "one image at a time"),
        ([depthwise_stage((3, 5))], (0, 2), "one image at a time"),
        ([depthwise_stage(stride=3)], (0, 2), "one image at a time"),
        ([depthwise_stage(dilation=2)], (0, 2), "one image at a time"),
        ([depthwise_stage(), depthwise_stage((7, 7))], (0, 2), "one image at a time"),
        (
            [_sparseconv.Chain.first(0, torch.ones(4, 4, 3, 3), None, 1, [0] * 4, "none")],
            (0, 2),
            "one image at a time",
        ),
    ],
)
def test_groups_that_are_refused(stages: Any, group: Any, message: str) -> None:
    _sparseconv.Chain((2, 4, 9, 9), torch.float32, stages, (len(stages), 2))
    with pytest.raises(ValueError, match=message):
        _sparseconv.Chain((2, 4, 9, 9), torch.float32, stages, group)


@torch.no_grad()
def test_filters_of_small_images_are_tried_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone they lose by far, as a batch of small planes does; larger ones are not tried."""
    measuring(monkeypatch, chain=1.0, dense=0.3)
    layers = [torch.nn.Conv2d(6, 6, 3, padding=1, groups=6) for _ in range(2)]
    model = torch.nn.Sequential(*layers).eval()
    for shape, together in (((8, 6, 4, 4), 1), ((1, 6, 4, 4), 0), ((8, 6, 12, 12), 0)):
        x = torch.randn(shape)
        quick = sparse.sparsify(model, example_input=x)
        assert len(fused_modules(quick)) == together
        torch.testing.assert_close(quick(x), model(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_gates_take_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    stages: list[Any] = []
    make = _sparseconv.Chain.__init__

    def keep(self: _sparseconv.Chain, shape: Any, dtype: Any, made: Any, group: Any) -> None:
        stages[:] = made
        make(self, shape, dtype, made, group)

    monkeypatch.setattr(_sparseconv.Chain, "__init__", keep)
    x = torch.randn(2, 4, 3, 3)
    native(Model([(pointwise(4, 4), 0, None)]), x)
    _sparseconv.Chain(x.shape, x.dtype, stages, (0, 2))
    gate = torch.ones(1, 4), None, torch.ones(4, 1), None, "relu", False
    stages = [(*stages[0][:-1], gate)]
    _sparseconv.Chain(x.shape, x.dtype, stages, (1, 2))
    with pytest.raises(ValueError, match="one image at a time"):
        _sparseconv.Chain(x.shape, x.dtype, stages, (0, 2))


@pytest.mark.parametrize("first", [0, 1])
def test_groups_that_are_too_large(first: int) -> None:
    """R31: channels of all images from 2^63 on, and elements beyond 2^52."""
    for images, message in (
        (2**61, "a group is too large"),
        (2**63 - 1, "a group is too large"),
        (2**61 - 1, "what a stage computes is too large"),
        (2**47, "what a stage computes is too large"),
    ):
        with pytest.raises(ValueError, match=message):
            _sparseconv.Chain(
                (images, 4, 3, 3), torch.float32, [depthwise_stage()], (first, images)
            )


def test_interrupts(run_python: Any) -> None:
    """R43: within a call whose stages all take groups, of which a signal stops the rest."""
    run_python(
        """
import signal
import torch
from curvkern import _sparseconv
signal.signal(signal.SIGVTALRM, signal.default_int_handler)
weight = torch.full((32, 1, 3, 3), 0.14)
stages = [
    _sparseconv.Chain.depthwise(i, weight, None, 1, [1] * 4, 1, "none") for i in range(160)
]
x = torch.randn(16000, 32, 4, 4)
for threads in (1, 2):
    torch.set_num_threads(threads)
    chain = _sparseconv.Chain(x.shape, x.dtype, stages, (0, 16))
    expected = chain(x)
    workspace = torch.empty(chain._native.workspace())
    y = torch.full_like(expected, torch.nan)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.01)  # of the time that it gets
    try:
        chain._native.run(x, workspace, y)
        raise AssertionError("not interrupted")
    except KeyboardInterrupt:
        pass
    assert y.isnan().any()
    assert torch.equal(chain(x), expected)
"""
    )
