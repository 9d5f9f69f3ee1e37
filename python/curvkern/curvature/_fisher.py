"""The diagonal of the Fisher information, and what is done with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _hutchinson as ops
from ..fisher import _checks
from ..reference import hutchinson as reference
from ._hvp import checked_params
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
        For parameters that do not require grad, logits of another shape, no example at all.

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
            losses = found.reshape(-1) if mode == "empirical" else _sampled(found, generator)
        for i in range(len(losses)):
            last = i + 1 == len(losses)
            grads = torch.autograd.grad(
                losses[i], listed, retain_graph=not last, allow_unused=True
            )
            g = [
                torch.zeros_like(p) if one is None else one.detach()
                for p, one in zip(listed, grads, strict=True)
            ]
            count += 1
            with torch.no_grad():
                add(mean, [], g, g, [0] * len(g), 0, 0, 0, count)  # g times g
    if not count:
        raise ValueError(f"{function}: batches has no example")
    return mean


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
    ValueError
        For numbers of models, Fishers or weights that differ, or shapes that do.

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
    thetas = [_listed(model) for model in models]
    weights = [1.0] * len(thetas) if weights is None else list(weights)
    if not thetas or not len(thetas) == len(fishers) == len(weights):
        raise ValueError(
            f"merge_fisher: got {len(thetas)} models, {len(fishers)} fishers and "
            f"{len(weights)} weights"
        )
    total_weight = sum(weights)
    if min(weights) < 0 or not 0 < total_weight < float("inf"):
        raise ValueError("merge_fisher: weights must not be negative and have a finite sum > 0")
    for theta, fisher in zip(thetas, fishers, strict=True):
        _check_like("merge_fisher", "fishers", fisher, thetas[0])
        _check_like("merge_fisher", "models", theta, thetas[0])
    merged = []
    for i, first in enumerate(thetas[0]):
        shares = [w * f[i].double() for w, f in zip(weights, fishers, strict=True)]
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
        For a k that is neither.

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
        For shapes that differ, or an alpha or dampening that is not positive.

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
    listed = _listed(model)
    _check_like(function, "fisher_all", fisher_all, listed)
    _check_like(function, "fisher_forget", fisher_forget, listed)
    for p, every, forget in zip(listed, fisher_all, fisher_forget, strict=True):
        factor = torch.where(forget > 0, dampening * every / forget, 1.0).clamp(max=1.0)
        p.mul_(torch.where(forget > alpha * every, factor, 1.0).to(p.dtype))
    return model


def _listed(model: Any) -> list[Tensor]:
    return list(model.parameters()) if isinstance(model, torch.nn.Module) else list(model)


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
