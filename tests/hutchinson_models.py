"""Small losses whose Hessians are known exactly, by name: loss(params, x, y) -> a scalar."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Sequence[Tensor], Tensor, Tensor], Tensor]


def _linear(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return x @ w.T + b


def _mlp(act: Callable[[Tensor], Tensor], loss: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    def run(P: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
        for i in range(0, len(P), 2):
            x = _linear(x, P[i], P[i + 1])
            x = act(x) if i + 2 < len(P) else x
        return loss(x, y)

    return run


def _conv1d(P: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
    h = F.softplus(F.conv1d(x, P[0], P[1])).mean(-1)
    return (_linear(h, P[2], P[3]) - y).square().mean()


def _conv2d(P: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
    h = F.gelu(F.conv2d(x, P[0], P[1], padding=1))
    h = torch.tanh(F.conv2d(h, P[2], None, stride=2)).flatten(1)
    return F.cross_entropy(_linear(h, P[3], P[4]), y, label_smoothing=0.1)


def _conv3d(P: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
    return (torch.tanh(F.conv3d(x, P[0], P[1])).mean((2, 3, 4)) - y).square().mean()


def _attention(P: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Embedding, layer norm, one causal head with a residual connection."""
    embedding, norm_w, norm_b, qkv, out, head = P
    e = embedding[x]
    d, t = e.shape[-1], x.shape[1]
    q, k, v = (F.layer_norm(e, (d,), norm_w, norm_b) @ qkv.T).split(d, -1)
    a = q @ k.mT / math.sqrt(d)
    a = a.masked_fill(~torch.ones(t, t, dtype=torch.bool).tril(), -math.inf).softmax(-1)
    h = e + (a @ v) @ out.T
    return F.cross_entropy((h @ head.T).flatten(0, 1), y.flatten())


def _rnn(P: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
    h = x.new_zeros(x.shape[0], P[1].shape[0])
    for t in range(x.shape[1]):
        h = torch.tanh(x[:, t] @ P[0].T + h @ P[1].T + P[2])
    return (_linear(h, P[3], P[4]) - y).square().mean()


def _quadratic(P: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
    return 0.5 * P[0] @ (x @ P[0]) - y @ P[0]


def _rosenbrock(P: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
    w = P[0]
    valley = (100 * (w[1:] - w[:-1] ** 2) ** 2 + (1 - w[:-1]) ** 2).sum()
    return 0.01 * valley + (P[1] ** 4).sum() + P[1].prod()


LOSSES: dict[str, Loss] = {
    "mlp_tanh_ce": _mlp(torch.tanh, F.cross_entropy),
    "mlp_sigmoid_mse": _mlp(torch.sigmoid, F.mse_loss),
    "mlp_relu_mse": _mlp(torch.relu, F.mse_loss),
    "mlp_softplus_ce": _mlp(F.softplus, F.cross_entropy),
    "conv1d": _conv1d,
    "conv2d": _conv2d,
    "conv3d": _conv3d,
    "attn": _attention,
    "rnn": _rnn,
    "quad": _quadratic,
    "rosen": _rosenbrock,
}
