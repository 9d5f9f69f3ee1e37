"""The diagonal of the Fisher information, and what is done with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _hutchinson as ops
from ..fisher import _checks
from ..reference import hutchinson as reference
from ._hvp import checked_params, listed_tensors, refuse_inference
from ._probing import check_choice

MODES = ("empirical", "sampled")


def fisher_diagonal(
    loss_fn: Callable[[Any], Tensor],
    params: Any,
    batches: Iterable[Any],
    *,
    mode: str = "empirical",
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    r"""The diagonal of the Fisher information, :math:`F = \frac1n \sum_i g_i^2`.

    Parameters
    ----------
    loss_fn
        Of a batch. "empirical": the losses of its examples, (n,), or of one example, a scalar.
        "sampled": logits (n, classes), for which labels are drawn from the model, as the
        Fisher's definition has it.
    params
        A tensor or several, which require grad.
    batches
        What ``loss_fn`` is called with, one after the other.
    mode
        "empirical" or "sampled".
    generator
        Where labels are drawn from.

    Returns
    -------
    list of Tensor
        As params, float32 of halves. The gradient of each example takes a backward pass;
        memory is that of one gradient and of the result.

    Raises
    ------
    TypeError, ValueError
        For parameters that do not require grad, losses or logits of another shape, gradients
        that are not finite, no example at all.

    Examples
    --------
    >>> import torch
    >>> from curvkern.curvature import fisher_diagonal
    >>> w = torch.zeros(2, requires_grad=True)
    >>> X = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    >>> fisher_diagonal(lambda x: x @ w, w, [X])
    [tensor([5., 2.])]
    """
    function = "fisher_diagonal"
    check_choice(function, "mode", mode, MODES)
    refuse_inference(function)
    if not isinstance(batches, Iterable):
        raise TypeError(f"{function}: batches must be iterable, got {type(batches).__name__}")
    listed = checked_params(function, params)
    mean = [
        torch.zeros(p.shape, dtype=ops.state_dtype(p.dtype), device=p.device) for p in listed
    ]
    native = all(map(ops.is_native, listed))
    add = torch.ops.curvkern.hutchinson_accumulate if native else reference.accumulate
    count = 0
    for batch in batches:
        with torch.enable_grad():
            found = loss_fn(batch)
            if not isinstance(found, Tensor):
                raise TypeError(
                    f"{function}: loss_fn must return a tensor, got {type(found).__name__}"
                )
            losses = _losses(found) if mode == "empirical" else _sampled(found, generator)
            each = losses.unbind()
        if each and not losses.requires_grad:
            raise ValueError(f"{function}: loss_fn must depend on params")
        for i, loss in enumerate(each):
            last = i + 1 == len(each)
            grads = torch.autograd.grad(loss, listed, retain_graph=not last, allow_unused=True)
            g = [
                torch.zeros_like(p) if one is None else one.detach()
                for p, one in zip(listed, grads, strict=True)
            ]
            count += 1
            with torch.no_grad():
                add(mean, [], g, g, [0] * len(g), 0, 0, 0, count)  # g times g
    if not count:
        raise ValueError(f"{function}: batches has no example")
    if not ops.is_finite(mean):
        raise ValueError(f"{function}: squared gradients must be finite")
    return mean


def _losses(found: Tensor) -> Tensor:
    if found.dim() > 1:
        raise ValueError(
            f"fisher_diagonal: losses must have shape (n,) or (), got {tuple(found.shape)}"
        )
    return found.reshape(-1)


def _sampled(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    if logits.dim() != 2:
        raise ValueError(
            f"fisher_diagonal: logits must have shape (n, classes), got {tuple(logits.shape)}"
        )
    with torch.no_grad():
        y = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return torch.nn.functional.cross_entropy(logits, y, reduction="none")


def merge_fisher(
    models: Sequence[Any],
    fishers: Sequence[Sequence[Tensor]],
    weights: Sequence[float] | None = None,
) -> list[Tensor]:
    r"""Parameters :math:`\sum_k w_k F_k \theta_k / \sum_k w_k F_k` [1]_.

    Parameters
    ----------
    models
        Modules or lists of their parameters.
    fishers
        Of each, the diagonal of its Fisher information in the order of parameters.
    weights
        Of the models, not negative; by default equal.

    Returns
    -------
    list of Tensor
        Where no Fisher says anything, the mean by weights alone.

    Raises
    ------
    TypeError, ValueError
        For numbers of models, Fishers or weights that differ, shapes that do, or a Fisher that
        is negative or not finite.

    References
    ----------
    .. [1] M. Matena, C. Raffel, "Merging Models with Fisher-Weighted Averaging", NeurIPS 2022.

    Examples
    --------
    >>> import torch
    >>> from curvkern.curvature import merge_fisher
    >>> one, two = [torch.tensor([0.0, 0.0])], [torch.tensor([1.0, 1.0])]
    >>> merge_fisher([one, two], [[torch.tensor([1.0, 0.0])], [torch.tensor([3.0, 0.0])]])
    [tensor([0.7500, 0.5000])]
    """
    function = "merge_fisher"
    thetas = [_listed(function, "models", model) for model in models]
    weights = [1.0] * len(thetas) if weights is None else [float(w) for w in weights]
    if not thetas or not len(thetas) == len(fishers) == len(weights):
        raise ValueError(
            f"merge_fisher: got {len(thetas)} models, {len(fishers)} fishers and "
            f"{len(weights)} weights"
        )
    total_weight = sum(weights)
    if min(weights) < 0 or not 0 < total_weight < float("inf"):
        raise ValueError("merge_fisher: weights must not be negative and have a finite sum > 0")
    listed = [_checked(function, "fishers", fisher, thetas[0]) for fisher in fishers]
    for theta in thetas:
        _check_like(function, "models", theta, thetas[0])
        for one in theta:
            if not one.is_floating_point():
                raise TypeError(
                    f"{function}: models must be real and floating, got {one.dtype}"
                )
    merged = []
    for i, first in enumerate(thetas[0]):
        # Of the largest, so that no sum overflows.
        largest = torch.stack([f[i].double() for f in listed]).amax(0).clamp(min=1e-300)
        shares = [
            w / total_weight * (f[i].double() / largest)
            for w, f in zip(weights, listed, strict=True)
        ]
        values = [theta[i].detach().double() for theta in thetas]
        total = sum(shares)
        weighted = sum(s * x for s, x in zip(shares, values, strict=True))
        plain = sum(w * x for w, x in zip(weights, values, strict=True)) / total_weight
        safe = torch.where(torch.as_tensor(total) > 0, total, 1.0)
        merged.append(torch.where(torch.as_tensor(total) > 0, weighted / safe, plain).to(first))
    return merged


def fish_mask(fisher: Sequence[Tensor], k: int | float) -> list[Tensor]:
    """Masks of the parameters that matter most: the k largest entries of the Fisher [1]_.

    Parameters
    ----------
    fisher
        The diagonal of the Fisher information.
    k
        How many entries, or in (0, 1) which share of them.

    Returns
    -------
    list of Tensor
        bool, True for those that are trained.

    Raises
    ------
    TypeError, ValueError
        For a k that is neither, or a Fisher that is negative or not finite.

    References
    ----------
    .. [1] Y.-L. Sung, V. Nair, C. Raffel, "Training Neural Networks with Fixed Sparse Masks",
       NeurIPS 2021.

    Examples
    --------
    >>> import torch
    >>> from curvkern.curvature import fish_mask
    >>> fish_mask([torch.tensor([3.0, 1.0]), torch.tensor([2.0])], 2)
    [tensor([ True, False]), tensor([True])]
    """
    fisher = _checked("fish_mask", "fisher", fisher)
    if not fisher:
        raise ValueError("fish_mask: fisher is empty")
    flat = torch.cat([f.detach().reshape(-1) for f in fisher])
    if isinstance(k, float):
        if not 0 < k < 1:
            raise ValueError(f"fish_mask: k must be a count or in (0, 1), got {k}")
        k = max(1, round(k * flat.numel()))
    k = _checks.count("fish_mask", "k", k, 0)
    if k > flat.numel():
        raise ValueError(f"fish_mask: k must be at most {flat.numel()}, got {k}")
    mask = torch.zeros(flat.shape, dtype=torch.bool, device=flat.device)
    mask[flat.argsort(descending=True, stable=True)[:k]] = True
    parts = mask.split([f.numel() for f in fisher])
    return [part.view(f.shape) for part, f in zip(parts, fisher, strict=True)]


@torch.no_grad()
def synaptic_dampening_(
    model: Any,
    fisher_all: Sequence[Tensor],
    fisher_forget: Sequence[Tensor],
    alpha: float = 10.0,
    dampening: float = 1.0,
) -> Any:
    r"""Forget some data, in place, by dampening the parameters that matter to it alone [1]_.

    Where :math:`F_f > \alpha F`, :math:`\theta \leftarrow \min(\lambda F / F_f, 1)\, \theta`.

    Parameters
    ----------
    model
        A module or a list of parameters.
    fisher_all, fisher_forget
        F of all data and of those to forget.
    alpha, dampening
        :math:`\alpha` and :math:`\lambda`, positive.

    Returns
    -------
    Any
        The model.

    Raises
    ------
    TypeError, ValueError
        For shapes that differ, an alpha or dampening that is not positive, or a Fisher that is
        negative or not finite; the model is unchanged.

    References
    ----------
    .. [1] J. Foster, S. Schoepf, A. Brintrup, "Fast Machine Unlearning without Retraining
       through Selective Synaptic Dampening", AAAI 2024.

    Examples
    --------
    >>> import torch
    >>> from curvkern.curvature import synaptic_dampening_
    >>> F, forget = torch.tensor([1.0, 1.0]), torch.tensor([5.0, 20.0])
    >>> synaptic_dampening_([torch.ones(2)], [F], [forget])
    [tensor([1.0000, 0.0500])]
    """
    function = "synaptic_dampening_"
    alpha = _checks.positive(function, "alpha", alpha)
    dampening = _checks.positive(function, "dampening", dampening)
    listed = _listed(function, "model", model)
    fisher_all = _checked(function, "fisher_all", fisher_all, listed)
    fisher_forget = _checked(function, "fisher_forget", fisher_forget, listed)
    for p in listed:
        if not p.is_floating_point():
            raise TypeError(f"{function}: model must be real and floating, got {p.dtype}")
    for p, every, forget in zip(listed, fisher_all, fisher_forget, strict=True):
        factor = torch.where(forget > 0, dampening * every / forget, 1.0).clamp(max=1.0)
        p.mul_(torch.where(forget > alpha * every, factor, 1.0).to(p.dtype))
    return model


def _listed(function: str, name: str, model: Any) -> list[Tensor]:
    given = model.parameters() if isinstance(model, torch.nn.Module) else model
    return listed_tensors(function, name, given)


def _checked(
    function: str, name: str, fisher: Any, like: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """A Fisher diagonal: finite and not negative."""
    listed = listed_tensors(function, name, fisher)
    if like is not None:
        _check_like(function, name, listed, like)
    for one in listed:
        if one.is_complex():
            raise TypeError(f"{function}: {name} must be real, got {one.dtype}")
        bad = int((~(one.isfinite() & (one >= 0))).sum())
        if bad:
            raise ValueError(
                f"{function}: {name} must be finite and not negative, got {bad} elements that "
                "are not"
            )
    return listed


def _check_like(
    function: str, name: str, tensors: Sequence[Tensor], others: Sequence[Tensor]
) -> None:
    if len(tensors) != len(others):
        raise ValueError(
            f"{function}: {name} has {len(tensors)} tensors, expected {len(others)}"
        )
    for one, other in zip(tensors, others, strict=True):
        if one.shape != other.shape:
            raise ValueError(
                f"{function}: {name} has shape {tuple(one.shape)}, "
                f"expected {tuple(other.shape)}"
            )
