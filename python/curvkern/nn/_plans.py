"""Evaluation without the checks that earlier calls have passed.

The kernels of a small layer take a few microseconds, and the checks of a call many times that.
A module keeps, by shape and dtype of the input, what its checks and look-ups came to, for as
long as its tensors are the same, unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from .. import _autograd, _runtime

#: Shapes that are kept.
CAPACITY = 32

Call = Callable[..., Tensor]


def _modes() -> bool:
    """Whether something other than the kernels wants to see a call.

    Names are private to torch: where one is missing, yes.
    """
    try:
        return bool(
            torch._C._len_torch_dispatch_stack()
            or torch._C._len_torch_function_stack()
            or torch._C._is_tracing()
            or torch.is_autocast_enabled("cpu")
            or _autograd._transform_active()
        )
    except AttributeError:
        return True


def plain(tensor: Any) -> bool:
    """Whether it is an ordinary contiguous tensor of the CPU, outside of transforms."""
    return (
        (type(tensor) is Tensor or type(tensor) is Parameter)
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and not tensor.is_neg()
        and not torch._C._functorch.is_legacy_batchedtensor(tensor)
    )


def threads() -> int:
    """How many the kernels use; 0 in a forked child that has yet to be told: one."""
    count = torch.get_num_threads()
    return 0 if count > 1 and _runtime.cpu_module().in_forked_child() else count


class Plans:
    """What calls with the same parameters came to."""

    def __init__(self) -> None:
        #: what the parameters are, the parameters, and the calls: replaced as a whole
        self._state: tuple[Any, Any, dict[Any, Call]] = None, None, {}

    def __reduce__(self) -> Any:
        return Plans, ()  # copies of a module begin anew

    def find(
        self,
        tensors: tuple[Tensor | None, ...],
        inputs: tuple[Tensor | None, ...],
        settings: Any,
        make: Callable[[], Call | None],
    ) -> Call | None:
        """A call that needs no checks, or None.

        ``tensors`` are the module's, and ``inputs`` those of the call, the image first.
        ``make`` gives a call, or None where there is none for these settings.
        """
        if _modes() or _runtime.backend() == "reference":
            return None
        shapes: list[Any] = []
        for t in inputs:
            if t is None and shapes:
                shapes.append(None)
            elif t is not None and plain(t):
                shapes += t.shape, t.dtype
            else:
                return None
        if torch.is_grad_enabled():
            for t in (*inputs, *tensors):
                if t is not None and t.requires_grad:
                    return None
        count = threads()
        try:
            tag = tuple(
                None if t is None else (id(t), t.data_ptr(), t._version) for t in tensors
            )
        except RuntimeError:  # made in inference mode: there is no version
            return None
        if not count:
            return None
        known, _, calls = self._state
        if tag != known:
            if not all(t is None or (plain(t) and t.numel()) for t in tensors):
                return None
            # Held, so that neither an id nor an address can become another tensor's.
            held = tuple((t, None if t is None else t.detach()) for t in tensors)
            calls = {}
            self._state = tag, held, calls
        key = (*shapes, count, settings)
        found = calls.get(key)
        if found is None:
            found = make()
            if found is not None:
                if len(calls) >= CAPACITY:
                    calls.clear()
                calls[key] = found
        return found
