"""Hooks, an object's own forward and modules of two names count in what sparsify returns."""

from types import MethodType

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from curvkern import sparse

CHANNELS = 6


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(CHANNELS, CHANNELS, 1), nn.ReLU()

    def forward(self, x):
        return self.act(self.conv(x))


def pruned(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(0.3)
    return sparse.magnitude_prune_(model, 0.75).eval()


@torch.no_grad()
def assert_same(model: nn.Module, **options) -> nn.Module:
    x = torch.randn(2, CHANNELS, 7, 5)
    expected = model(x)
    quick = sparse.sparsify(model, autotune=False, **options)
    torch.testing.assert_close(quick(x), expected, rtol=1e-4, atol=1e-5)
    return quick


def hooked(model):
    model.register_forward_hook(lambda module, given, y: 2 * y)


def hooked_before(model):
    model.register_forward_pre_hook(lambda module, given: (2 * given[0],))


def of_its_own(model):
    # a method, of which a copy is one of the copied model
    model.forward = MethodType(lambda self, x: 3 * type(self).forward(self, x), model)


def layer_of_its_own(model):
    of_its_own(model[0] if isinstance(model, nn.Sequential) else model.conv)


def activation_of_its_own(model):
    (model[1] if isinstance(model, nn.Sequential) else model.act).forward = torch.neg


CHANGES = [hooked, hooked_before, of_its_own, layer_of_its_own, activation_of_its_own]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("sequential", [False, True])
def test_hooks_and_forwards_of_one_object(sequential, change, inplace):
    model = Block()
    model = pruned(nn.Sequential(*model.children()) if sequential else model)
    change(model)
    assert_same(model, inplace=inplace)


class ByName(Block):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x):
        return self.act(input=self.last(input=self.conv(input=x)))


def test_a_hook_sees_what_a_layer_is_called_with():
    model = pruned(ByName())
    seen = []
    model.conv.register_forward_pre_hook(
        lambda module, given, named: seen.append((len(given), *named)), with_kwargs=True
    )
    quick = assert_same(model)
    assert quick.last.activation == "relu"
    assert seen == [(0, "input")] * 2


class TwoNames(nn.Module):
    """The names that come first are not those that the forward uses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(CHANNELS, CHANNELS, 1), nn.BatchNorm2d(CHANNELS)
        self.act = nn.ReLU6()
        self.body = nn.Sequential(self.conv, self.norm, self.act)

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize("inplace", [False, True])
def test_modules_of_two_names(inplace):
    quick = assert_same(pruned(TwoNames()), inplace=inplace)
    if inplace:
        assert quick.body[0] is quick.conv
        assert type(quick.conv).__name__ == "SparseWeightConv2d"


class Overwritten(nn.Module):
    """torch's relu6 keeps what it takes, so that its result may be written into."""

    def __init__(self, between, traced: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), nn.ReLU6(), *between)
        self.deep = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS)
        self.traced = traced

    def forward(self, x):
        y = self.body(x)
        if not self.traced:
            y += 1
            return y if bool(y.isfinite().all()) else x
        z = F.relu6(self.deep(y))
        z.flatten(1).mul_(2)
        return z


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("between", [[], [nn.SiLU(True)], [nn.Identity(), nn.SiLU(True)]])
def test_gradients_where_a_result_is_overwritten(between, traced):
    model = pruned(Overwritten(between, traced))
    quick = sparse.sparsify(model, autotune=False)
    x = torch.randn(2, CHANNELS, 7, 5, requires_grad=True)
    found, wanted = (torch.autograd.grad(m(x).square().sum(), x)[0] for m in (quick, model))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
