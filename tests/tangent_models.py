"""Losses whose native Hessian products are compared: name -> (parameters, a function)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Problem = tuple[list[Tensor], Callable[[], Tensor]]
Entry = Callable[[Tensor], Tensor]


def filled(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def labels(n: int, classes: int) -> Tensor:
    return torch.arange(n) * 7 % classes


class Residual(nn.Module):
    """A block with batch normalization, and a shortcut where the width changes."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.b = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outer), nn.BatchNorm2d(outer)])
        self.short: nn.Module = nn.Identity()
        if inner != outer:
            self.short = nn.Conv2d(inner, outer, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[1](self.b(F.relu(self.norms[0](self.a(x)))))
        return F.relu(y + self.short(x))


class Attention(nn.Module):
    """A block of a transformer."""

    def __init__(self, d: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norms = nn.ModuleList([nn.LayerNorm(d), nn.LayerNorm(d)])
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.wide, self.narrow = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        qkv = self.qkv(self.norms[0](x)).view(b, t, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(a.transpose(1, 2).reshape(b, t, d))
        return x + self.narrow(F.gelu(self.wide(self.norms[1](x))))


def model(
    net: nn.Module, x: Tensor, classes: int, dtype: torch.dtype, **options: Any
) -> Problem:
    """The cross-entropy of a network of few outputs."""
    net.to(dtype)
    x = x.to(dtype) if x.is_floating_point() else x

    def loss() -> Tensor:
        y = net(x)
        y = y.flatten(0, -2) if y.dim() > 2 else y
        return F.cross_entropy(y, labels(len(y), classes), **options)

    return list(net.parameters()), loss


def models(dtype: torch.dtype) -> dict[str, Callable[[], Problem]]:
    """Whole networks."""
    tokens = labels(12, 9).view(2, 6)

    def resnet() -> Problem:
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), Residual(4, 4, 1), Residual(4, 6, 2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
        )  # fmt: skip
        return model(net, filled(4, 3, 8, 8), 5, dtype)

    def gpt() -> Problem:
        net = nn.Sequential(
            nn.Embedding(9, 8), Attention(8, 2, True), nn.LayerNorm(8), nn.Linear(8, 9)
        )
        return model(net, tokens, 9, dtype)

    def grouped() -> Problem:
        net = nn.Sequential(
            nn.Linear(6, 8), nn.GroupNorm(2, 8), nn.SiLU(), nn.Linear(8, 8), nn.Tanh(),
            nn.BatchNorm1d(8), nn.Linear(8, 3),
        )  # fmt: skip
        return model(net, filled(5, 6), 3, dtype, label_smoothing=0.1,
                     weight=torch.tensor([1.0, 2.0, 0.5], dtype=dtype))  # fmt: skip

    def lstm() -> Problem:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.words, self.rnn = nn.Embedding(9, 5), nn.LSTM(5, 4, 2, bidirectional=True)
                self.head = nn.Linear(8, 9)

            def forward(self, x: Tensor) -> Tensor:
                return self.head(self.rnn(self.words(x))[0])  # type: ignore[no-any-return]

        return model(Net(), tokens, 9, dtype)

    def gru() -> Problem:
        net = nn.GRU(5, 4, batch_first=True).to(dtype)
        x = filled(2, 6, 5, dtype=dtype)
        return list(net.parameters()), lambda: net(x)[0].square().mean()

    def encoder() -> Problem:
        net = nn.Sequential(
            nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True), nn.Linear(8, 4)
        )
        return model(net, filled(2, 5, 8), 4, dtype)

    def transposed() -> Problem:
        net = nn.Sequential(
            nn.ConvTranspose2d(2, 4, 3, 2, 1, 1, groups=2), nn.ELU(), nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2), nn.LeakyReLU(),
            nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3),
        )  # fmt: skip
        return model(net, filled(2, 2, 4, 4), 3, dtype)

    def volumes() -> Problem:
        net = nn.Sequential(nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2), nn.Softplus(), nn.Flatten())
        net.append(nn.Linear(16, 3))
        return model(net, filled(3, 1, 3, 3, 3), 3, dtype)

    def sequences() -> Problem:
        net = nn.Sequential(nn.Conv1d(2, 3, 3, padding="same"), nn.GELU("tanh"), nn.Flatten())
        net.append(nn.Linear(15, 3))
        return model(net, filled(3, 2, 5), 3, dtype)

    def evaluation() -> Problem:
        net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten())
        net.append(nn.Linear(12, 3))
        net(filled(4, 2, 4, 4, dtype=torch.float32))
        return model(net.eval(), filled(3, 2, 4, 4), 3, dtype)

    made = (
        resnet,
        gpt,
        grouped,
        lstm,
        gru,
        encoder,
        transposed,
        volumes,
        sequences,
        evaluation,
    )

    def seeded(make: Callable[[], Problem]) -> Callable[[], Problem]:
        def problem() -> Problem:
            torch.manual_seed(3)
            return make()

        return problem

    return {make.__name__: seeded(make) for make in made}


def nodes() -> dict[str, Entry]:
    """Operations of a (3, 4) tensor, each seen through a tanh before it and a square after."""
    index, column = torch.tensor([2, 0, 2]), torch.tensor([[1], [0], [3]])
    other, mask = filled(3, 4, seed=5), filled(3, 4, seed=6) > 0
    W, K = filled(4, 5, seed=7), filled(2, 4, 3, seed=8)

    def in_place(x: Tensor) -> Tensor:
        y = x.clone()
        y[:, 0] *= 2
        y += x
        return y.mul_(x)

    def attention(**options: Any) -> Entry:
        def run(x: Tensor) -> Tensor:
            q = torch.stack([x, x * 2, x.flip(0), x.sin()]).unsqueeze(0)
            return F.scaled_dot_product_attention(q, q.cos(), q * other, **options)

        return run

    return {
        "add": lambda x: x + 2 * x[:, :1] + 1,
        "alpha": lambda x: torch.add(x, x.square(), alpha=3).sub(x[0], alpha=0.5),
        "rsub": lambda x: 1 - x,
        "multiply": lambda x: x * x[:1] * 3 * other,
        "divide": lambda x: x / (2 + x[:, :1]) / 4 + 1 / (3 + x),
        "power": lambda x: (x + 2) ** 3 + (x + 2) ** 0.5 + x**2 + 2 ** (x + 1),
        "where": lambda x: torch.where(mask, x, x.square()) + torch.where(mask, x, other),
        "masked_fill": lambda x: x.masked_fill(mask, 0.5),
        "tril": lambda x: x.tril() + x.triu(1),
        "views": lambda x: x.reshape(2, 6).t().unsqueeze(0).transpose(-1, -2).squeeze(0),
        "expand": lambda x: x[:, None].expand(3, 2, 4) * x[:, None],
        "slices": lambda x: torch.cat([x[-2:, 1:], x[:2, :-1], other[:2, :3]]),
        "steps": lambda x: x[::2, 1::2].repeat(2, 3),
        "select": lambda x: torch.stack([x[0], x[-1], other[0]], -1),
        "split": lambda x: x.split([1, 3], -1)[1] * x.chunk(2, 1)[0][:, :1],
        "unbind": lambda x: x.unbind(-1)[2] * x.unbind(0)[1][:3],
        "cat_many": lambda x: torch.cat([other[:1], x, other, x.square()]),
        "index": lambda x: x[index][:, :3] * x[:, index],
        "index_select": lambda x: x.index_select(1, index).gather(1, column.clamp(max=2)),
        "sums": lambda x: x.sum(-1) * x.mean((0, -1)) * x.sum() * x.mean(),
        "max": lambda x: x.max(1)[0] * x.min(0, keepdim=True)[0].sum(),
        "maximum": lambda x: torch.maximum(x, x.cos()) + x.amax(1, keepdim=True),
        "cumsum": lambda x: x.cumsum(1) * x.flip(0),
        "pad": lambda x: F.pad(x, (1, -1, 0, 2)),
        "matmul": lambda x: (x @ W) @ (x @ W).T,
        "bmm": lambda x: torch.bmm(x.expand(2, 3, 4), K) + torch.einsum("ij,kj->ik", x, x),
        "baddbmm": lambda x: torch.baddbmm(x[:, :3].expand(2, 3, 3), x.expand(2, 3, 4), K,
                                           beta=2, alpha=0.5),
        "addmm": lambda x: torch.addmm(x[:, :1], x, W, beta=0.5, alpha=2),
        "vectors": lambda x: x.mv(x[0]).dot(x[:, 1]) + torch.outer(x[0], x[1]),
        "softmax": lambda x: x.softmax(-1) * x.log_softmax(0) * x,
        "logsumexp": lambda x: x.logsumexp(0) + x.norm(dim=0) + x.var(0),
        "activations": lambda x: F.gelu(x) + F.gelu(x, approximate="tanh") + F.silu(x)
        + F.softplus(x, 2.0) + F.elu(x) + F.celu(x, 0.5) + F.selu(x) + F.logsigmoid(x),
        "kinks": lambda x: (F.relu(x) + F.leaky_relu(x) + F.hardtanh(x, -0.3, 0.3) + x.abs()
                            + x.clamp(-0.2, 0.4) + x.clamp_min(0.1)),
        "functions": lambda x: (x.exp() + x.expm1() + x.sin() + x.cos() + x.erf() + x.tanh()
                                + x.sigmoid()),
        "roots": lambda x: ((2 + x).log() + (2 + x).sqrt() + (2 + x).rsqrt()
                            + (2 + x).reciprocal() + x.abs().log1p()),
        "in_place": in_place,
        "unknown": lambda x: torch.atan2(x, x.cos() + 2) * x,
        "unknown_chain": lambda x: torch.hypot(x + 2, torch.sinh(x) + 3),
        "grouped_heads": lambda x: F.scaled_dot_product_attention(
            torch.stack([x, x.cos(), x * 2, x.sin()])[None], torch.stack([x, x.exp()])[None],
            torch.stack([x * x, x])[None], enable_gqa=True),
        "padding": lambda x: F.embedding(torch.tensor([0, 2, 1, 2]), x, padding_idx=1) ** 2,
        "losses": lambda x: F.mse_loss(x, x.sin(), reduction="none")
        + F.mse_loss(x, other) + F.mse_loss(other, x, reduction="sum"),
        "more_losses": lambda x: F.smooth_l1_loss(x, other) * x
        + F.binary_cross_entropy_with_logits(x, other.sigmoid()) + F.huber_loss(x, other),
        "nll": lambda x: F.cross_entropy(x, index, reduction="none", ignore_index=0) * x[:, 0]
        + F.cross_entropy(x.expand(2, 3, 4), torch.tensor([[0, 1, 2, 0], [1, 1, 0, 2]])),
        "casts": lambda x: x.float().double() * x,
        "attention": attention(),
        "causal_attention": attention(is_causal=True, scale=0.7),
        "masked_attention": attention(attn_mask=torch.eye(3, dtype=torch.bool).logical_not()),
        "biased_attention": attention(attn_mask=filled(3, 3, seed=9)),
    }  # fmt: skip
