"""What every operation owes autograd, the transforms, the compiler and the machine.

The rows are in tests/operations.py: a family adds a row, not a copy of these tests. Values are
checked in tests/test_<family>.py; here an operation is compared with itself in another guise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.testing import assert_close
from torch.utils._pytree import tree_map_only

from curvkern import _runtime
from operations import (
    OPERANDS,
    OPERATIONS,
    Elementwise,
    both_dtypes,
    every_operation,
    requiring_grad,
)

# Autograd ---------------------------------------------------------------


@every_operation
@both_dtypes
@pytest.mark.parametrize("order", [0, 1, 2])
def test_opcheck(op: Elementwise, order: int, dtype: torch.dtype) -> None:
    for shape in ((5,), (2, 3), ()):
        torch.library.opcheck(op.operation(order).default, op.sample(*shape, dtype=dtype))


@every_operation
@pytest.mark.parametrize("order", [0, 1, 2])
def test_opcheck_of_derivatives(op: Elementwise, order: int) -> None:
    """All of it passes, but that what differentiates second derivatives is refused in words."""
    found = torch.library.opcheck(
        op.operation(order).default, requiring_grad(*op.sample(5)), raise_exception=False
    )
    if order == 2:
        refusal = str(found.pop("test_aot_dispatch_dynamic"))
        assert refusal.startswith(f"{op.name}: derivatives beyond the second")
    assert set(found.values()) == {"SUCCESS"}


PARTS = ("ot_", "sinkhorn_", "sparsemax", "sparse_conv", "depthwise_", "first_")
TRANSPORT = [name for name in OPERANDS if name.startswith(PARTS)]


@pytest.mark.filterwarnings("ignore::curvkern.ConvergenceWarning")
@pytest.mark.parametrize("name", TRANSPORT)
def test_opcheck_of_transport(name: str) -> None:
    """All of it passes, but that operations without derivatives refuse them in words."""
    operation = getattr(torch.ops.curvkern, name).default
    for wanted in (False, True):
        arguments = tree_map_only(
            Tensor,
            lambda t, w=wanted: t.detach().clone().requires_grad_(w and t.is_floating_point()),
            OPERANDS[name],
        )
        found = torch.library.opcheck(operation, arguments, raise_exception=False)
        if wanted and name.startswith("sinkhorn_"):
            refusal = str(found.pop("test_aot_dispatch_dynamic"))
            assert refusal.startswith(f"{name}: the operation has no derivatives")
        assert set(found.values()) == {"SUCCESS"}


@every_operation
def test_gradcheck(op: Elementwise) -> None:
    inputs = requiring_grad(*op.sample(6))
    assert torch.autograd.gradcheck(
        op,
        inputs,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert torch.autograd.gradgradcheck(op, inputs, check_fwd_over_rev=True)


@every_operation
def test_broadcast_derivatives(op: Elementwise) -> None:
    v, x = requiring_grad(op.sample(3, 1)[0], op.sample(4)[1])
    assert torch.autograd.gradcheck(op, (v, x))
    assert torch.autograd.gradgradcheck(op, (v, x))


@every_operation
def test_third_derivative_is_refused(op: Elementwise) -> None:
    v, x = requiring_grad(*op.sample(3))
    (first,) = torch.autograd.grad(op(v, x).sum(), v, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=f"{op.name}: derivatives beyond the second"):
        second.sum().backward()


# Transforms and the compiler -------------------------------------------------------------


def transforms(op: Elementwise) -> dict[str, tuple[Callable[..., Any], Callable[..., Any]]]:
    """Name -> (a function of (v, x) through torch.func, the same from the operations)."""

    function = op.function

    def total(v: Tensor, x: Tensor) -> Tensor:
        return function(v, x).sum()

    def first(v: Tensor, x: Tensor) -> Any:
        return op.operation(1)(v, x)

    def second(v: Tensor, x: Tensor) -> Any:
        vv, vx, xx = (torch.diag(d) for d in op.operation(2)(v, x))
        return (vv, vx), (vx, xx)

    both = (0, 1)
    return {
        "grad": (grad(total, both), first),
        "jvp": (
            lambda v, x: jvp(function, (v, x), (x, v))[1],
            lambda v, x: x * first(v, x)[0] + v * first(v, x)[1],
        ),
        "vmap": (vmap(function), function),
        "vmap of one": (
            vmap(function, (None, 0)),
            lambda v, x: function(
                v.expand(len(x), len(v)), x.unsqueeze(1).expand(len(x), len(v))
            ),
        ),
        "vmap of vmap": (
            vmap(vmap(function, (0, None)), (None, 0)),
            lambda v, x: function(v.unsqueeze(0), x.unsqueeze(1)),
        ),
        "vmap of grad": (vmap(grad(function, both)), first),
        "vmap of hessian": (vmap(hessian(function)), lambda v, x: op.operation(2)(v, x)[0]),
        "hessian": (hessian(total, both), second),
        "jacrev of jacrev": (jacrev(jacrev(total, both), both), second),
        "jacfwd of jacfwd": (jacfwd(jacfwd(total, both), both), second),
        "jacrev of jacfwd": (jacrev(jacfwd(total, both), both), second),
    }


TRANSFORMS = list(transforms(OPERATIONS[0]))


@every_operation
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transform(op: Elementwise, name: str) -> None:
    transformed, expected = transforms(op)[name]
    inputs = op.sample(4)
    assert_close(transformed(*inputs), expected(*inputs), rtol=1e-13, atol=1e-13)


# All rows of a kind share the code that is compiled here, and it takes seconds: one stands for
# all. torch.compile cannot do vmap of hessian, not even of torch.sin.
@pytest.mark.parametrize("op", OPERATIONS[:1], ids=lambda op: op.name)
@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name != "vmap of hessian"])
def test_compiled_transform(op: Elementwise, name: str) -> None:
    transformed, expected = transforms(op)[name]
    inputs = op.sample(4)
    torch.compiler.reset()
    compiled = torch.compile(transformed, fullgraph=True, backend="aot_eager")
    assert_close(compiled(*inputs), expected(*inputs), rtol=1e-13, atol=1e-13)


@every_operation
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(op: Elementwise, dynamic: bool) -> None:
    torch.compiler.reset()
    compiled = torch.compile(op.function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for shape in ((4,), (7,), (2, 3)):
        v, x = requiring_grad(*op.sample(*shape))
        assert_close(compiled(v, x), op(v, x), rtol=0, atol=0)
        gradients = torch.autograd.grad(compiled(v, x).sum(), (v, x))
        assert_close(gradients, op.operation(1)(v, x))
    assert_close(compiled(2.5, x), op(2.5, x), rtol=0, atol=0)


def test_compile_with_inductor() -> None:
    op = OPERATIONS[0]
    function = op.function
    torch.compiler.reset()
    v, x = requiring_grad(*op.sample(4))
    result = torch.compile(
        lambda v, x: 2 * function(v, x) - x.sin() ** 2 - x.cos() ** 2, fullgraph=True
    )(v, x)
    assert_close(result, 2 * op(v, x) - 1)
    assert_close(
        torch.autograd.grad(result.sum(), (v, x)), tuple(2 * d for d in op.operation(1)(v, x))
    )


@every_operation
def test_autocast_keeps_float32(op: Elementwise) -> None:
    v, x = requiring_grad(*op.sample(5, dtype=torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = op(v, x)
    assert result.dtype == torch.float32
    assert_close(result, op(v, x), rtol=0, atol=0)


@every_operation
def test_products_with_the_hessian(op: Elementwise) -> None:
    """By double backward, which starts from gradients of zero that require gradients."""
    inputs, vector = op.sample(4), (torch.rand(4).double(), torch.rand(4).double())
    vv, vx, xx = op.operation(2)(*inputs)
    expected = (vv * vector[0] + vx * vector[1], vx * vector[0] + xx * vector[1])
    for product in (torch.autograd.functional.hvp, torch.autograd.functional.vhp):
        result = product(lambda v, x: op(v, x).sum(), inputs, vector)[1]
        assert_close(result, expected, rtol=1e-13, atol=1e-13)


@every_operation
def test_no_graph_where_none_is_wanted(op: Elementwise) -> None:
    v, x = requiring_grad(*op.sample(5))
    with torch.no_grad():
        assert not op(v, x).requires_grad
    with torch.inference_mode():
        assert op(v, x).is_inference()
    assert not op(v.detach(), x.detach()).requires_grad
    assert op(v, x.detach()).requires_grad


@every_operation
def test_in_place_edit_of_an_input(op: Elementwise) -> None:
    """Noticed where the input itself was saved, and without effect where it was not."""
    v, x = requiring_grad(*op.sample(5))
    edited = x * 1
    result = op(v, edited)
    edited.add_(1)
    if not op.saves_x:
        result.sum().backward()
        assert_close(v.grad, op.operation(1)(v.detach(), x.detach())[0], rtol=0, atol=0)
        return
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


# Refusals -----------------------------------------------------------------------------------


def spoiled(good: Tensor) -> list[Tensor]:
    """The tensor with another dtype, size or rank."""
    others = {torch.int64, torch.bool, torch.complex64, torch.float16, torch.bfloat16}
    bad = [good.to(d) for d in others | {torch.float32, torch.float64} - {good.dtype}]
    bad += [torch.cat([good, good.narrow(d, 0, 1)], d) for d in range(good.dim())]
    bad += [good.narrow(d, 0, 0) for d in range(good.dim())]
    return [*bad, good[None], good[0], good.flatten()[0]]


def damaged(arguments: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """The arguments with one of them spoiled, a list in its first entry or its length."""
    for i, good in enumerate(arguments):
        bad: list[Any] = []
        if isinstance(good, Tensor):
            bad += spoiled(good)
        elif isinstance(good, list) and good and isinstance(good[0], Tensor):
            bad += [[one, *good[1:]] for one in spoiled(good[0])]
            bad += [good[1:], [*good, good[0]]]
        elif isinstance(good, list) and good:
            bad += [[-1, *good[1:]], good[1:], [*good, good[0]]]
        elif type(good) is int:
            bad += [0]
        elif good == "l1":
            bad += ["cosine"]
        for value in bad:
            yield (*arguments[:i], value, *arguments[i + 1 :])


def outcome(operation: Any, arguments: tuple[Any, ...]) -> tuple[type, str] | None:
    """The class and the text of what is raised; None where the call succeeds."""
    try:
        operation(*arguments)
    except Exception as error:
        return type(error), str(error)
    return None


def on_meta(arguments: tuple[Any, ...]) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.to("meta"), arguments)


def test_every_operation_has_operands() -> None:
    names = torch._C._dispatch_get_all_op_names()
    ours = {name.removeprefix("curvkern::") for name in names if name.startswith("curvkern::")}
    assert set(OPERANDS) <= ours
    # Those of ot/_tiles.py are defined when a number of tensors first asks for one, and share
    # their code: some stand for all.
    assert {name for name in ours - set(OPERANDS) if not name.startswith("ot_tiles_")} == set()


@pytest.mark.filterwarnings("ignore::curvkern.ConvergenceWarning")
@pytest.mark.parametrize("name", OPERANDS)
def test_fake_and_meta_tensors_are_refused_as_others_are(name: str) -> None:
    """In the same words, and what the CPU takes they pass."""
    operation = getattr(torch.ops.curvkern, name)
    # Copies: operations that write to their arguments would change those of other tests.
    operands = tree_map_only(Tensor, torch.clone, OPERANDS[name])
    assert outcome(operation, operands) is None
    takes_meta = outcome(operation, on_meta(operands)) is None
    assert takes_meta or name in ("sinkhorn_dense", "sinkhorn_points")  # of unknown sizes
    refused = 0
    for arguments in damaged(operands):
        expected = outcome(operation, arguments)
        with FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True) as mode:
            fakes = tree_map_only(Tensor, mode.from_tensor, arguments)
            assert outcome(operation, fakes) == expected
        if takes_meta:
            assert outcome(operation, on_meta(arguments)) == expected
        if expected is not None:
            kind, text = expected
            assert kind in (TypeError, ValueError), text
            assert re.match(rf"({name}|sinkhorn(_products)?): \w+ (must|has) ", text)
            refused += 1
    assert refused > 6 * sum(isinstance(a, Tensor) for a in operands)


# Machines -----------------------------------------------------------------------------------


@every_operation
@both_dtypes
def test_deterministic(op: Elementwise, dtype: torch.dtype, thread_counts: Any) -> None:
    """The same bits from call to call and whatever the number of threads."""
    v, x = op.sample(50_000, dtype=dtype)
    for order in range(3):
        thread_counts(1)
        first = op.operation(order)(v, x)
        for threads in (1, 2, 3, 7):
            thread_counts(threads)
            again = op.operation(order)(v, x)
            assert_close(again, first, rtol=0, atol=0)


@pytest.mark.parametrize("isa", ["v2", "v3", "v4", "baseline"])
def test_forced_isa(isa: str, run_python: Any, tmp_path: Any) -> None:
    supported = _runtime.build_info()["isas"]
    if isa not in supported:
        pytest.skip(f"this processor runs {', '.join(supported)}, not {isa}")
    inputs = {op.name: op.sample(3000) for op in OPERATIONS}
    torch.save(inputs, tmp_path / "inputs.pt")
    run_python(
        f"""
        import torch
        from curvkern import _ops, _runtime
        assert _runtime.isa() == {isa!r}
        inputs = torch.load({str(tmp_path / "inputs.pt")!r})
        results = {{
            (name, dtype): getattr(torch.ops.curvkern, name)(v.to(dtype), x.to(dtype))
            for name, (v, x) in inputs.items() for dtype in (torch.float64, torch.float32)
        }}
        torch.save(results, {str(tmp_path / "results.pt")!r})
        """,
        environment={"CURVKERN_ISA": isa},
    )
    for (name, dtype), result in torch.load(tmp_path / "results.pt").items():
        v, x = inputs[name]
        bound = 32 * torch.finfo(dtype).eps
        expected = getattr(torch.ops.curvkern, name)(v.to(dtype), x.to(dtype))
        assert_close(result, expected, rtol=bound, atol=bound)


@pytest.mark.cuda
@every_operation
@both_dtypes
@pytest.mark.parametrize("order", [0, 1, 2])
def test_cuda_equals_cpu(op: Elementwise, dtype: torch.dtype, order: int) -> None:
    v, x = op.sample(10_000, dtype=dtype)
    bound = 64 * torch.finfo(dtype).eps
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        runs = [op.operation(order)(v.cuda(), x.cuda()) for _ in range(3)]
    stream.synchronize()
    assert_close(runs[1], runs[0], rtol=0, atol=0)
    assert_close(runs[2], runs[0], rtol=0, atol=0)
    on_host = torch.utils._pytree.tree_map(Tensor.cpu, runs[0])
    assert_close(on_host, op.operation(order)(v, x), rtol=bound, atol=bound)
