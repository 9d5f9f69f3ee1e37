"""The compiled kernels of sparse convolutions, in every variant, against float64 products."""

from __future__ import annotations

import itertools
import signal
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from curvkern import _runtime, _sparseconv
from curvkern._sparseconv import Pattern
from sparseconv_chains import guarded

ACTIVATIONS = {
    "none": lambda z: z,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
}
#: Largest error, relative to the largest entry.
BARS = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 2e-2}
VARIANTS = ["auto", "strip1", "strip2", "strip4x2", "strip7", "strip8x3"]
SHAPES = [(1, 1), (1, 15), (1, 16), (1, 17), (1, 49), (3, 49), (2, 196), (5, 7), (1, 784)]


class Problem:
    """A random matrix with an empty row, a full row and a stored zero; operands."""

    def __init__(
        self,
        rows: int = 48,
        columns: int = 216,
        block: tuple[int, int] = (1, 1),
        batch: int = 1,
        pixels: int = 49,
        dtype: torch.dtype = torch.float32,
        density: float = 0.15,
    ) -> None:
        r, c = block
        mask = torch.rand(rows // r, columns // c) < density
        mask[0], mask[1] = True, False
        counts = mask.sum(1).cumsum(0)
        self.mask, self.block = mask, block
        self.crow = torch.cat([counts.new_zeros(1), counts])
        self.col = mask.nonzero()[:, 1].contiguous()
        blocks = torch.randn(len(self.col), r, c, dtype=torch.float64)
        blocks[0] = 0
        blocks = blocks.to(dtype)
        self.values = blocks.flatten() if r * c == 1 else blocks
        dense = torch.zeros(*mask.shape, r, c, dtype=torch.float64)
        dense[mask] = blocks.double()
        self.dense = dense.transpose(1, 2).reshape(rows, columns)
        self.pattern = Pattern.validated(self.crow, self.col, block, (rows, columns))
        self.x = torch.randn(batch, columns, pixels).to(dtype)
        self.gy = torch.randn(batch, rows, pixels).to(dtype)
        self.bias = torch.randn(rows).to(dtype)
        self.residual = torch.randn(batch, rows, pixels).to(dtype)

    def product(self) -> Tensor:
        return self.dense @ self.x.double()


def assert_near(got: Tensor, expected: Tensor) -> None:
    error = (got.double() - expected).abs().max()
    assert error <= BARS[got.dtype] * expected.abs().max()


def misaligned(x: Tensor) -> Tensor:
    """The same numbers at addresses of which no register begins at one."""
    moved = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape)
    return moved.copy_(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("variant", ["strip1", "strip4", "strip7", "strip8x3"])
def test_images_are_read_in_place_or_packed(variant: str, dtype: torch.dtype) -> None:
    # The last two fall on each other in L1 where they lie; many rows are worth packing for.
    sizes = [(24, 56, 1), (216, 28, 2), (32, 112, 1), (72, 64, 1), (256, 32, 2)]
    for (channels, size, batch), rows in itertools.product(sizes, (8, 48)):
        case = Problem(rows, channels, batch=batch, pixels=size * size, dtype=dtype)
        packed = _sparseconv.pack(case.pattern, case.values, variant)
        got = _sparseconv.conv1x1_packed(case.x, packed, case.bias)
        assert_near(got, case.product() + case.bias.double()[:, None])
        again = _sparseconv.conv1x1_packed(misaligned(case.x), packed, case.bias)
        assert torch.equal(got, again)


def test_images_need_not_be_flattened() -> None:
    case = Problem(batch=2, pixels=196)
    packed = _sparseconv.pack(case.pattern, case.values, "strip4")
    flat = _sparseconv.conv1x1_packed(case.x, packed, case.bias, case.residual, "relu")
    x, residual = (t.unflatten(2, (7, 28)) for t in (case.x, case.residual))
    got = _sparseconv.conv1x1_packed(x, packed, case.bias, residual, "relu")
    assert got.shape == (2, 48, 7, 28)
    assert torch.equal(got.flatten(2), flat)
    with pytest.raises(ValueError, match="x must have 3 or 4 dimensions"):
        _sparseconv.conv1x1_packed(x[0, 0], packed)


def test_a_call_within_a_call_has_its_own_memory() -> None:
    """A handler of signals runs where a long product looks for them."""
    case = Problem(rows=512, columns=512, batch=24, pixels=56 * 56, density=0.3)
    packed = _sparseconv.pack(case.pattern, case.values, "strip7")
    expected = _sparseconv.conv1x1_packed(case.x, packed)
    inner, found = case.x[:1].clone(), []
    before = signal.signal(
        signal.SIGALRM,
        lambda *_: found.append(_sparseconv.conv1x1_packed(inner, packed)),
    )
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        got = _sparseconv.conv1x1_packed(case.x, packed)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert torch.equal(got, expected)
    assert len(found) == 1
    assert torch.equal(found[0], expected[:1])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", BARS, ids=str)
def test_product(dtype: torch.dtype, activation: str, variant: str) -> None:
    for batch, pixels in SHAPES:
        case = Problem(batch=batch, pixels=pixels, dtype=dtype)
        for bias in (None, case.bias):
            for residual in (None, case.residual):
                z = case.product()
                z = z if bias is None else z + bias.double()[:, None]
                z = z if residual is None else z + residual.double()
                y = _sparseconv.conv1x1(
                    case.x, case.pattern, case.values, bias, residual, activation,
                    variant=variant,
                )  # fmt: skip
                assert_near(y, ACTIVATIONS[activation](z))


@pytest.mark.parametrize("block", [(1, 1), (2, 1), (4, 1), (16, 1), (1, 4), (4, 4), (3, 2)])
@pytest.mark.parametrize("dtype", BARS, ids=str)
def test_blocks_and_gradients(dtype: torch.dtype, block: tuple[int, int]) -> None:
    for batch, pixels in SHAPES:
        case = Problem(block=block, batch=batch, pixels=pixels, dtype=dtype)
        y = _sparseconv.conv1x1(case.x, case.pattern, case.values)
        assert_near(y, case.product())
        gx = _sparseconv.conv1x1_input_grad(case.gy, case.pattern, case.values)
        assert_near(gx, case.dense.T @ case.gy.double())
        gv = _sparseconv.sddmm(case.gy, case.x, case.pattern)
        products = torch.einsum("bop,bkp->ok", case.gy.double(), case.x.double())
        (rows, columns), (r, c) = products.shape, block
        blocks = products.reshape(rows // r, r, columns // c, c).transpose(1, 2)
        assert_near(gv, blocks[case.mask].reshape(case.values.shape))


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_no_and_all_weights(density: float) -> None:
    """Down to rows that are empty in every chunk of channels, up to rows that are full."""
    case = Problem(64, 700, pixels=100, density=density)
    y = _sparseconv.conv1x1(case.x, case.pattern, case.values, case.bias)
    assert_near(y, case.product() + case.bias.double()[:, None])


def test_int32_indices() -> None:
    case = Problem(pixels=20)
    narrow = Pattern.validated(case.crow.int(), case.col.int(), (1, 1), case.pattern.shape)
    expected = _sparseconv.conv1x1(case.x, case.pattern, case.values)
    y = _sparseconv.conv1x1(case.x, narrow, case.values)
    assert_close(y, expected, rtol=0, atol=0)


@pytest.mark.parametrize("block", [(1, 1), (4, 1)])
def test_bits_depend_on_no_strip_chunk_or_thread(
    block: tuple[int, int], thread_counts: Any
) -> None:
    case = Problem(256, 640, block, 2, 196)
    arguments = (case.pattern, case.values, case.bias, case.residual, "silu")
    expected = first = None
    for threads in (1, 2, 3):
        thread_counts(threads)
        for variant in (*VARIANTS, "strip4x5"):
            y = _sparseconv.conv1x1(case.x, *arguments, variant=variant)
            expected = y if expected is None else expected
            assert_close(y, expected, rtol=0, atol=0)
        gv = _sparseconv.sddmm(case.gy, case.x, case.pattern)
        first = gv if first is None else first
        assert_close(gv, first, rtol=0, atol=0)


def test_large_results_pass_the_caches() -> None:
    """Beyond 2 MiB whole registers are streamed; the last strip of a row may be a part."""
    for pixels in (6400, 6401):
        case = Problem(96, 32, pixels=pixels)
        y = _sparseconv.conv1x1(
            case.x, case.pattern, case.values, case.bias, activation="relu6"
        )
        assert_near(y, F.relu6(case.product() + case.bias.double()[:, None]))


def test_signed_zeros_and_nan() -> None:
    """Each pixel is by itself, and NaN passes every activation."""
    case = Problem(pixels=33)
    case.x[0, :, 5] = torch.nan
    case.x[0, :, 7] = -0.0
    for activation in ACTIVATIONS:
        y = _sparseconv.conv1x1(case.x, case.pattern, case.values, activation=activation)
        assert y[0, 0, 5].isnan()
        assert y[0, 0, 7] == 0
        assert y[..., [*range(5), *range(6, 33)]].isfinite().all()


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("dtype", BARS, ids=str)
def test_nothing_is_read_beyond_the_end(dtype: torch.dtype) -> None:
    for batch, pixels in SHAPES:
        case = Problem(batch=batch, pixels=pixels, dtype=dtype)
        kept = [guarded(t) for t in (case.x, case.values, case.bias, case.residual, case.gy)]
        x, values, bias, residual, gy = (tensor for tensor, _ in kept)
        y = _sparseconv.conv1x1(x, case.pattern, values, bias, residual)
        expected = case.product() + case.bias.double()[:, None] + case.residual.double()
        assert_near(y, expected)
        _sparseconv.conv1x1_input_grad(gy, case.pattern, values)
        _sparseconv.sddmm(gy, x, case.pattern)


DEPTHWISE = [  # kernel, stride, padding, dilation, filters a channel
    ((3, 3), 1, (1, 1, 1, 1), 1, 1),
    ((3, 3), 2, (0, 1, 0, 1), 1, 1),
    ((5, 5), 1, (2, 2, 2, 2), 1, 1),
    ((5, 5), 2, (1, 2, 1, 2), 1, 2),
    ((3, 3), 1, (2, 2, 2, 2), 2, 1),
    ((7, 3), 3, (4, 0, 2, 5), 1, 3),
    ((1, 2), 2, (0, 0, 0, 0), 3, 1),
    ((3, 3), 4, (0, 9, 9, 0), 1, 1),
    ((3, 3), 2, (1, 1, 1, 1), 1, 1),
    ((5, 5), 2, (2, 2, 2, 2), 1, 2),
]


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation", "multiplier"), DEPTHWISE)
@pytest.mark.parametrize("dtype", BARS, ids=str)
def test_depthwise(
    kernel: tuple[int, int],
    stride: int,
    padding: tuple[int, ...],
    dilation: int,
    multiplier: int,
    dtype: torch.dtype,
    thread_counts: Any,
) -> None:
    for size, activation in (
        ((7, 7), "none"), ((14, 14), "none"), ((14, 15), "relu"), ((9, 33), "relu6"),
        ((112, 112), "silu"), ((5, 4), "hardswish"),
    ):  # fmt: skip
        x, _kept = guarded(torch.randn(2, 3, *size).to(dtype))
        weight, _also = guarded(torch.randn(3 * multiplier, 1, *kernel).to(dtype))
        for bias in (None, torch.randn(3 * multiplier).to(dtype)):
            wide = None if bias is None else bias.double()
            padded = F.pad(x.double(), padding)
            z = F.conv2d(padded, weight.double(), wide, stride, 0, dilation, 3)
            thread_counts(1)
            first = _sparseconv.depthwise(
                x, weight, bias, stride, padding, dilation, activation
            )
            assert_near(first, ACTIVATIONS[activation](z))
            thread_counts(2)
            again = _sparseconv.depthwise(
                x, weight, bias, stride, padding, dilation, activation
            )
            assert_close(again, first, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation", "multiplier"), DEPTHWISE)
@pytest.mark.parametrize("dtype", BARS, ids=str)
def test_depthwise_gradients(
    kernel: tuple[int, int],
    stride: int,
    padding: tuple[int, ...],
    dilation: int,
    multiplier: int,
    dtype: torch.dtype,
    thread_counts: Any,
) -> None:
    """Against derivatives of the dense formula, and the same bits for any number of threads."""
    settings = (stride, padding, dilation)
    for size, batch in (
        ((7, 7), 5), ((14, 14), 4), ((14, 15), 2), ((9, 33), 1), ((112, 112), 2), ((5, 4), 3),
    ):  # fmt: skip
        x, _kept = guarded(torch.randn(batch, 3, *size).to(dtype))
        weight, _also = guarded(torch.randn(3 * multiplier, 1, *kernel).to(dtype))
        wide = [t.double().requires_grad_() for t in (x, weight)]
        z = F.conv2d(F.pad(wide[0], padding), wide[1], None, stride, 0, dilation, 3)
        gy, _too = guarded(torch.randn(z.shape).to(dtype))
        expected = torch.autograd.grad(z, wide, gy.double())
        first = None
        for threads in (1, 2, 3):
            thread_counts(threads)
            gx = _sparseconv.depthwise_input_grad(gy, weight, size, *settings, 3)
            gw = _sparseconv.depthwise_weight_grad(gy, x, kernel, *settings)
            first = (gx, gw) if first is None else first
            assert_close((gx, gw), first, rtol=0, atol=0)
        assert_near(gx, expected[0])
        assert_near(gw, expected[1])


def test_depthwise_weight_gradient_keeps_its_digits() -> None:
    """Sums over 1e5 pixels, to 1e-6 of the largest."""
    x, gy = (torch.randn(8, 4, 112, 112) for _ in range(2))
    gw = _sparseconv.depthwise_weight_grad(gy, x, (3, 3), 1, (1, 1, 1, 1), 1)
    truth = _sparseconv.depthwise_weight_grad(
        gy.double(), x.double(), (3, 3), 1, (1, 1, 1, 1), 1
    )
    dense = torch.nn.grad.conv2d_weight(x.double(), (4, 1, 3, 3), gy.double(), 1, 1, 1, 4)
    assert (truth - dense).abs().max() <= 1e-12 * dense.abs().max()
    assert (gw - dense).abs().max() <= 1e-6 * dense.abs().max()


@pytest.mark.parametrize("size", [(9, 17), (8, 8), (7, 7), (14, 14), (33, 40)])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_infinite_pixels_stay_with_their_taps(
    size: tuple[int, int], kernel: int, stride: int
) -> None:
    """Weights that never meet an infinite pixel have finite gradients, the others infinite."""
    padding = (kernel // 2,) * 4
    x, weight = torch.randn(1, 1, *size), torch.ones(1, 1, kernel, kernel)
    x[..., -1] = torch.inf
    infinite = x.isinf().double()
    gy = 1 + torch.rand(F.conv2d(x, weight, None, stride, kernel // 2).shape)
    seen = torch.nn.grad.conv2d_weight(infinite, weight.shape, gy.double(), stride, kernel // 2)
    gw = _sparseconv.depthwise_weight_grad(gy, x, (kernel, kernel), stride, padding, 1)
    assert_close(gw == torch.inf, seen > 0)
    assert gw[seen == 0].isfinite().all()


FIRST = [  # channels, filters, kernel, stride, padding (left, right, top, bottom)
    (3, 32, (3, 3), 2, (1, 1, 1, 1)),
    (3, 13, (3, 3), 2, (0, 1, 0, 1)),
    (3, 9, (7, 7), 2, (3, 3, 3, 3)),
    (1, 16, (3, 3), 1, (1, 1, 1, 1)),
    (4, 7, (5, 5), 1, (2, 2, 2, 2)),
    (2, 3, (2, 7), 3, (4, 0, 2, 5)),
    (17, 5, (1, 1), 1, (0, 0, 0, 0)),
    (1, 1, (3, 3), 4, (0, 9, 9, 0)),
]


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize(("channels", "filters", "kernel", "stride", "padding"), FIRST)
@pytest.mark.parametrize("dtype", BARS, ids=str)
def test_first(
    channels: int,
    filters: int,
    kernel: tuple[int, int],
    stride: int,
    padding: tuple[int, ...],
    dtype: torch.dtype,
    thread_counts: Any,
) -> None:
    for size, activation in (
        ((8, 8), "none"), ((28, 15), "relu"), ((9, 133), "relu6"),
        ((224, 96), "silu"), ((6, 7), "hardswish"),
    ):  # fmt: skip
        x, _kept = guarded(torch.randn(2, channels, *size).to(dtype))
        weight, _also = guarded(torch.randn(filters, channels, *kernel).to(dtype))
        for bias in (None, torch.randn(filters).to(dtype)):
            wide = None if bias is None else bias.double()
            z = F.conv2d(F.pad(x.double(), padding), weight.double(), wide, stride)
            thread_counts(1)
            once = _sparseconv.first_native(x, weight, bias, stride, padding, activation)
            assert_near(once, ACTIVATIONS[activation](z))
            # By its own rows alone, up to the bits.
            part = _sparseconv.first_native(
                x[:1].contiguous(), weight[:1].contiguous(),
                None if bias is None else bias[:1], stride, padding, activation,
            )  # fmt: skip
            assert_close(part, once[:1, :1], rtol=0, atol=0)
            for threads in (2, 3):
                thread_counts(threads)
                again = _sparseconv.first_native(x, weight, bias, stride, padding, activation)
                assert_close(again, once, rtol=0, atol=0)


@pytest.mark.parametrize("stride", [1, 2])
def test_first_by_bands(stride: int) -> None:
    """Rows of an image that is cut where they end are those of the whole, bit for bit."""
    x, weight = torch.randn(1, 3, 65, 40), torch.randn(8, 3, 3, 3)
    whole = _sparseconv.first_native(x, weight, None, stride, (1, 1, 1, 1), "relu")
    cut = 2 * stride * 5
    above = x[:, :, : cut + 3 - stride].contiguous()
    below = x[:, :, cut - 1 :].contiguous()
    rows = cut // stride
    for part, padding, expected in (
        (above, (1, 1, 1, 0), whole[:, :, :rows]),
        (below, (1, 1, 0, 1), whole[:, :, rows:]),
    ):
        y = _sparseconv.first_native(part, weight, None, stride, padding, "relu")
        length = min(y.shape[2], expected.shape[2])
        assert length >= rows - 1
        assert_close(y[:, :, :length], expected[:, :, :length], rtol=0, atol=0)


def test_first_takes_the_quicker_way() -> None:
    """Few channels by the compiled kernel, many by torch: both are the convolution."""
    for channels in (3, 24):
        x, weight = torch.randn(1, channels, 20, 20), torch.randn(8, channels, 3, 3)
        y = _sparseconv.first_conv(x, weight, None, 2, (1, 0, 1, 0), "relu6")
        padded = F.pad(x.double(), (1, 0, 1, 0))
        assert_near(y, F.relu6(F.conv2d(padded, weight.double(), None, 2)))


CORRUPT = {
    "crow must begin with 0": ([1, 2, 4], [0, 2, 0, 1]),
    "crow must not decrease": ([0, 5, 4], [0, 1, 2, 3]),
    "crow must end with the length of col": ([0, 2, 3], [0, 2, 0, 1]),
    "crow must have length 3": ([0, 2], [0, 2]),
    r"col must be in \[0, 4\), got 4": ([0, 2, 4], [0, 4, 0, 1]),
    r"col must be in \[0, 4\), got -1": ([0, 2, 4], [-1, 2, 0, 1]),
    "col must increase within each row, got 0 after 2": ([0, 2, 4], [2, 0, 0, 1]),
    "col must increase within each row, got 1 after 1": ([0, 2, 4], [0, 2, 1, 1]),
}


@pytest.mark.parametrize("words", CORRUPT)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_corrupt_rows_are_refused(words: str, dtype: torch.dtype) -> None:
    crow, col = (torch.tensor(numbers, dtype=dtype) for numbers in CORRUPT[words])
    with pytest.raises(ValueError, match=f"sparse_conv1x1: {words}"):
        Pattern.validated(crow, col, (1, 1), (2, 4))


def test_indices_of_other_kinds_are_refused() -> None:
    crow, col = torch.tensor([0, 1, 2]), torch.tensor([0, 1])
    with pytest.raises(TypeError, match="crow must be int32 or int64, got int16"):
        Pattern.validated(crow.short(), col, (1, 1), (2, 4))
    with pytest.raises(ValueError, match="col must have 1 dimension, got 2"):
        Pattern.validated(crow, col[None], (1, 1), (2, 4))


@pytest.mark.parametrize("isa", ["v2", "v3", "v4"])
def test_forced_isa(isa: str, run_python: Any, tmp_path: Any) -> None:
    supported = _runtime.build_info()["isas"]
    if isa not in supported:
        pytest.skip(f"this processor runs {', '.join(supported)}, not {isa}")
    case = Problem(64, 300, pixels=77)
    torch.save((case.crow, case.col, case.values, case.x), tmp_path / "case.pt")
    run_python(
        f"""
        import torch
        from curvkern import _sparseconv
        crow, col, values, x = torch.load({str(tmp_path / "case.pt")!r})
        pattern = _sparseconv.Pattern.validated(crow, col, (1, 1), (64, 300))
        names = _sparseconv.variants(pattern, x.dtype, 1, 77, 1)
        results = [_sparseconv.conv1x1(x, pattern, values, variant=name) for name in names]
        torch.save(results, {str(tmp_path / "results.pt")!r})
        """,
        environment={"CURVKERN_ISA": isa},
    )
    for y in torch.load(tmp_path / "results.pt"):
        assert_near(y, case.product())
