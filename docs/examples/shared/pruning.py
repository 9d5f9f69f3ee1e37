"""A MobileNet that learns scikit-learn's digits, and three ways to prune it in training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune

from curvkern import sparse
from curvkern.fisher import StaticFisher, obs_prune

from .digits import Data

BATCH = 64
EXAMPLES = 64  # gradients that the Fisher matrix is made of
STAGES = (0.5, 0.7, 0.8, 0.85, 0.9)
SHOWN = (0.8, 0.9)
RATE = 6e-3

Pruned = Iterator[tuple[float, nn.Module]]


def enlarged(x: Tensor, size: int) -> Tensor:
    """Images of size x size in three equal channels."""
    x = F.interpolate(x[:, None], size=(size, size), mode="bilinear")
    return x.expand(-1, 3, -1, -1).contiguous()


class Task:
    """Digits at some size, and how a network is trained and judged on them."""

    def __init__(self, size: int) -> None:
        data = Data()
        self.x, self.y = enlarged(data.x, size), data.y
        self.test = enlarged(data.test[0], size), data.test[1]

    def steps(self, epochs: float) -> int:
        return round(epochs * len(self.x) / BATCH)

    def train(
        self,
        model: nn.Module,
        epochs: float,
        lr: float,
        after: Callable[[], object] = lambda: None,
    ) -> None:
        model.train()
        optimizer = torch.optim.Adam(model.parameters(), lr)
        steps = self.steps(epochs)
        rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
        for _ in range(steps):
            batch = torch.randint(len(self.x), (BATCH,))
            optimizer.zero_grad()
            F.cross_entropy(model(self.x[batch]), self.y[batch]).backward()
            optimizer.step()
            rates.step()
            after()
        self.settle(model)

    @torch.no_grad()
    def settle(self, model: nn.Module) -> None:
        """Statistics of BatchNorm anew: moving averages lag behind weights that moved fast."""
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean
        model.train()
        for batch in torch.randperm(len(self.x)).split(BATCH):
            model(self.x[batch])
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.eval()

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        return float((model(self.test[0]).argmax(1) == self.test[1]).double().mean())


def by_magnitude(task: Task, dense: nn.Module, epochs: float) -> Pruned:
    """Gradually, in the first two thirds of the training (Zhu and Gupta, 2018)."""
    model, before = copy.deepcopy(dense), 0.0
    for sparsity in SHOWN:
        share = sum(before < stage <= sparsity for stage in STAGES) / len(STAGES)
        end = task.steps(share * epochs * 2 / 3)
        schedule = sparse.CubicSchedule(0, end, every=5, initial=before)
        pruning = sparse.magnitude_prune_(model, sparsity, schedule=schedule)
        task.train(model, share * epochs, RATE, pruning.step)
        before = sparsity
        yield sparsity, copy.deepcopy(_without_hooks(model))


class SoftMask(nn.Module):
    """w times a mask that is soft around a threshold, and learns with w.

    m = sigmoid((w^2 - t^2) / tau), t half way between the smallest magnitude that is to stay
    and the largest that is to go: M. Cho, S. Adya, D. Naik, "PDP: parameter-free differentiable
    pruning is all you need", NeurIPS 2023.
    """

    def __init__(self, tau: float = 1e-4) -> None:
        super().__init__()
        self.sparsity, self.tau = 0.0, tau

    def forward(self, w: Tensor) -> Tensor:
        dropped = round(self.sparsity * w.numel())
        if dropped in (0, w.numel()):
            return w
        magnitude = w.detach().abs().flatten()
        t = magnitude.sort().values[dropped - 1 : dropped + 1].mean()
        distance = (w.square() - t.square()) / self.tau
        return w * torch.sigmoid(distance.clamp_min(-30))  # subnormal numbers are slow


def by_soft_masks(task: Task, dense: nn.Module, epochs: float) -> Pruned:
    """Masks soft at first, then weights dropped and the others trained on."""
    model, before = copy.deepcopy(dense), 0.0
    for sparsity in SHOWN:
        share = sum(before < stage <= sparsity for stage in STAGES) / len(STAGES)
        masks = [SoftMask() for _ in _pointwise(model)]
        for layer, mask in zip(_pointwise(model), masks, strict=True):
            parametrize.register_parametrization(layer, "weight", mask)
        steps, done = task.steps(share * epochs / 3), 0

        def grow(masks=masks, steps=steps, start=before, end=sparsity) -> None:
            nonlocal done
            done += 1
            for mask in masks:  # in full half way
                mask.sparsity = start + (end - start) * min(1.0, 2 * done / steps)

        task.train(model, share * epochs / 3, RATE, grow)
        for layer in _pointwise(model):
            parametrize.remove_parametrizations(layer, "weight")
        pruned = sparse.magnitude_prune_(copy.deepcopy(model), sparsity)
        task.train(pruned, share * epochs * 2 / 3, RATE)
        before = sparsity
        model = _without_hooks(pruned)
        yield sparsity, copy.deepcopy(model)
        for layer in _pointwise(model):
            prune.remove(layer, "weight")


def by_obs(task: Task, dense: nn.Module, epochs: float) -> Pruned:
    """Stage by stage what Optimal Brain Surgeon finds cheapest, the others making up for it."""
    model = copy.deepcopy(dense)
    layers = _pointwise(model)
    for layer in layers:
        prune.identity(layer, "weight")
    weights = [layer.weight_orig for layer in layers]
    sizes = [w.numel() for w in weights]
    for sparsity in STAGES:
        rows = []
        for i in torch.randperm(len(task.x))[:EXAMPLES].tolist():
            loss = F.cross_entropy(model(task.x[i : i + 1]), task.y[i : i + 1])
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]))
        flat = torch.cat([layer.weight.detach().flatten() for layer in layers])
        mask = torch.cat([layer.weight_mask.flatten() for layer in layers]) != 0
        fisher = StaticFisher.from_gradients(torch.stack(rows), 1e-4)
        flat, mask, _ = obs_prune(
            flat, fisher, sparsity=sparsity, mode="simultaneous", mask=mask
        )
        with torch.no_grad():
            parts = zip(layers, flat.split(sizes), mask.split(sizes), strict=True)
            for layer, values, kept in parts:
                layer.weight_orig.copy_(values.view_as(layer.weight_orig))
                layer.weight_mask.copy_(kept.view_as(layer.weight_mask))
        task.train(model, epochs / len(STAGES), RATE)
        if sparsity in SHOWN:
            yield sparsity, copy.deepcopy(_without_hooks(model))


def _pointwise(model: nn.Module) -> list[nn.Conv2d]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]


def _without_hooks(model: nn.Module) -> nn.Module:
    """A weight that a hook has computed cannot be copied."""
    for layer in _pointwise(model):
        layer.weight = layer.weight.detach()
    return model
