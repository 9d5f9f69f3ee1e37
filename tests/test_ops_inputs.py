"""What every operation does with whatever is passed to it: layouts, shapes, kinds, dtypes.

The rows are in tests/operations.py. The reliability cases are R20 to R30.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from curvkern import _ops, _runtime
from operations import Elementwise, both_dtypes, every_operation, requiring_grad

# Layouts and shapes -------------------------------------------------------------------------

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.mT.contiguous().mT,
    "channels_last": lambda t: t.to(memory_format=torch.channels_last),
    "every second": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "between NaN": lambda t: torch.nn.functional.pad(t, (1, 1), value=torch.nan)[..., 1:-1],
    "offset": lambda t: torch.cat([t.new_full((3,), torch.nan), t.flatten()])[3:].view(t.shape),
    "negative bit": lambda t: torch.imag(torch.complex(t, -t).conj()),
}


@every_operation
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(op: Elementwise, layout: str) -> None:
    v, x = op.sample(2, 3, 4, 5)
    moved_v, moved_x = requiring_grad_of_layout(layout, v, x)
    v, x = requiring_grad(v, x)
    expected, result = op(v, x), op(moved_v, moved_x)
    assert_close(result, expected, rtol=0, atol=0)
    weight = torch.rand_like(expected)
    assert_close(
        torch.autograd.grad(result, (moved_v, moved_x), weight),
        torch.autograd.grad(expected, (v, x), weight),
    )


def requiring_grad_of_layout(layout: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    moved = tuple(LAYOUTS[layout](tensor) for tensor in tensors)
    for before, after in zip(tensors, moved, strict=True):
        assert torch.equal(before, after)
        assert after.is_neg() or after.stride() != before.stride() or after.storage_offset()
    return tuple(tensor.detach().requires_grad_() for tensor in moved)


@every_operation
@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_of_the_bare_operation(op: Elementwise, order: int, layout: str) -> None:
    inputs = op.sample(2, 3, 4, 5)
    moved = (LAYOUTS[layout](tensor) for tensor in inputs)
    assert_close(op.operation(order)(*moved), op.operation(order)(*inputs), rtol=0, atol=0)


@every_operation
def test_expanded_inputs_and_gradients(op: Elementwise) -> None:
    """`.sum().backward()` hands over a gradient of stride 0."""
    v, x = op.sample(5)
    v0 = v[:1].clone().requires_grad_()
    x0 = x.clone().requires_grad_()
    op(v0.expand(5), x0).sum().backward()
    dv, dx = op.operation(1)(v0.detach().expand(5).clone(), x)
    assert_close(v0.grad, dv.sum(0, keepdim=True))
    assert_close(x0.grad, dx)


@every_operation
@both_dtypes
def test_empty_and_0d(op: Elementwise, dtype: torch.dtype) -> None:
    for shape in ((0,), (3, 0), (0, 2)):
        v, x = requiring_grad(*op.sample(*shape, dtype=dtype))
        result = op(v, x)
        assert result.shape == shape
        assert result.dtype == dtype
        result.sum().backward()
        assert v.grad is not None
        assert v.grad.shape == shape
    v, x = op.sample(1, dtype=dtype)
    assert_close(op(v[0], x[0]), op(v, x)[0], rtol=0, atol=0)
    assert op(v[0], x[:0]).shape == (0,)


@every_operation
@pytest.mark.parametrize("size", [1, 511, 2049, 4095, 4096, 4097, 3 * 4096 + 5])
def test_position_does_not_matter(op: Elementwise, size: int) -> None:
    """Chunks and vector tails: every element equals the one computed alone, to rounding."""
    v, x = op.sample(size)
    result = op(v, x)
    chosen = torch.unique(torch.tensor([0, size // 2, size - 2, size - 1]).clamp(min=0))
    alone = torch.stack([op(v[i], x[i]) for i in chosen])
    assert_close(result[chosen], alone, rtol=1e-14, atol=1e-14)


@every_operation
def test_broadcasting(op: Elementwise) -> None:
    v, x = op.sample(3, 1)[0], op.sample(2, 1, 4)[1]
    assert_close(
        op(v, x),
        op(v.expand(2, 3, 4).contiguous(), x.expand(2, 3, 4).contiguous()),
        rtol=0,
        atol=0,
    )


# Kinds, dtypes, devices ---------------------------------------------------------------------


@every_operation
def test_promotion_is_that_of_torch(op: Elementwise) -> None:
    floating = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    integers = (torch.int64, torch.int32, torch.uint8)
    for (vd, vn), (xd, xn) in product(product(floating + integers, (0, 1)), repeat=2):
        v, x = torch.full((2,) * vn, 2).to(vd), torch.full((2,) * xn, 3).to(xd)
        promoted = torch.result_type(v, x)
        expected = promoted if promoted.is_floating_point else torch.get_default_dtype()
        assert op(v, x).dtype == expected, (v, x)
    for dtype in floating + integers:
        for number in (2, 2.0):
            x = torch.full((2,), 3).to(dtype)
            promoted = torch.result_type(x, number)
            expected = promoted if promoted.is_floating_point else torch.get_default_dtype()
            assert op(number, x).dtype == op(x, number).dtype == expected


@every_operation
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_halves_are_rounded_once(op: Elementwise, half: torch.dtype) -> None:
    v, x = op.sample(50, dtype=half)
    wide = op(v.float(), x.float())
    assert_close(op(v, x), wide.to(half), rtol=0, atol=0)
    v, x = requiring_grad(v, x)
    op(v, x).sum().backward()
    assert v.grad is not None
    assert v.grad.dtype == half
    assert v.grad.isfinite().all()


@every_operation
@pytest.mark.parametrize(
    "bad",
    [torch.ones(2, dtype=torch.complex64), torch.ones(2, dtype=torch.bool), np.ones(2, bool),
     np.ones(2, complex), np.ones(2, object), True, 1j, None, "1", [1.0], object()],
    ids=repr,
)  # fmt: skip
def test_wrong_kind(op: Elementwise, bad: Any) -> None:
    kind = str(getattr(bad, "dtype", type(bad).__name__))
    arrays_only = [np.ones(2)] if not isinstance(bad, torch.Tensor) else []
    tensors_only = [torch.ones(2)] if not isinstance(bad, np.ndarray) else []
    for good in arrays_only + tensors_only:
        for arguments, name in zip(((bad, good), (good, bad)), op.arguments, strict=True):
            with pytest.raises(TypeError, match=f"^{op.name}: {name} .*got .*{kind}"):
                op(*arguments)


@every_operation
def test_tensor_beside_array(op: Elementwise) -> None:
    message = f"{op.arguments[1]} is a NumPy ndarray beside a tensor"
    with pytest.raises(TypeError, match=message):
        op(torch.ones(2), np.ones(2))


@every_operation
def test_shapes_that_do_not_broadcast(op: Elementwise) -> None:
    v, x = op.arguments
    with pytest.raises(ValueError, match=f"^{op.name}: ") as caught:
        op(torch.ones(3), torch.ones(2, 4))
    for name, shape in ((v, r"\(3,\)"), (x, r"\(2, 4\)")):
        assert re.search(rf" {name} [^,]*{shape}", str(caught.value))


@every_operation
def test_two_devices(op: Elementwise) -> None:
    v, x = op.arguments
    words = f"{v} is on meta but {x} is on cpu|{x} is on cpu but {v} is on meta"
    with pytest.raises(ValueError, match=words):
        op(torch.ones(3, device="meta"), torch.ones(3))
    assert op(torch.tensor(2.0), torch.ones(3, device="meta")).device.type == "meta"


@every_operation
def test_sparse_layout(op: Elementwise) -> None:
    v, x = op.arguments
    with pytest.raises(TypeError, match=rf"{v} has layout torch.sparse_coo"):
        op(torch.eye(2).to_sparse(), torch.ones(2, 2))
    with pytest.raises(TypeError, match=rf"{x} has layout torch.sparse_coo"):
        op(torch.ones(2, 2), torch.eye(2).to_sparse())


@every_operation
def test_meta_and_fake_tensors(op: Elementwise) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    result = op(torch.ones(3, 1, device="meta"), torch.ones(4, device="meta"))
    assert result.shape == (3, 4)
    assert result.device.type == "meta"
    with FakeTensorMode():
        fake = op(torch.ones(3, 1), torch.ones(4, dtype=torch.float64))
    assert fake.shape == (3, 4)
    assert fake.dtype == torch.float64


class Subclass(torch.Tensor):
    """A tensor subclass that changes nothing."""


@every_operation
def test_subclass(op: Elementwise) -> None:
    v, x = op.sample(4)
    result = op(v.as_subclass(Subclass), x)
    assert type(result) is Subclass
    assert_close(result.as_subclass(Tensor), op(v, x), rtol=0, atol=0)
    parameter = torch.nn.Parameter(v)
    op(parameter, x).sum().backward()
    assert_close(parameter.grad, op.operation(1)(v, x)[0])


@every_operation
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_layout(op: Elementwise, layout: torch.layout) -> None:
    v, x = op.arguments
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=layout)
    with pytest.raises(TypeError, match=f"{op.name}: {v} has a nested layout"):
        op(nested, 1.0)
    with pytest.raises(TypeError, match=f"{op.name}: {x} has a nested layout"):
        op(1.0, nested)


@every_operation
def test_too_large(op: Elementwise) -> None:
    """80 TB, and more bytes than an int64 can count; and it works afterwards."""
    v, x = op.sample(1)
    for shape in ((10**6, 10**7), (2**31, 2**31)):
        with pytest.raises(MemoryError, match=rf"{op.name}: .*\({shape[0]}, .*too large"):
            op(v.expand(shape), x)
    assert op(v, x).isfinite().all()


@every_operation
def test_numbers_of_any_kind(op: Elementwise) -> None:
    for good in (2.5, np.float64(2.5), Fraction(5, 2)):
        assert op(good, 3) == op(2.5, 3.0)
        x = torch.tensor([3.0])
        assert torch.equal(op(good, x), op(torch.tensor([2.5]), x))
        assert torch.equal(op(x, good), op(x, torch.tensor([2.5])))
    large = torch.tensor(2.0**70, dtype=torch.float64)
    assert op(2.5, 2**70) == op(torch.tensor(2.5, dtype=torch.float64), large).item()
    assert torch.equal(op(large, 2**70), op(large, large))
    infinite = torch.tensor([torch.inf])  # what 1e300 is in float32
    assert_close(
        op(torch.tensor([2.5]), 1e300), op(torch.tensor([2.5]), infinite), equal_nan=True
    )
    for good in (2.5, torch.tensor(2.5)):
        words = f"{op.name}: {op.arguments[1]} must be within the range"
        with pytest.raises(ValueError, match=words):
            op(good, 10**400)


@every_operation
def test_masked_arrays_are_refused(op: Elementwise) -> None:
    v, x = op.arguments
    masked = np.ma.masked_array([1.0, 2.0], mask=[False, True])
    for bad in (masked, np.ma.masked):
        for good in (1.0, np.ones(2), torch.ones(2)):
            with pytest.raises(TypeError, match=rf"{op.name}: {v} is a masked .*\.filled\(\)"):
                op(bad, good)
            with pytest.raises(TypeError, match=rf"{op.name}: {x} is a masked .*\.filled\(\)"):
                op(good, bad)


# The native boundary ------------------------------------------------------------------------


@every_operation
@pytest.mark.parametrize("order", [0, 1, 2])
def test_native_argument_check(op: Elementwise, order: int) -> None:
    name = op.name + _ops.DERIVATIVES[order][0]
    outputs = _ops.DERIVATIVES[order][1]
    native = getattr(_runtime.cpu_module(), name)

    def call(v: Any, x: Any, out: Any = None) -> None:
        native(v, x, *([torch.ones(3) if out is None else out] * len(outputs)))

    ones = torch.ones(3)
    with pytest.raises(TypeError, match=f"{name}: v must be a tensor, got str"):
        call("1", ones)
    for dtype in (torch.int64, torch.bool, torch.complex64, torch.bfloat16, torch.float16):
        got = str(dtype).removeprefix("torch.")
        with pytest.raises(TypeError, match=f"x must be float32 or float64, got {got}"):
            call(ones, ones.to(dtype))
    with pytest.raises(TypeError, match="x has dtype float64 but v has dtype float32"):
        call(ones, ones.double())
    with pytest.raises(ValueError, match=r"x has shape \(4,\) but v has shape \(3,\)"):
        call(ones, torch.ones(4))
    with pytest.raises(ValueError, match=rf"{outputs[0]} has shape \(1, 3\)"):
        call(ones, ones, torch.ones(1, 3))
    with pytest.raises(ValueError, match="v must be contiguous"):
        call(torch.ones(6)[::2], ones)
    with pytest.raises(TypeError):
        native(ones)


@every_operation
def test_cuda_module_refuses_cpu_tensors(op: Elementwise) -> None:
    try:
        native = getattr(_runtime.cuda_module(), op.name)
    except NotImplementedError as error:
        pytest.skip(str(error))
    with pytest.raises(ValueError, match=f"{op.name}: v must be on cuda, got cpu"):
        native(torch.ones(3), torch.ones(3), torch.ones(3), 0)


# NumPy --------------------------------------------------------------------------------------

ARRAYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "negative stride": lambda a: a[::-1].copy()[::-1],
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "Fortran": np.asfortranarray,
    "sliced": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "unaligned": lambda a: np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(a.dtype)
    .reshape(a.shape),
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
}  # fmt: skip


@every_operation
@both_dtypes
@pytest.mark.parametrize("layout", ARRAYS)
def test_numpy_layout(op: Elementwise, dtype: torch.dtype, layout: str) -> None:
    v, x = op.sample(3, 4, dtype=dtype)
    result = op(ARRAYS[layout](v.numpy()), ARRAYS[layout](x.numpy()))
    assert type(result) is np.ndarray
    np.testing.assert_array_equal(result, op(v, x).numpy(), strict=True)
    result[:] = 0  # the caller's own


@every_operation
def test_numpy_kinds(op: Elementwise) -> None:
    v, x = (array.numpy() for array in op.sample(4))
    assert_close(op(2.5, x), op(torch.full((4,), 2.5), torch.tensor(x)).numpy(), rtol=0, atol=0)
    assert type(op(2.5, 3.5)) is np.float64
    assert type(op(np.float32(2.5), np.float32(3.5))) is np.float32
    assert op(np.arange(1, 4), 2).dtype == np.float64
    assert op(v.astype(np.float16), x.astype(np.float16)).dtype == np.float16
    with pytest.raises(
        TypeError, match=f"{op.name}: {op.arguments[1]} must be real and at most float64"
    ):
        op(v, x.astype(np.longdouble))
