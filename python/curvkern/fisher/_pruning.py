"""Optimal Brain Surgeon: which weights to drop, and what the others make up for."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._arguments import check_layout
from ._queries import columns, diagonal_blocks, inverse_block, size

MODES = ("simultaneous", "joint", "greedy")
AHEAD = 64  # columns of the inverse that the greedy mode asks for in one call


def obs_prune(
    w: Tensor,
    fisher: Any,
    *,
    sparsity: float | None = None,
    n: int | None = None,
    mode: str = "simultaneous",
    mask: Tensor | None = None,
    block: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Drop the weights that the quadratic model misses least, and update the others.

    With the loss near w as :math:`\frac12 \delta^\top F \delta`, dropping :math:`w_i` alone
    costs its saliency

    .. math:: \rho_i = \frac{w_i^2}{2 [F^{-1}]_{ii}},
              \qquad \delta = -\frac{w_i}{[F^{-1}]_{ii}} F^{-1} e_i .

    Parameters
    ----------
    w
        Weights, any shape of d elements, floating.
    fisher
        An object that has ``ihvp`` and ``diag_inverse``: a :class:`SlidingWindowFisher`, a
        :class:`StaticFisher`, or another inverse of shape (d, d). Of an
        object that also has ``inverse_block`` and ``elements`` no whole columns are needed
        under "joint" and ``block``.
    sparsity
        The share of all d weights that is to be zero afterwards, in [0, 1], those of ``mask``
        included. Either this or ``n``.
    n
        The number of weights to drop now, a multiple of ``block``.
    mode
        "simultaneous"
            the n least salient at once, with the sum of their own updates [1]_: one product
            with :math:`F^{-1}`.
        "joint"
            the same set S with the least loss for it, :math:`\delta = -F^{-1}_{:S}
            (F^{-1}_{SS})^{-1} w_S`: a Cholesky factor of n by n numbers.
        "greedy"
            one after the other, each the least salient after the updates before it [2]_: n d
            numbers.
    mask
        Which weights are left, bool, of the shape of w. Those that are not are zero before and
        after; modes "joint" and "greedy" hold them there while they update the others.
    block
        Weights are dropped in groups of so many consecutive ones, whose saliency is
        :math:`\frac12 w_B^\top (F^{-1}_{BB})^{-1} w_B` [3]_; d is a multiple of it.

    Returns
    -------
    w, mask, saliency
        New weights, in the dtype of w; which of them are left; the saliencies by which the set
        was chosen, float64, of the shape of w, or (d / block,) under ``block``, infinite for
        what ``mask`` had dropped. Of equal saliencies the first goes first. Under "greedy" the
        saliency of a dropped weight is the one that it had when it went.

    Raises
    ------
    TypeError
        w or mask is of another kind or dtype.
    ValueError
        A shape or device does not fit the Fisher's, w is not finite, the number to drop is out
        of range, both or none of sparsity and n are given, the mode is unknown, or the inverse
        is not positive definite to rounding.

    References
    ----------
    .. [1] E. Frantar, E. Kurtic, D. Alistarh, "M-FAC", NeurIPS 2021, section 4.1.
    .. [2] B. Hassibi, D. Stork, "Second order derivatives for network pruning: Optimal Brain
       Surgeon", NeurIPS 1992.
    .. [3] E. Kurtic et al., "The Optimal BERT Surgeon", EMNLP 2022.

    Examples
    --------
    >>> import torch
    >>> from curvkern.fisher import obs_prune
    >>> from curvkern.fisher import StaticFisher
    >>> G = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 3.0]])
    >>> w, mask, saliency = obs_prune(
    ...     torch.tensor([0.9, 1.0, 0.2]), StaticFisher.from_gradients(G, 0.01), n=1
    ... )
    >>> w, mask  # the second weight takes over what the first did
    (tensor([0.0000, 1.8824, 0.2000]), tensor([False,  True,  True]))
    >>> saliency
    tensor([0.0080, 0.0099, 0.0902], dtype=torch.float64)
    """
    weights, kept = _checked(w, fisher, mask)
    d = weights.numel()
    group = _checked_block(block, d)
    drop = _checked_number(sparsity, n, kept, group)
    if mode not in MODES:
        raise ValueError(f"obs_prune: mode must be one of {', '.join(MODES)}, got {mode!r}")
    if mode == "greedy":
        new, dropped, saliency = _greedy(weights, kept, fisher, group, drop)
    else:
        blocks = diagonal_blocks(fisher, group)
        saliency = _saliency(weights, blocks, kept)
        dropped = torch.sort(saliency, stable=True).indices[:drop]
        members = (dropped[:, None] * group + torch.arange(group, device=w.device)).flatten()
        if mode == "simultaneous":
            share = torch.zeros_like(weights)
            share[members] = _solved(
                blocks[dropped], weights[members].view(-1, group)
            ).flatten()
            new = weights - fisher.ihvp(share).to(weights)
        else:
            new = weights - _joint_change(weights, kept, fisher, members)
    left = kept.clone()
    left.view(-1, group)[dropped] = False
    new = torch.where(left, new, 0.0).to(w.dtype)
    if block is None:
        saliency = saliency.reshape(w.shape)
    return new.reshape(w.shape), left.reshape(w.shape), saliency


def _saliency(w: Tensor, blocks: Tensor, kept: Tensor) -> Tensor:
    """1/2 w_B' (F^-1_BB)^-1 w_B of each group, (d / b,)."""
    grouped = w.view(blocks.shape[:2])
    saliency = (grouped * _solved(blocks, grouped)).sum(1) / 2
    return torch.where(kept.view(grouped.shape)[:, 0], saliency, torch.inf)


def _solved(blocks: Tensor, w: Tensor) -> Tensor:
    """Rows of w, (g, b), times the inverses of blocks, (g, b, b)."""
    if blocks.shape[1] == 1:
        return w / blocks[:, :, 0]
    return torch.cholesky_solve(w[:, :, None], _factor(blocks))[:, :, 0]


def _joint_change(w: Tensor, kept: Tensor, fisher: Any, members: Tensor) -> Tensor:
    """F^-1_:S (F^-1_SS)^-1 w_S, S with what was dropped before, whose w is 0."""
    S = torch.cat([members, (~kept).nonzero()[:, 0]])
    if not len(S):
        return torch.zeros_like(w)
    factor = _factor(inverse_block(fisher, S).to(w))
    share = torch.zeros_like(w)
    share[S] = torch.cholesky_solve(w[S, None], factor)[:, 0]
    return fisher.ihvp(share).to(w)


def _greedy(
    w: Tensor, kept: Tensor, fisher: Any, b: int, drop: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Pivoted block Cholesky of F^-1, the pivots chosen by saliency.

    With C the rows so far, F^-1 - C'C is the inverse for the weights that are left. Columns of
    the next candidates are asked for, and taken less C'C, many at a time.
    """
    d = len(w)
    w, gone = w.clone(), ~kept
    before = gone.nonzero()[:, 0]
    blocks = diagonal_blocks(fisher, b)
    C = w.new_empty(len(before) + drop * b, d)
    done = len(before)
    if done:
        found = columns(fisher, before).to(w)
        C[:done] = _whitened(found, found[:, before])
        blocks = blocks - _group_squares(C[:done], b)
        blocks[before[::b] // b] = torch.eye(b).to(w)  # nothing is left of them but rounding
    offset = torch.arange(b, device=w.device)
    saliency = _saliency(w, blocks, kept)
    record, order = saliency.clone(), []
    ahead: dict[int, Tensor] = {}
    base = done
    for _ in range(drop):
        i = int(saliency.argmin())
        at = slice(i * b, i * b + b)
        if i not in ahead:
            wanted = torch.sort(saliency, stable=True).indices[: max(1, AHEAD // b)]
            members = (wanted[:, None] * b + offset).flatten()
            found = columns(fisher, members).to(w) - C[:done, members].T @ C[:done]
            ahead = dict(zip(wanted.tolist(), found.view(-1, b, d), strict=True))
            base = done
        rows = ahead[i] - C[base:done, at].T @ C[base:done]
        rows = _whitened(rows, rows[:, at])
        # rows at i are the transposed factor: w_i goes to zero.
        w -= torch.linalg.solve_triangular(rows[:, at].T, w[at, None], upper=False)[:, 0] @ rows
        w[at] = 0.0
        C[done : done + b] = rows
        done += b
        blocks = blocks - _group_squares(rows, b)
        blocks[i] = torch.eye(b).to(w)
        gone[at] = True
        record[i] = saliency[i]
        order.append(i)
        saliency = _saliency(w, blocks, ~gone)
    record = torch.where(gone.view(-1, b)[:, 0], record, saliency)
    return w, torch.tensor(order, dtype=torch.int64, device=w.device), record


def _factor(block: Tensor) -> Tensor:
    """Lower Cholesky factor of parts of F^-1, which rounding may have spoilt."""
    try:
        return torch.linalg.cholesky(block)
    except RuntimeError:  # torch.linalg.LinAlgError is one
        raise ValueError(
            "obs_prune: fisher's inverse must be positive definite, but rounding has left a "
            "part of it that is not; a larger damping or a float64 window helps"
        ) from None


def _whitened(rows: Tensor, pivot: Tensor) -> Tensor:
    """L^-1 times rows, with L L' the pivot."""
    L = _factor((pivot + pivot.T) / 2)
    return torch.linalg.solve_triangular(L, rows, upper=False)


def _group_squares(rows: Tensor, b: int) -> Tensor:
    """Diagonal blocks of rows' rows, (d / b, b, b)."""
    if b == 1:
        return rows.square().sum(0)[:, None, None]
    grouped = rows.view(len(rows), -1, b)
    return torch.einsum("kgi,kgj->gij", grouped, grouped)


def _checked(w: Any, fisher: Any, mask: Any) -> tuple[Tensor, Tensor]:
    """Flat float64 weights, zero where the mask is, and the flat mask."""
    if not isinstance(w, Tensor):
        raise TypeError(f"obs_prune: w must be a tensor, got {type(w).__name__}")
    check_layout("obs_prune", "w", w)
    if not w.is_floating_point():
        raise TypeError(f"obs_prune: w must be floating, got {w.dtype}")
    where = getattr(fisher, "device", None)
    if isinstance(where, torch.device) and w.device != where:
        raise ValueError(f"obs_prune: w is on {w.device} but fisher on {where}")
    d = size("obs_prune", fisher)
    if w.numel() != d:
        raise ValueError(
            f"obs_prune: w has shape {tuple(w.shape)}, that is {w.numel()} weights, "
            f"but fisher has dimension {d}"
        )
    if mask is None:
        kept = torch.ones(d, dtype=torch.bool, device=w.device)
    elif not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(
            f"obs_prune: mask must be a bool tensor, True where a weight is left, got {got}"
        )
    elif mask.shape != w.shape:
        raise ValueError(
            f"obs_prune: mask has shape {tuple(mask.shape)} but w has {tuple(w.shape)}"
        )
    else:
        kept = mask.reshape(-1).to(w.device)
    flat = torch.where(kept, w.detach().reshape(-1).double(), 0.0)
    if not torch.isfinite(flat).all():
        raise ValueError("obs_prune: w must be finite, got nan or inf")
    return flat, kept


def _checked_block(block: Any, d: int) -> int:
    if block is None:
        return 1
    if isinstance(block, bool) or not isinstance(block, int):
        raise TypeError(f"obs_prune: block must be an int, got {type(block).__name__}")
    if block < 1 or d % block:
        raise ValueError(f"obs_prune: block must divide the {d} weights, got {block}")
    return block


def _checked_number(sparsity: Any, n: Any, kept: Tensor, group: int) -> int:
    """How many groups to drop."""
    grouped = kept.view(-1, group)
    if bool((grouped[:, :1] != grouped).any()):
        raise ValueError(f"obs_prune: mask must be the same throughout each block of {group}")
    free, total = int(grouped[:, 0].sum()), len(grouped)
    if (sparsity is None) == (n is None):
        raise ValueError("obs_prune: give either sparsity or n")
    if n is not None:
        if isinstance(n, bool) or not isinstance(n, int):
            raise TypeError(f"obs_prune: n must be an int, got {type(n).__name__}")
        if not 0 <= n <= free * group or n % group:
            raise ValueError(
                f"obs_prune: n must be a multiple of {group} between 0 and the "
                f"{free * group} weights that are left, got {n}"
            )
        return n // group
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)):
        raise TypeError(f"obs_prune: sparsity must be a number, got {type(sparsity).__name__}")
    if not (math.isfinite(sparsity) and 0 <= sparsity <= 1):
        raise ValueError(f"obs_prune: sparsity must be in [0, 1], got {sparsity}")
    drop = round(sparsity * total) - (total - free)
    if drop < 0:
        raise ValueError(
            f"obs_prune: sparsity is {sparsity}, but mask has already dropped "
            f"{1 - free / total:.6g} of the weights"
        )
    return drop
