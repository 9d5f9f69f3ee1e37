"""Sparse and depthwise convolutions on a GPU, on the host and, where there is one, on a GPU.

One source makes both, so the host shows whether the kernels are right; what it cannot show are
races within a barrier's reach, beyond what running blocks and threads backwards, too, brings to
light.
Truth: dense formulas of torch, in float64.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from curvkern import _runtime
from curvkern import _sparseconv_device as device_kernels

WIDE = torch.float64
NOT_FINITE = (torch.nan, torch.inf)
both_devices = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, WIDE], ids=str)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda z: z,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
}


@dataclass(frozen=True, eq=False)
class Pattern:
    crow: Tensor
    col: Tensor
    block: tuple[int, int]
    shape: tuple[int, int]


@pytest.fixture(params=[0, 1], ids=["forwards", "backwards"])
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """In which order the host runs blocks and threads; a GPU has its own."""
    on_gpu = device_kernels._stream
    monkeypatch.setattr(
        device_kernels, "_stream", lambda x: on_gpu(x) if x.is_cuda else request.param
    )
    number: int = request.param
    return number


def pattern_of(mask: Tensor, block: tuple[int, int] = (1, 1), index: Any = None) -> Pattern:
    """Blocks where a mask is set."""
    crow = F.pad(mask.sum(1).cumsum(0), (1, 0))
    rows, columns = mask.shape
    dtype = index or torch.int64
    return Pattern(
        crow.to(dtype),
        mask.nonzero()[:, 1].to(dtype),
        block,
        (rows * block[0], columns * block[1]),
    )


def dense_of(pattern: Pattern, values: Tensor) -> Tensor:
    """The matrix, written entry by entry."""
    r, c = pattern.block
    matrix = torch.zeros(pattern.shape, dtype=WIDE)
    blocks = values.double().reshape(-1, r, c)
    for i in range(len(pattern.crow) - 1):
        for k in range(int(pattern.crow[i]), int(pattern.crow[i + 1])):
            j = int(pattern.col[k])
            matrix[i * r : (i + 1) * r, j * c : (j + 1) * c] = blocks[k]
    return matrix


def values_of(pattern: Pattern, dtype: torch.dtype) -> Tensor:
    r, c = pattern.block
    count = len(pattern.col)
    return torch.randn(count if r * c == 1 else (count, r, c), dtype=WIDE).to(dtype)


def random_of(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, dtype=WIDE).to(dtype)


def close(found: Tensor, wanted: Tensor) -> None:
    """Relative to the largest entry: 1e-5 in float32, a rounding in bfloat16."""
    assert found.shape == wanted.shape
    assert found.is_contiguous()
    limit = {torch.float32: 1e-5, torch.bfloat16: 2.0**-8, WIDE: 1e-13}[found.dtype]
    scale = float(wanted.abs().max()) if wanted.numel() else 0.0
    assert_close(found.cpu().double(), wanted, rtol=0, atol=limit * scale)


# Block rows and columns, block, batch, pixels, density. Rows of any offset and length, empty
# and full ones; images whose pixels come in fours, or not; fewer and more than a warp takes.
PRODUCTS: list[tuple[int, int, tuple[int, int], int, int, float]] = [
    (1, 1, (1, 1), 1, 1, 1.0),
    (5, 7, (1, 1), 1, 3, 0.5),
    (40, 33, (1, 1), 2, 49, 0.2),
    (17, 64, (1, 1), 3, 196, 0.1),
    (3, 300, (1, 1), 1, 520, 0.9),
    (70, 20, (1, 1), 1, 8, 0.3),
    (20, 12, (2, 1), 2, 49, 0.3),
    (9, 30, (4, 1), 3, 36, 0.4),
    (4, 21, (16, 1), 2, 49, 0.4),
    (3, 10, (16, 1), 1, 64, 0.7),
    (7, 9, (8, 1), 2, 12, 0.5),
    (6, 5, (3, 2), 2, 20, 0.5),
    (5, 8, (1, 4), 1, 49, 0.5),
    (4, 4, (5, 3), 3, 7, 0.6),
    (6, 6, (2, 2), 1, 100, 0.5),
    (3, 3, (11, 1), 2, 16, 0.7),
]


@both_devices
@every_dtype
@pytest.mark.parametrize("case", PRODUCTS, ids=str)
def test_products(
    case: tuple[int, int, tuple[int, int], int, int, float],
    dtype: torch.dtype,
    device: str,
    order: int,
) -> None:
    rows, columns, block, B, P, density = case
    mask = torch.rand(rows, columns) < density
    mask[0] = True
    if rows > 2:
        mask[1] = False
    pattern = pattern_of(mask, block, torch.int32 if B == 2 else torch.int64)
    values = values_of(pattern, dtype)
    W = dense_of(pattern, values)
    x = random_of(B, W.shape[1], P, dtype=dtype)
    gy = random_of(B, W.shape[0], P, dtype=dtype)
    bias = random_of(W.shape[0], dtype=dtype)
    there = [t.to(device) for t in (x, values, bias, gy)]
    names = list(ACTIVATIONS)
    activation = names[(rows + columns) % len(names)]

    close(device_kernels.conv1x1(there[0], pattern, there[1]), W @ x.double())
    z = W @ x.double() + bias.double()[:, None] + gy.double()
    y = device_kernels.conv1x1(there[0], pattern, there[1], there[2], there[3], activation)
    close(y, ACTIVATIONS[activation](z))
    close(device_kernels.conv1x1_input_grad(there[3], pattern, there[1]), W.T @ gy.double())
    found = device_kernels.sddmm(there[3], there[0], pattern)
    product = torch.einsum("bop,bkp->ok", gy.double(), x.double())
    assert found.shape == values.shape
    mask = dense_of(pattern, torch.ones_like(values))
    close(dense_of(pattern, found.cpu()).to(dtype), product * mask)


@both_devices
@every_dtype
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("P", [7, 8])
def test_epilogue(activation: str, P: int, dtype: torch.dtype, device: str, order: int) -> None:
    """On both sides of each kink, far out, and where nothing is finite."""
    z = torch.tensor(
        [0.0, -0.0, -3.0, -2.9, 3.1, 6.0, 6.1, -1.0, 90.0, -90.0, 1e30, -1e30, *NOT_FINITE]
    )[:, None].repeat(1, P)
    pattern = pattern_of(torch.zeros(len(z), 1, dtype=torch.bool))
    x, values = torch.ones(1, 1, P, dtype=dtype), torch.empty(0, dtype=dtype)
    residual = z.to(dtype)[None]
    found = device_kernels.conv1x1(
        x.to(device), pattern, values.to(device), None, residual.to(device), activation
    )
    wanted = ACTIVATIONS[activation](residual.double())
    assert_close(found.cpu().double(), wanted, rtol=0.008, atol=1e-30, equal_nan=True)
    assert found[0, -2].isnan().all()
    if dtype is not torch.bfloat16:
        assert_close(found.cpu().double(), wanted, rtol=3e-7, atol=1e-30, equal_nan=True)


@both_devices
@pytest.mark.parametrize("block", [(1, 1), (4, 1), (2, 3)], ids=str)
def test_neighbours_that_are_not_finite(
    block: tuple[int, int], device: str, order: int
) -> None:
    """A row reads what surrounds it in its loads, and takes nothing of it."""
    mask = torch.eye(9, dtype=torch.bool) | (torch.arange(9)[:, None] == 3)
    pattern = pattern_of(mask, block)
    values = values_of(pattern, torch.float32)
    W = dense_of(pattern, values)
    x = torch.randn(1, W.shape[1], 12)
    x[0, 4 * block[1]] = torch.inf
    y = device_kernels.conv1x1(x.to(device), pattern, values.to(device)).cpu()
    clean = [r for r in range(len(W)) if r // block[0] not in (3, 4)]
    assert y[0, clean].isfinite().all()
    assert_close(y[0, clean].double(), W[clean] @ torch.where(x[0].isinf(), 0.0, x[0]).double(),
                 rtol=1e-5, atol=1e-5)  # fmt: skip
    r, c = block
    shape = values.shape
    blocks = values.reshape(-1, r, c)
    bad = int(pattern.crow[5])  # the first block of row 5
    blocks[bad] = torch.nan
    y = device_kernels.conv1x1(
        torch.ones(1, W.shape[1], 5, device=device), pattern, blocks.reshape(shape).to(device)
    ).cpu()
    assert y[0, 5 * r : 6 * r].isnan().all()
    assert y[0, : 5 * r].isfinite().all()
    assert y[0, 6 * r :].isfinite().all()


@both_devices
def test_nothing_beyond_the_ends(device: str, order: int) -> None:
    """Results are written where they belong alone, from images that begin anywhere."""
    pattern = pattern_of(torch.rand(6, 10) < 0.6)
    W = dense_of(pattern, values := values_of(pattern, torch.float32))
    for shift in (1, 4):
        flat = torch.full((2 * 10 * 12 + 2 * shift,), torch.nan)
        flat[shift:-shift] = torch.randn(2 * 10 * 12)
        x = flat[shift:-shift].view(2, 10, 12)
        moved = torch.full((len(values) + 2 * shift,), torch.nan)
        moved[shift:-shift] = values
        there = moved.to(device)[shift:-shift]
        y = torch.full((2 * 6 * 12 + 2 * shift,), 7.0).to(device)
        part = y[shift:-shift].view(2, 6, 12)
        x_there = flat.to(device)[shift:-shift].view(2, 10, 12)
        matrix = device_kernels._cached(pattern, part.device, "rows", device_kernels._by_rows)
        device_kernels._multiply(
            matrix, (1, 1), there, x_there, None, None, "none", "auto", part
        )
        close(part, W @ x.double())
        assert (y[:shift] == 7).all()
        assert (y[-shift:] == 7).all()


@both_devices
def test_every_variant_is_the_same(device: str, order: int) -> None:
    pattern = pattern_of(torch.rand(50, 40) < 0.3)
    values, x = values_of(pattern, torch.float32), torch.randn(2, 40, 49)
    values, x = values.to(device), x.to(device)
    wanted = device_kernels.conv1x1(x, pattern, values)
    for variant in device_kernels.VARIANTS:
        packed = device_kernels.pack(pattern, values, variant)
        assert torch.equal(device_kernels.conv1x1_packed(x, packed), wanted)
    brought_along = device_kernels.pack(pattern, values, "strip7x2")
    assert torch.equal(device_kernels.conv1x1_packed(x, brought_along), wanted)
    for dtype in (torch.float32, WIDE, torch.bfloat16):
        for B, P in [(1, 1), (1, 49), (8, 196), (3, 12544), (1, 6)]:
            names = device_kernels.variants(pattern, dtype, B, P, 1)
            assert len(set(names)) == len(names) > 0
            assert set(names) <= set(device_kernels.VARIANTS)


@both_devices
@every_dtype
@pytest.mark.parametrize("block", [(1, 1), (4, 1), (2, 2)], ids=str)
def test_sums_over_many_pixels(
    block: tuple[int, int], dtype: torch.dtype, device: str, order: int
) -> None:
    """In parts, which a plan makes where there are few nonzeros."""
    pattern = pattern_of(torch.tensor([[True, False, True]] * 2), block)
    rows, columns = pattern.shape
    gy, x = (random_of(3, n, 3136, dtype=dtype) for n in (rows, columns))
    module: Any = _runtime.cpu_module()
    size = module.sparseconv_device_correlation_workspace(4, block, 2, 3, 3136)
    assert size > 4 * block[0] * block[1]
    found = device_kernels.sddmm(gy.to(device), x.to(device), pattern)
    wanted = torch.einsum("bop,bkp->ok", gy.double(), x.double())
    mask = dense_of(pattern, torch.ones_like(found.cpu()))
    close(dense_of(pattern, found.cpu()).to(dtype), wanted * mask)


@both_devices
def test_rows_of_any_length(device: str, order: int) -> None:
    """One row holds nearly all, most are empty, and zeros are stored."""
    mask = torch.zeros(300, 200, dtype=torch.bool)
    mask[150], mask[7, 199], mask[299, 0] = True, True, True
    pattern = pattern_of(mask)
    values = values_of(pattern, torch.float32)
    values[3] = 0
    W, x, gy = dense_of(pattern, values), torch.randn(2, 200, 9), torch.randn(2, 300, 9)
    there = values.to(device)
    close(device_kernels.conv1x1(x.to(device), pattern, there), W @ x.double())
    close(device_kernels.conv1x1_input_grad(gy.to(device), pattern, there), W.T @ gy.double())
    found = device_kernels.sddmm(gy.to(device), x.to(device), pattern).cpu()
    product = torch.einsum("bop,bkp->ok", gy.double(), x.double())
    close(found, product[mask])
    assert found[3] != 0


WINDOWS: list[tuple[int, int, tuple[int, int], tuple[int, int], int, Sequence[int], int]] = [
    # batch, channels, image, kernel, stride, (left, right, top, bottom), dilation
    (1, 1, (1, 1), (1, 1), 1, (0, 0, 0, 0), 1),
    (2, 3, (7, 7), (3, 3), 1, (1, 1, 1, 1), 1),
    (1, 4, (9, 11), (3, 3), 2, (0, 1, 0, 1), 1),
    (2, 2, (14, 14), (5, 5), 1, (2, 2, 2, 2), 1),
    (1, 3, (15, 10), (5, 5), 2, (1, 2, 2, 1), 1),
    (1, 2, (13, 12), (3, 3), 1, (2, 2, 2, 2), 2),
    (1, 2, (13, 12), (3, 3), 2, (2, 1, 0, 2), 3),
    (2, 2, (10, 9), (2, 4), 3, (3, 0, 1, 2), 1),
    (1, 2, (9, 16), (7, 7), 1, (3, 3, 3, 3), 1),
    (1, 2, (3, 3), (3, 3), 1, (5, 0, 4, 1), 1),
    (1, 20, (20, 20), (3, 3), 1, (0, 0, 0, 0), 1),
]


def windows(x: Tensor, weight: Tensor, settings: tuple[Any, ...], groups: int) -> Tensor:
    stride, padding, dilation = settings
    return F.conv2d(F.pad(x, padding), weight, None, stride, 0, dilation, groups)


@both_devices
@every_dtype
@pytest.mark.parametrize("case", WINDOWS, ids=str)
def test_depthwise(case: tuple[Any, ...], dtype: torch.dtype, device: str, order: int) -> None:
    B, C, size, kernel, *rest = case
    settings = tuple(rest)
    x, w = random_of(B, C, *size, dtype=dtype), random_of(C, 1, *kernel, dtype=dtype)
    bias = random_of(C, dtype=dtype)
    X, Wt = x.double().requires_grad_(), w.double().requires_grad_()
    z = windows(X, Wt, settings, C)
    gy = random_of(*z.shape, dtype=dtype)
    gx, gw = torch.autograd.grad(z, (X, Wt), gy.double())
    x, w, bias, gy = (t.to(device) for t in (x, w, bias, gy))
    close(device_kernels.depthwise(x, w, None, *settings), z.detach())
    y = device_kernels.depthwise(x, w, bias, *settings, "hardswish")
    close(y, F.hardswish(z.detach() + bias.cpu().double()[:, None, None]))
    close(device_kernels.depthwise_input_grad(gy, w, size, *settings), gx)
    close(device_kernels.depthwise_weight_grad(gy, x, kernel, *settings), gw)


@both_devices
@every_dtype
@pytest.mark.parametrize("kernel", [(3, 3), (4, 3)], ids=str)
def test_filters_of_many_outputs(
    kernel: tuple[int, int], dtype: torch.dtype, device: str, order: int
) -> None:
    """Their gradient is summed in parts."""
    settings = (2, (1, 1, 1, 1), 1)
    x = random_of(3, 2, 60, 61, dtype=dtype)
    weight = torch.zeros(2, 1, *kernel, dtype=WIDE, requires_grad=True)
    z = windows(x.double(), weight, settings, 2)
    gy = random_of(*z.shape, dtype=dtype)
    (wanted,) = torch.autograd.grad(z, weight, gy.double())
    module: Any = _runtime.cpu_module()
    taps = kernel[0] * kernel[1]
    size = module.sparseconv_device_weight_workspace(kernel, z.shape[2:], 3, 2)
    assert size > 2 * taps
    found = device_kernels.depthwise_weight_grad(gy.to(device), x.to(device), kernel, *settings)
    close(found, wanted)


@both_devices
@every_dtype
@pytest.mark.parametrize(
    ("channels", "filters", "kernel"), [(3, 32, (3, 3)), (1, 5, (7, 7)), (40, 17, (3, 3))]
)
def test_first(
    channels: int,
    filters: int,
    kernel: tuple[int, int],
    dtype: torch.dtype,
    device: str,
    order: int,
) -> None:
    """The last of these has more taps than shared memory has room for at a time."""
    x = random_of(2, channels, 15, 18, dtype=dtype)
    w = random_of(filters, channels, *kernel, dtype=dtype)
    bias = random_of(filters, dtype=dtype)
    for stride, padding in [(2, (0, 1, 0, 1)), (1, (1, 2, 3, 0))]:
        z = windows(x.double(), w.double(), (stride, padding, 1), 1)
        y = device_kernels.first_conv(
            x.to(device), w.to(device), bias.to(device), stride, padding, "relu6"
        )
        close(y, F.relu6(z + bias.double()[:, None, None]))


@both_devices
def test_nothing_to_do(device: str) -> None:
    empty = pattern_of(torch.zeros(4, 3, dtype=torch.bool))
    none = torch.empty(0, device=device)
    x, gy = torch.randn(2, 3, 5, device=device), torch.randn(2, 4, 5, device=device)
    bias = torch.randn(4, device=device)
    y = device_kernels.conv1x1(x, empty, none, bias)
    assert torch.equal(y, bias[:, None].expand(2, 4, 5))
    assert not device_kernels.conv1x1_input_grad(gy, empty, none).any()
    assert device_kernels.sddmm(gy, x, empty).shape == (0,)
    full = pattern_of(torch.ones(4, 3, dtype=torch.bool))
    values = torch.randn(12, device=device)
    for B, P in [(0, 5), (2, 0)]:
        assert device_kernels.conv1x1(x[:B, :, :P], full, values).shape == (B, 4, P)
        found = device_kernels.sddmm(
            gy[:B, :, :P].contiguous(), x[:B, :, :P].contiguous(), full
        )
        assert torch.equal(found, torch.zeros_like(values))
    image, w = torch.randn(0, 3, 6, 6, device=device), torch.randn(3, 1, 3, 3, device=device)
    y = device_kernels.depthwise(image, w)
    assert y.shape == (0, 3, 4, 4)
    gw = device_kernels.depthwise_weight_grad(y, image, (3, 3), 1, (0, 0, 0, 0), 1)
    assert torch.equal(gw, torch.zeros_like(w))


def test_a_plan_lives_with_its_pattern() -> None:
    pattern = pattern_of(torch.ones(2, 2, dtype=torch.bool))
    gc.collect()
    before = len(device_kernels._plans)
    x, values = torch.randn(1, 2, 4), torch.randn(4)
    device_kernels.conv1x1(x, pattern, values)
    first = dict(device_kernels._plans[pattern])
    device_kernels.conv1x1(x, pattern, values)
    assert device_kernels._plans[pattern] == first
    assert len(device_kernels._plans) == before + 1
    del pattern
    gc.collect()
    assert len(device_kernels._plans) == before


def test_arguments_are_checked() -> None:
    """Whatever calls the module itself."""
    module: Any = _runtime.cpu_module()
    pattern = pattern_of(torch.ones(2, 3, dtype=torch.bool))
    matrix = device_kernels._cached(
        pattern, torch.device("cpu"), "tiles", device_kernels._by_tiles
    )
    x, y, values = torch.ones(1, 3, 4), torch.ones(1, 2, 4), torch.ones(6)
    image, weight = torch.ones(1, 2, 5, 5), torch.ones(2, 1, 3, 3)
    room, out = torch.empty(0, dtype=WIDE), torch.ones(1, 2, 3, 3)
    around = (0, 0, 0, 0)
    multiply = module.sparseconv_device_multiply
    convolve = module.sparseconv_device_convolve

    def product(**other: Any) -> None:
        usual: dict[str, Any] = {
            "matrix": matrix, "block": (1, 1), "values": values, "x": x, "bias": None,
            "residual": None, "activation": "none", "lanes": 32, "y": y, "stream": 0,
        }  # fmt: skip
        multiply(**{**usual, **other})

    for kind, text, call in [
        (ValueError, r"sparse_conv1x1: y must have shape \(1, 2, 4\), got \(1, 3, 4\)",
         lambda: product(y=x)),
        (TypeError, "sparse_conv1x1: values has dtype float64 but x has dtype float32",
         lambda: product(values=values.double())),
        (ValueError, r"sparse_conv1x1: values must have shape \(6\), got \(5\)",
         lambda: product(values=values[:5])),
        (ValueError, "sparse_conv1x1: values must begin at a multiple of 32 bytes",
         lambda: product(values=torch.ones(7)[1:])),
        (ValueError, "sparse_conv1x1: lanes must be 1, 2, 4, 8, 16 or 32, got 12",
         lambda: product(lanes=12)),
        (ValueError, "sparse_conv1x1: activation must be none, .* got 'tanh'",
         lambda: product(activation="tanh")),
        (ValueError, "sparse_conv1x1: block must divide x's channels",
         lambda: product(block=(1, 2))),
        (TypeError, "sparse_conv1x1: crow must hold numbers of 64 bits",
         lambda: product(matrix=(matrix[2][:1].repeat(3), *matrix[1:]))),
        (ValueError, "sparse_conv1x1: x must have 3 dimensions, got 2",
         lambda: product(x=x[0])),
        (ValueError, r"sparse_conv1x1_sddmm: matrix must be \(crow, col, order, row, first\)",
         lambda: module.sparseconv_device_correlate(matrix[:3], (1, 1), y, x, room, values, 0)),
        (ValueError, "depthwise_conv2d_weight_grad: workspace must have at least 18 elements",
         lambda: module.sparseconv_device_weight_gradient(
             out, image, 1, around, 1, room, weight, 0)),
        (ValueError, "depthwise_conv2d: the result must be 3 x 3, got 5 x 5",
         lambda: convolve(True, image, weight, None, 1, around, 1, "none", image, 0)),
        (ValueError, r"first_conv2d: weight must have shape \(2, 2, 3, 3\), got \(2, 1, 3, 3\)",
         lambda: convolve(False, image, weight, None, 1, around, 1, "none", out, 0)),
        (ValueError, "depthwise_conv2d: stride and dilation must be positive",
         lambda: convolve(True, image, weight, None, 0, around, 1, "none", out, 0)),
    ]:  # fmt: skip
        with pytest.raises(kind, match=text):
            call()
    product()


def test_cuda_module_refuses_cpu_tensors() -> None:
    try:
        module: Any = _runtime.cuda_module()
    except NotImplementedError as error:
        pytest.skip(str(error))
    x = torch.ones(1, 1, 3, 3)
    with pytest.raises(ValueError, match="depthwise_conv2d: x must be on cuda, got cpu"):
        module.sparseconv_device_convolve(True, x, x, None, 1, (0,) * 4, 1, "none", x, 0)
