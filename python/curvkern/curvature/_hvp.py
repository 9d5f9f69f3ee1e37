"""Products with the Hessian of a loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._tangents import Graph, HookError
from ..optim import _products

MODES = ("auto", "reverse", "forward_over_reverse", "native")
Loss = Tensor | Callable[..., Tensor]


class Hessian:
    """Products with the Hessian of one loss at the parameters' present values."""

    def __init__(self, function: str, loss: Loss, params: Any, mode: str = "auto") -> None:
        self.function = function
        refuse_inference(function)
        self.params = checked_params(function, params)
        self.dtype = self.params[0].dtype
        value = self.value = evaluate(function, loss, self.params)
        check_scalar(function, value)
        self.mode = mode
        self.graph: Graph | None = _products.native_graph(function, value, self.params, mode)
        self.sizes = [p.numel() for p in self.params]
        self.n = sum(self.sizes)
        self.offsets = [sum(self.sizes[:i]) for i in range(len(self.sizes))]
        if self.graph is None:
            self._differentiate()

    def _differentiate(self) -> None:
        """Gradients with a graph."""
        value = self.value
        with torch.enable_grad():
            grads = torch.autograd.grad(
                value, self.params, create_graph=True, allow_unused=True
            ) if value.requires_grad else [None] * len(self.params)  # fmt: skip
        self.grads = [
            torch.zeros_like(p) if g is None else g
            for p, g in zip(self.params, grads, strict=True)
        ]

    def product(self, v: Sequence[Tensor], last: bool = False) -> list[Tensor]:
        if self.graph is not None:
            try:
                return _products.native_products(self.function, self.graph, [v], not last)[1]
            except HookError:
                if self.mode == "native":
                    raise
            self.graph = None
            self._differentiate()
        return _products.products(self.function, self.grads, self.params, [v], keep=True)

    def split(self, flat: Tensor) -> list[Tensor]:
        parts = flat.split(self.sizes)
        return [a.view(p.shape).to(p) for a, p in zip(parts, self.params, strict=True)]

    def flat(self, tensors: Sequence[Tensor]) -> Tensor:
        """In float64."""
        return torch.cat([t.detach().reshape(-1).double() for t in tensors])

    def times(self, flat: Tensor) -> Tensor:
        """H v for a flat float64 v."""
        found = self.flat(self.product(self.split(flat)))
        if not bool(found.isfinite().all()):
            raise ValueError(f"{self.function}: products with the Hessian must be finite")
        return found

    def times_columns(self, V: Tensor) -> Tensor:
        """H V for the columns of V (n, k)."""
        if not V.shape[1]:
            return torch.zeros_like(V)
        return torch.stack([self.times(v) for v in V.T], dim=1)


def refuse_inference(function: str) -> None:
    if torch.is_inference_mode_enabled():
        raise RuntimeError(f"{function}: torch.inference_mode() has no derivatives; leave it")


def listed_tensors(function: str, name: str, tensors: Any) -> list[Tensor]:
    if isinstance(tensors, Tensor):
        return [tensors]
    if not isinstance(tensors, Iterable):
        kind = type(tensors).__name__
        raise TypeError(f"{function}: {name} must be tensors, got {kind}")
    listed = list(tensors)
    for one in listed:
        if not isinstance(one, Tensor):
            kind = type(one).__name__
            raise TypeError(f"{function}: {name} must be tensors, got {kind}")
    return listed


def checked_params(function: str, params: Any) -> list[Tensor]:
    listed = listed_tensors(function, "params", params)
    if not listed:
        raise ValueError(f"{function}: params is empty")
    for i, p in enumerate(listed):
        if not p.is_floating_point():
            raise TypeError(f"{function}: params must be real and floating, got {p.dtype}")
        if not p.requires_grad:
            raise ValueError(f"{function}: params must require grad, number {i} does not")
    return listed


def takes_params(closure: Callable[..., Any]) -> bool:
    """Whether a closure has an argument without a default."""
    try:
        parameters = inspect.signature(closure).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(p.kind in positional and p.default is p.empty for p in parameters)


def evaluate(function: str, loss: Loss, params: list[Tensor]) -> Tensor:
    if isinstance(loss, Tensor):
        return loss
    if not callable(loss):
        raise TypeError(
            f"{function}: loss must be a tensor or a closure, got {type(loss).__name__}"
        )
    with torch.enable_grad():
        value = loss(params) if takes_params(loss) else loss()
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: loss must be a tensor, got {type(value).__name__}")
    return value


def check_scalar(function: str, loss: Tensor) -> None:
    if loss.numel() != 1:
        raise ValueError(f"{function}: loss must be a scalar, got shape {tuple(loss.shape)}")
    if loss.is_complex():
        raise TypeError(f"{function}: loss must be real, got {loss.dtype}")


def checked_vectors(function: str, name: str, v: Any, params: Sequence[Tensor]) -> list[Tensor]:
    listed = listed_tensors(function, name, v)
    if len(listed) != len(params):
        raise ValueError(
            f"{function}: {name} has {len(listed)} tensors but params has {len(params)}"
        )
    for one, p in zip(listed, params, strict=True):
        if one.is_complex() or one.dtype is torch.bool:
            raise TypeError(f"{function}: {name} must be real, got {one.dtype}")
        if one.layout is not torch.strided:
            raise TypeError(f"{function}: {name} must be dense, got layout {one.layout}")
        if one.device != p.device:
            raise ValueError(
                f"{function}: {name} is on {one.device} but its parameter on {p.device}"
            )
        if one.shape != p.shape:
            raise ValueError(
                f"{function}: {name} has shape {tuple(one.shape)} for a parameter of shape "
                f"{tuple(p.shape)}"
            )
    return [one.detach().to(p) for one, p in zip(listed, params, strict=True)]


def hvp(loss_or_closure: Loss, params: Any, v: Any, *, mode: str = "auto") -> Any:
    r"""The product of the Hessian of a loss with a vector.

    Parameters
    ----------
    loss_or_closure
        The loss, a scalar tensor with its graph, which is kept; or a function that computes it,
        of no argument or of the list of parameters.
    params
        A tensor or several, which require grad.
    v
        As many tensors, of the same shapes.
    mode
        "reverse": the gradient's product with v is differentiated once more.
        "forward_over_reverse": the gradient is differentiated along v; takes a function of the
        parameters. "native": tangents go through the graph of the loss itself, forward and
        back, and no second graph is made. What has no rule there is differentiated twice alone;
        hooks that change gradients are refused. "auto" is "native" for float32 and float64 on
        the CPU where every node has a rule and tensors are large enough for it to be quicker,
        or torch has no second derivative, as of fused attention, and there are neither
        backward hooks of parameters, modules or nodes, nor hooks on other tensors that change
        a gradient, nor saved tensors that are packed, as of checkpoints; else "reverse".

        Native products are exact to rounding: ``tests/test_tangents.py`` holds them to double
        backward within 1e-5 in norm in float32, and 1e-10 in float64. Their time is in
        the README's table, their peak memory in ``bench/results/hutchinson_step.json``.

    Returns
    -------
    Tensor or list of Tensor
        As params; zeros where the gradient does not depend on a parameter.

    Raises
    ------
    TypeError, ValueError
        A parameter does not require grad, the loss is no scalar, shapes differ, or there is no
        such mode.
    RuntimeError
        torch cannot differentiate the loss in this mode, as ``mse_loss`` forward over reverse.

    References
    ----------
    .. [1] B. A. Pearlmutter, "Fast Exact Multiplication by the Hessian", Neural Computation 6
       (1994).

    Examples
    --------
    >>> import torch
    >>> from curvkern.curvature import hvp
    >>> p = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> hvp(p[0] ** 2 * p[1], p, torch.tensor([1.0, 0.0]))  # the first column
    tensor([4., 2.])
    >>> hvp(lambda p: p[0][0] ** 2 * p[0][1], [p], [torch.tensor([0.0, 1.0])],
    ...     mode="forward_over_reverse")
    [tensor([2., 0.])]
    """
    if mode not in MODES:
        raise ValueError(f"hvp: mode must be one of {', '.join(MODES)}, got {mode!r}")
    refuse_inference("hvp")
    listed = checked_params("hvp", params)
    vectors = checked_vectors("hvp", "v", v, listed)
    if mode == "forward_over_reverse":
        if isinstance(loss_or_closure, Tensor) or not takes_params(loss_or_closure):
            raise ValueError(
                "hvp: mode 'forward_over_reverse' takes a function of the list of parameters"
            )
        result = _forward_over_reverse(loss_or_closure, listed, vectors)
    else:
        result = Hessian("hvp", loss_or_closure, listed, mode).product(vectors, last=True)
    return result[0] if isinstance(params, Tensor) else result


def _forward_over_reverse(
    closure: Callable[..., Tensor], params: list[Tensor], v: list[Tensor]
) -> list[Tensor]:
    def scalar(tensors: list[Tensor]) -> Tensor:
        loss = closure(tensors)
        check_scalar("hvp", loss)
        return loss.reshape(())

    at = [p.detach() for p in params]
    try:
        tangents: Any = torch.func.jvp(torch.func.grad(scalar), (at,), (v,))[1]
    except RuntimeError as error:
        # The backward of torch's mse_loss has no tangent where its target has none.
        if "ZeroTensor" not in str(error):
            raise
        raise RuntimeError(
            "hvp: torch has no forward-over-reverse derivative of this loss; use mode 'reverse'"
        ) from error
    return [t.detach() for t in tangents]
