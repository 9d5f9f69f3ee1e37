r"""Softmax attention by torch's fused kernel for the CPU, which has no second derivative.

With :math:`S = s Q K^\top + M,\ P = e^{S - L}` (L the saved log-sum-exp), :math:`Y = P V` and
sums along rows,

.. math::

    \dot P &= P \odot (\dot S - \textstyle\sum P \odot \dot S), \qquad
    \dot Y = \dot P V + P \dot V, \\
    \bar S &= P \odot (\bar P - \delta),\quad \bar P = \bar Y V^\top,\quad
        \delta = \textstyle\sum P \odot \bar P, \\
    \dot{\bar S} &= \dot P \odot (\bar P - \delta) + P \odot (\dot{\bar P} - \dot\delta)

P is made anew, some rows of some heads at a time, so that the memory is that of Q, K and V
(T. Dao et al., "FlashAttention", NeurIPS 2022, appendix B.4).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .rules import Op, Rule, Tangents, define

ENTRIES = 2**18  # of S at a time


@dataclass
class Block:
    """Some rows of Q of some heads, with the keys that they see."""

    heads: slice
    rows: slice
    keys: slice


class Attention:
    """Q (n, T, d), K (n, S, d), V (n, S, e) of n heads."""

    def __init__(self, op: Op, t: Tangents) -> None:
        q, k, v = (op.saved(name) for name in ("query", "key", "value"))
        self.batch = q.shape[:-2]
        self.groups = q.shape[-3] // k.shape[-3]  # heads of Q that share one of K and V
        self.Q, self.K, self.V = _heads(q), self.shared(k), self.shared(v)
        self.t = [
            torch.zeros_like(full) if one is None else spread(one)
            for one, full, spread in zip(
                t[:3],
                (self.Q, self.K, self.V),
                (_heads, self.shared, self.shared),
                strict=True,
            )
        ]
        self.L = op.saved("logsumexp")
        if self.L.shape != q.shape[:-1]:
            self.L = self.L.transpose(1, 2)
        self.L = self.L.reshape(len(self.Q), -1, 1)
        self.causal = op.saved("is_causal")
        scale = op.saved("scale")
        self.scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        mask = op.saved("attn_mask")
        if mask is not None:
            if mask.dtype is torch.bool:
                zero = torch.zeros((), dtype=q.dtype, device=q.device)
                mask = torch.where(mask, zero, -math.inf)
            mask = _heads(mask.expand(*self.batch, q.shape[-2], k.shape[-2]))
        self.mask = mask

    def shared(self, x: Tensor) -> Tensor:
        return _heads(x if self.groups == 1 else x.repeat_interleave(self.groups, -3))

    def summed(self, x: Tensor, shape: torch.Size) -> Tensor:
        """Over the heads that share what ``shape`` belongs to."""
        if x.numel() != shape.numel():
            x = x.view(-1, self.groups, *x.shape[1:]).sum(1)
        return x.view(shape)

    def blocks(self) -> Iterator[Block]:
        n, T, S = len(self.Q), self.Q.shape[1], self.K.shape[1]
        heads = max(1, ENTRIES // max(1, T * S))
        rows = max(1, min(T, ENTRIES // max(1, S)))
        for a in range(0, n, heads):
            for b in range(0, T, rows):
                seen = min(S, b + rows) if self.causal else S
                yield Block(slice(a, a + heads), slice(b, min(T, b + rows)), slice(seen))

    def of_rows(self, x: Tensor, at: Block) -> Tensor:
        return x[at.heads, at.rows]

    def of_keys(self, x: Tensor, at: Block) -> Tensor:
        return x[at.heads, at.keys]

    def probabilities(self, at: Block) -> tuple[Tensor, Tensor]:
        """P and its tangent."""
        (tq, tk, _), Q, K = self.t, self.of_rows(self.Q, at), self.of_keys(self.K, at)
        tq, tk = self.of_rows(tq, at), self.of_keys(tk, at)
        S = torch.bmm(Q, K.mT).mul_(self.scale).sub_(self.of_rows(self.L, at))
        if self.mask is not None:
            S += self.mask[at.heads, at.rows, at.keys]
        P = S.exp_()
        if self.causal:
            P.tril_(at.rows.start)
        # One product of twice the depth
        Sd = torch.bmm(torch.cat([tq, Q], -1), torch.cat([K, tk], -1).mT)
        PSd = Sd.mul_(self.scale).mul_(P)
        return P, PSd.addcmul_(P, PSd.sum(-1, keepdim=True), value=-1)


def _heads(x: Tensor) -> Tensor:
    return x.reshape(-1, *x.shape[-2:])


def _tangent(op: Op, t: Tangents) -> Any:
    a = Attention(op, t)
    y = torch.empty(*a.Q.shape[:2], a.V.shape[-1], dtype=a.Q.dtype, device=a.Q.device)
    for at in a.blocks():
        P, Pd = a.probabilities(at)
        part = torch.bmm(Pd, a.of_keys(a.V, at))
        y[at.heads, at.rows] = part.baddbmm_(P, a.of_keys(a.t[2], at))
    return y.view(op.outputs[0].shape)


def _reverse(op: Op, t: Tangents, g: Tangents, gd: Tangents, primal: bool) -> tuple[Any, Any]:
    if g[0] is None:
        return None, op.vjp(gd)
    a = Attention(op, t)
    G = _heads(g[0])
    Gd = torch.zeros_like(G) if gd[0] is None else _heads(gd[0])
    inputs = (a.Q, a.K, a.V)
    x, xd = ([torch.zeros_like(one) for one in inputs] for _ in range(2))
    for at in a.blocks():
        P, Pd = a.probabilities(at)
        Q, tQ, B, Bd = (a.of_rows(one, at) for one in (a.Q, a.t[0], G, Gd))
        K, V, tK, tV = (a.of_keys(one, at) for one in (a.K, a.V, a.t[1], a.t[2]))
        R = torch.bmm(B, V.mT)
        Rd = torch.bmm(torch.cat([Bd, B], -1), torch.cat([V, tV], -1).mT)
        delta = (P * R).sum(-1, keepdim=True)
        delta_dot = (P * Rd).add_(Pd * R).sum(-1, keepdim=True)
        R.sub_(delta).mul_(a.scale)
        Sd = Rd.sub_(delta_dot).mul_(a.scale).mul_(P).addcmul_(Pd, R)
        S = R.mul_(P)
        rows, keys = (at.heads, at.rows), (at.heads, at.keys)
        if primal:
            x[0][rows].baddbmm_(S, K)
            x[1][keys].baddbmm_(S.mT, Q)
            x[2][keys].baddbmm_(P.mT, B)
        xd[0][rows].baddbmm_(Sd, K).baddbmm_(S, tK)
        xd[1][keys].baddbmm_(Sd.mT, Q).baddbmm_(S.mT, tQ)
        xd[2][keys].baddbmm_(Pd.mT, B).baddbmm_(P.mT, Bd)
    shapes = [meta.shape if meta is not None else None for meta in op.inputs[:3]]

    def viewed(found: list[Tensor]) -> Tangents:
        return [
            None if shape is None else a.summed(one, shape)
            for one, shape in zip(found, shapes, strict=True)
        ]

    return viewed(x) if primal else None, viewed(xd)


define("ScaledDotProductFlashAttentionForCpu", rule=Rule(_tangent, _reverse))
