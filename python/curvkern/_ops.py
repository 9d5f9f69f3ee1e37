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

from . import _runtime
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
        return results(allocate(v))

    returned = "Tensor" if order == 0 else f"({', '.join(f'Tensor {o}' for o in outputs)})"
    define(f"{name}(Tensor v, Tensor x) -> {returned}", cpu=cpu, cuda=cuda, fake=fake)


for _function in BESSEL:
    for _order in range(len(DERIVATIVES)):
        _define_elementwise(_function, _order)
