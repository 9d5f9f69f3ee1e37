"""Registration of the compiled operations with ``torch.library``.

Importing this module defines ``torch.ops.curvkern.*``; derivatives are the business of
:mod:`curvkern._autograd`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import _operands, _runtime
from ._arguments import memory_error

library = torch.library.Library("curvkern", "DEF")

#: The elementwise functions of an order v and an argument x.
BESSEL = (
    "log_iv",
    "log_kv",
    "log_ive",
    "log_kve",
    "iv_ratio",
    "kv_ratio",
    "log_hyp0f1",
    "matern",
)

#: Name suffix and outputs of the operation that gives all derivatives of one order.
DERIVATIVES = (("", ("out",)), ("_grad", ("dv", "dx")), ("_hess", ("dvv", "dvx", "dxx")))


def define(
    schema: str,
    *,
    cpu: Callable[..., Any],
    cuda: Callable[..., Any],
    fake: Callable[..., Any],
) -> None:
    """Define ``torch.ops.curvkern.<name>`` from its schema and its three implementations."""
    name = schema.partition("(")[0]
    library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(name, cpu, "CPU")
    library.impl(name, cuda, "CUDA")
    torch.library.register_fake(f"curvkern::{name}", fake, lib=library)


def _contiguous(tensor: Tensor) -> Tensor:
    """``tensor.contiguous()``, also in a forked child, where torch's parallel copy hangs."""
    if tensor.is_contiguous() or not _runtime.cpu_module().in_forked_child():
        return tensor.contiguous()
    return torch.from_numpy(np.ascontiguousarray(tensor.detach().numpy()))


def _define_elementwise(function: str, order: int) -> None:
    suffix, outputs = DERIVATIVES[order]
    name = function + suffix

    def allocate(v: Tensor) -> list[Tensor]:
        return [torch.empty_like(v, memory_format=torch.contiguous_format) for _ in outputs]

    def results(out: list[Tensor]) -> Any:
        return out[0] if order == 0 else tuple(out)

    def cpu(v: Tensor, x: Tensor) -> Any:
        # torch hands the setting of torch.set_num_threads to a new thread when asked for it.
        torch.get_num_threads()
        try:
            v, x = _contiguous(v), _contiguous(x)
            out = allocate(v)
        except RuntimeError as error:
            raise memory_error(name, v.shape, error) from None
        getattr(_runtime.cpu_module(), name)(v, x, *out)
        return results(out)

    def cuda(v: Tensor, x: Tensor) -> Any:
        v, x = v.contiguous(), x.contiguous()
        out = allocate(v)
        stream = torch.cuda.current_stream(v.device).cuda_stream
        getattr(_runtime.cuda_module(), name)(v, x, *out, stream)
        return results(out)

    def fake(v: Tensor, x: Tensor) -> Any:
        _operands.alike(name, "v", v, "x", x)
        return results(allocate(v))

    returned = "Tensor" if order == 0 else f"({', '.join(f'Tensor {o}' for o in outputs)})"
    define(f"{name}(Tensor v, Tensor x) -> {returned}", cpu=cpu, cuda=cuda, fake=fake)


for _function in BESSEL:
    for _order in range(len(DERIVATIVES)):
        _define_elementwise(_function, _order)


def _project_out(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """p of the shape of z, and a float64 number for each row, twice."""
    rows = z.new_empty(z.shape[:-1], dtype=torch.float64)
    return (
        torch.empty_like(z, memory_format=torch.contiguous_format),
        rows,
        torch.empty_like(rows),
    )


def _define_sparsemax() -> None:
    def cpu(z: Tensor, mass: Tensor | None, k: int) -> Any:
        torch.get_num_threads()  # as in _define_elementwise
        try:
            z = _contiguous(z)
            out = _project_out(z)
            mass = torch.ones_like(out[1]) if mass is None else _contiguous(mass)
        except RuntimeError as error:
            raise memory_error("sparsemax", z.shape, error) from None
        _runtime.cpu_module().sparsemax(z, mass, k, *out)
        return out

    def cuda(z: Tensor, mass: Tensor | None, k: int) -> Any:
        z = z.contiguous()
        out = _project_out(z)
        mass = torch.ones_like(out[1]) if mass is None else mass.contiguous()
        stream = torch.cuda.current_stream(z.device).cuda_stream
        _runtime.cuda_module().sparsemax(z, mass, k, *out, stream)
        return out

    def fake(z: Tensor, mass: Tensor | None, k: int) -> Any:
        out = _project_out(z)
        mass = torch.ones_like(out[1]) if mass is None else mass
        _operands.floating("sparsemax", "z", z)
        _operands.floating("sparsemax", "mass", mass)
        _operands.rows("sparsemax", "z", z)
        _operands.float64("sparsemax", "mass", mass)
        _operands.same_shape("sparsemax", "tau", out[1], "mass", mass)
        _operands.at_least("sparsemax", "k", k, 1)
        return out

    schema = (
        "sparsemax(Tensor z, Tensor? mass, int k) -> (Tensor p, Tensor tau, Tensor support)"
    )
    define(schema, cpu=cpu, cuda=cuda, fake=fake)


def _define_sparsemax_jacobian() -> None:
    def allocate(p: Tensor) -> Tensor:
        return torch.empty_like(p, memory_format=torch.contiguous_format)

    def cpu(p: Tensor, grad: Tensor) -> Tensor:
        torch.get_num_threads()
        try:
            p, grad = _contiguous(p), _contiguous(grad)
            out = allocate(p)
        except RuntimeError as error:
            raise memory_error("sparsemax_jacobian", p.shape, error) from None
        _runtime.cpu_module().sparsemax_jacobian(p, grad, out)
        return out

    def cuda(p: Tensor, grad: Tensor) -> Tensor:
        p, grad = p.contiguous(), grad.contiguous()
        out = allocate(p)
        stream = torch.cuda.current_stream(p.device).cuda_stream
        _runtime.cuda_module().sparsemax_jacobian(p, grad, out, stream)
        return out

    def fake(p: Tensor, grad: Tensor) -> Tensor:
        _operands.floating("sparsemax_jacobian", "p", p)
        _operands.floating("sparsemax_jacobian", "grad", grad)
        _operands.rows("sparsemax_jacobian", "p", p)
        _operands.alike("sparsemax_jacobian", "p", p, "grad", grad)
        return allocate(p)

    schema = "sparsemax_jacobian(Tensor p, Tensor grad) -> Tensor"
    define(schema, cpu=cpu, cuda=cuda, fake=fake)


_define_sparsemax()
_define_sparsemax_jacobian()
