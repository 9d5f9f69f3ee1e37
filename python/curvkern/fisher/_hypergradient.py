"""Gradients of a validation loss in hyperparameters, through the optimum of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def hypergradient(
    val_loss: Tensor,
    train_loss: Tensor,
    weights: Tensor | Sequence[Tensor],
    hyperparameters: Tensor | Sequence[Tensor],
    *,
    ihvp: Any,
) -> tuple[Tensor, ...]:
    r"""Derivative of the validation loss at the trained weights, by implicit differentiation.

    Where the weights w minimise the training loss for the hyperparameters h,

    .. math::
        \frac{d L_{val}}{d h} = \frac{\partial L_{val}}{\partial h}
        - \frac{\partial L_{val}}{\partial w} H^{-1}
          \frac{\partial^2 L_{train}}{\partial w\, \partial h}, \qquad
        H = \frac{\partial^2 L_{train}}{\partial w^2} .

    Any symmetric approximation of :math:`H^{-1}` serves; the mixed derivative is exact, one
    backward pass through the gradient.

    Parameters
    ----------
    val_loss, train_loss
        0-d tensors, functions of the weights (and hyperparameters) whose graphs are alive; they
        are kept alive.
    weights
        The d trained numbers, a tensor or a sequence of tensors, in the order of the columns
        that ``ihvp`` has.
    hyperparameters
        What to differentiate in: leaves or other tensors in the graph that require gradients.
    ihvp
        A function from (d,) to (d,), or an object with such a method ``ihvp``, like
        :class:`SlidingWindowFisher`.

    Returns
    -------
    tuple of Tensor
        One of the shape of each hyperparameter; zero where the losses do not depend on it.

    Raises
    ------
    TypeError
        A loss, weight or hyperparameter is no tensor, or ``ihvp`` cannot be called.
    ValueError
        A loss is not a scalar, a weight or hyperparameter does not require gradients, what
        ``ihvp`` returns has another shape or is not finite.

    References
    ----------
    .. [1] J. Lorraine, P. Vicol, D. Duvenaud, "Optimizing Millions of Hyperparameters by
       Implicit Differentiation", AISTATS 2020, theorem 1.

    Examples
    --------
    Ridge regression of one weight, w = 6 / (4 + h):

    >>> import torch
    >>> from curvkern.fisher import hypergradient
    >>> h = torch.tensor(2.0, requires_grad=True)
    >>> w = torch.tensor([1.0], requires_grad=True)
    >>> train = ((2 * w - 3) ** 2).sum() / 2 + h * (w**2).sum() / 2
    >>> val = ((w - 1.5) ** 2).sum() / 2
    >>> hypergradient(val, train, w, h, ihvp=lambda v: v / (4 + h.detach()))
    (tensor(0.0833),)
    """
    losses = {"val_loss": val_loss, "train_loss": train_loss}
    for name, loss in losses.items():
        if not isinstance(loss, Tensor):
            raise TypeError(
                f"hypergradient: {name} must be a tensor, got {type(loss).__name__}"
            )
        if loss.numel() != 1:
            raise ValueError(
                f"hypergradient: {name} must be a scalar, got shape {tuple(loss.shape)}"
            )
    w = _tensors("weights", weights)
    h = _tensors("hyperparameters", hyperparameters)
    solve = _solver(ihvp)

    with torch.enable_grad():
        slopes = _grad(val_loss, (*w, *h))
        v = torch.cat([g.reshape(-1) for g in slopes[: len(w)]])
        x = solve(v)
        if not isinstance(x, Tensor) or x.shape != v.shape:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"hypergradient: ihvp must return shape {tuple(v.shape)}, got {got}"
            )
        if not torch.isfinite(x).all():
            raise ValueError("hypergradient: what ihvp returns must be finite, got nan or inf")
        gradient = _grad(train_loss, w, create_graph=True)
        parts = x.detach().split([t.numel() for t in w])
        terms = [
            (g * p.view_as(g).to(g)).sum()
            for g, p in zip(gradient, parts, strict=True)
            if g.requires_grad
        ]
        mixed = _grad(sum(terms[1:], terms[0]), h) if terms else tuple(map(torch.zeros_like, h))
    return tuple(
        direct.detach() - m.detach() for direct, m in zip(slopes[len(w) :], mixed, strict=True)
    )


def _grad(
    y: Tensor, inputs: Sequence[Tensor], create_graph: bool = False
) -> tuple[Tensor, ...]:
    """Gradients, zeros where there are none, also of what depends on no input at all."""
    if not y.requires_grad:
        return tuple(torch.zeros_like(t) for t in inputs)
    found = torch.autograd.grad(
        y.sum(), inputs, create_graph=create_graph, retain_graph=True, allow_unused=True
    )
    return tuple(
        torch.zeros_like(t) if g is None else g for g, t in zip(found, inputs, strict=True)
    )


def _tensors(name: str, value: Any) -> tuple[Tensor, ...]:
    if not isinstance(value, Iterable):
        raise TypeError(
            f"hypergradient: {name} must be a tensor or a sequence of them, "
            f"got {type(value).__name__}"
        )
    tensors = (value,) if isinstance(value, Tensor) else tuple(value)
    if not tensors:
        raise ValueError(f"hypergradient: {name} is empty")
    for t in tensors:
        if not isinstance(t, Tensor):
            raise TypeError(f"hypergradient: {name} must be tensors, got {type(t).__name__}")
        if not t.requires_grad:
            raise ValueError(
                f"hypergradient: {name} must require gradients; one of shape "
                f"{tuple(t.shape)} does not"
            )
    return tensors


def _solver(ihvp: Any) -> Callable[[Tensor], Any]:
    solve = getattr(ihvp, "ihvp", ihvp)
    if not callable(solve):
        raise TypeError(
            "hypergradient: ihvp must be a function or have a method ihvp, "
            f"got {type(ihvp).__name__}"
        )
    return solve
