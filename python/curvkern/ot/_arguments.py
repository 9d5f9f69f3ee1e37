"""From what a user passes to the tensors of a batch of problems."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _runtime
from .._arguments import _as_tensor, check_layout, memory_error, to_float
from .._autograd import derivative_wanted

METHODS = ("auto", "sinkhorn", "newton")

#: How far two masses may be apart, relatively, in weights of this dtype.
MASS_TOLERANCE = {
    torch.float64: 1e-8,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 3e-2,
}
DTYPES = tuple(MASS_TOLERANCE)


class Arguments:
    """The arguments of one call: their common dtype, device, batch and kind.

    Tensors and arrays are added by `tensor` and `parameter`; once all are there, `batched`
    gives them the leading batch dimension. What is plain NumPy gives NumPy results.
    """

    def __init__(self, function: str, main: str, value: Any) -> None:
        _runtime.spare_forked_child()
        self.function = function
        self.main = main
        self.numpy = not isinstance(value, Tensor)
        self.dtype: torch.dtype | None = None
        self.device: torch.device | None = None
        self.narrowest = torch.float64
        self.batch: tuple[str, int] | None = None
        self.narrow = False

    # What comes in -----------------------------------------------------------------------

    def tensor(self, name: str, value: Any, dims: tuple[int, ...] | None, shape: str) -> Tensor:
        """A floating tensor with one of these numbers of dimensions, the last one batched."""
        tensor = self._floating(name, value)
        if dims is None:
            dims = (tensor.dim(),) if tensor.dim() else ()
        if tensor.dim() not in dims:
            raise ValueError(
                f"{self.function}: {name} must have shape {shape}, got {tuple(tensor.shape)}"
            )
        if tensor.numel() == 0:
            raise ValueError(
                f"{self.function}: {name} is empty, it has shape {tuple(tensor.shape)}"
            )
        if tensor.dim() == dims[-1] and len(dims) > 1:
            self._join_batch(name, tensor)
        self._join_dtype(tensor)
        return tensor

    def parameter(self, name: str, value: Any) -> Tensor | float:
        """A number, or a tensor of one number or of one for each problem."""
        if isinstance(value, (Tensor, np.ndarray)):
            tensor = self._floating(name, value)
            if tensor.dim() > 1:
                raise ValueError(
                    f"{self.function}: {name} must be a number or have shape (B,), got "
                    f"{tuple(tensor.shape)}"
                )
            if tensor.dim() == 1:
                self._join_batch(name, tensor)
            return tensor
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
            raise TypeError(
                f"{self.function}: {name} must be a number or a tensor, got "
                f"{type(value).__name__}"
            )
        return to_float(self.function, name, value)

    def pair(self, name: str, value: Any) -> tuple[Tensor | float, Tensor | float]:
        """None (two infinities), one parameter for both sides, or two of them."""
        if value is None:
            return torch.inf, torch.inf
        if isinstance(value, (tuple, list)):
            if len(value) != 2:
                raise ValueError(
                    f"{self.function}: {name} must be a number or a pair, got {len(value)} of "
                    "them"
                )
            first, second = (torch.inf if v is None else v for v in value)
            return self.parameter(name, first), self.parameter(name, second)
        both = self.parameter(name, value)
        return both, both

    def potential(self, name: str, value: Any) -> Tensor:
        """A potential to start from, (n,) or (B, n)."""
        tensor = self._floating(f"{name} of init", value)
        if tensor.dim() not in (1, 2):
            raise ValueError(
                f"{self.function}: {name} of init must have 1 or 2 dimensions, got shape "
                f"{tuple(tensor.shape)}"
            )
        return tensor

    def _floating(self, name: str, value: Any) -> Tensor:
        if isinstance(value, Tensor):
            if self.numpy:
                self._refuse_mixture(name, value, self.main, "not a tensor")
            check_layout(self.function, name, value)
            tensor = value
            if self.device is None and tensor.dim() > 0:
                self.device, self._leader = tensor.device, name
            elif self.device is not None and tensor.device != self.device and tensor.dim() > 0:
                raise ValueError(
                    f"{self.function}: {self._leader} is on {self.device} but {name} is on "
                    f"{tensor.device}"
                )
        else:
            if not isinstance(value, np.ndarray):
                raise TypeError(
                    f"{self.function}: {name} must be a tensor or a NumPy array, got "
                    f"{type(value).__name__}"
                )
            if not self.numpy:
                self._refuse_mixture(name, value, self.main, "a tensor")
            if value.dtype.kind != "f":
                raise TypeError(
                    f"{self.function}: {name} must be floating, got dtype {value.dtype}"
                )
            tensor = _as_tensor(self.function, name, value)
        if tensor.dtype not in DTYPES:
            raise TypeError(
                f"{self.function}: {name} must be float64, float32, float16 or bfloat16, got "
                f"{tensor.dtype}"
            )
        return tensor

    def _refuse_mixture(self, name: str, value: Any, main: str, kind: str) -> None:
        raise TypeError(
            f"{self.function}: {name} is a {type(value).__name__} but {main} is {kind}; "
            "pass all arrays in one kind, see torch.as_tensor"
        )

    def _join_dtype(self, tensor: Tensor) -> None:
        dtype = tensor.dtype
        self.dtype = dtype if self.dtype is None else torch.promote_types(self.dtype, dtype)
        if torch.finfo(dtype).eps > torch.finfo(self.narrowest).eps:
            self.narrowest = dtype

    def _join_batch(self, name: str, tensor: Tensor) -> None:
        size = tensor.shape[0]
        if self.batch is None:
            self.batch = name, size
        elif self.batch[1] != size:
            raise ValueError(
                f"{self.function}: {self.batch[0]} has a batch of {self.batch[1]} but {name} "
                f"one of {size}"
            )

    # What goes on ------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Problems in the batch."""
        return 1 if self.batch is None else self.batch[1]

    @property
    def mass_tolerance(self) -> float:
        return MASS_TOLERANCE[self.narrowest]

    def weights(self, name: str, value: Any, n: int, of: str) -> Tensor | None:
        """Weights (n,) or (B, n), or None for equal ones."""
        if value is None:
            return None
        tensor = self.tensor(name, value, (1, 2), "(n,) or (B, n)")
        if tensor.shape[-1] != n:
            raise ValueError(f"{self.function}: {of} but {name} has length {tensor.shape[-1]}")
        return tensor

    def batched_weights(self, weights: Tensor | None, n: int) -> Tensor:
        if weights is None:
            return torch.full(
                (self.size, n), 1 / n, dtype=torch.float64, device=self.device or "cpu"
            )
        return self.batched(weights, 1).to(torch.float64)

    def batched(self, tensor: Tensor, dims: int) -> Tensor:
        """The tensor, which has so many dimensions without the batch, with it."""
        return tensor if tensor.dim() > dims else tensor.expand(self.size, *tensor.shape)

    def batched_parameter(self, value: Tensor | float) -> Tensor:
        device = self.device or "cpu"
        if not isinstance(value, Tensor):
            return torch.full((self.size,), value, dtype=torch.float64, device=device)
        value = value.to(torch.float64)
        if value.dim() == 0:
            return value.to(device).expand(self.size)
        return value

    def points(self, *clouds: Tensor) -> tuple[Tensor, ...]:
        """The points in float64, once for all.

        All gradients in them are summed before they are rounded: of float32 parts that cancel,
        as those of the cost do to 1 / eps, little would be left.
        """
        self.narrow = all(cloud.dtype is not torch.float64 for cloud in clouds)
        return tuple(widened(self.function, cloud) for cloud in clouds)

    def costs(self, C: Tensor) -> Tensor:
        """The same of costs, where a derivative is wanted: else as they are, halves in float32.

        What is traced or transformed is taken for wanted.
        """
        if C.dtype is torch.float64:
            return C
        if torch.compiler.is_compiling() or derivative_wanted(C):
            self.narrow = True
            return widened(self.function, C)
        return C.float()


def widened(function: str, tensor: Tensor) -> Tensor:
    """In float64: what was expanded takes memory there."""
    try:
        return tensor.to(torch.float64)
    except RuntimeError as error:
        raise memory_error(function, tensor.shape, error) from None


def check_method(function: str, method: Any) -> str:
    if not isinstance(method, str):
        raise TypeError(f"{function}: method must be a string, got {type(method).__name__}")
    return check_choice(function, "method", method, METHODS)


def check_choice(function: str, name: str, value: Any, choices: Sequence[str]) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{function}: {name} must be a string, got {type(value).__name__}")
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"{function}: {name} must be one of {listed}; got {value!r}")
    return value


def check_count(function: str, name: str, value: Any) -> int:
    """An integer of at least one."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{function}: {name} must be an integer, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{function}: {name} must be at least 1, got {value}")
    return min(int(value), 2**62)


def check_number(
    function: str, name: str, value: Any, *, positive: bool, finite: bool = True
) -> float:
    """A real number above zero, or not below it."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{function}: {name} must be a number, got {type(value).__name__}")
    number = to_float(function, name, value)
    good = number > 0 if positive else number >= 0
    if not good or (finite and number == float("inf")):
        kind = "positive" if positive else "non-negative"
        raise ValueError(
            f"{function}: {name} must be {kind}{' and finite' if finite else ''}, got {number}"
        )
    return number
