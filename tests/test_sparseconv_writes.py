"""Models that write into tensors, or whose arguments can be left out, stay what they are."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from curvkern import sparse
from sparseconv_chains import measuring

CHANNELS = 8


class Net(nn.Module):
    def __init__(self, forward) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(CHANNELS, CHANNELS, 1), nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.d = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS)
        self.p = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.same = nn.Identity()
        self.pool, self.act, self.gate = nn.AdaptiveAvgPool2d(1), nn.ReLU(), nn.Sigmoid()
        self.inplace = nn.ReLU(inplace=True)
        self.way = forward

    def scale(self, x):
        return self.gate(self.b(self.act(self.a(self.pool(x)))))

    def forward(self, x):
        return self.way(self, x * 1)


def source_written(net, x):
    y = net.a(x)
    x.zero_()
    return net.b(net.d(y))


def part_written(net, x):
    y = net.a(x)
    x[:, 0].copy_(x[:, 1])
    return net.b(net.d(y))


def view_written(net, x):
    view = x[:, :2]
    y = net.a(x)
    view.mul_(3)
    return net.b(net.d(y))


def alias_written(net, x):
    z = net.a(x)
    alias = net.same(z)
    y = net.d(z)
    alias.mul_(2)
    return net.b(y)


def written_by_module(net, x):
    y = net.a(x)
    z = net.p(y)
    net.inplace(y)
    return net.b(net.d(z)) + y


def term_written_before_the_sum(net, x):
    y = net.b(net.d(net.a(x)))
    x.mul_(2)
    return F.relu(y + x)


def term_takes_the_sum(net, x):
    z = net.p(x)
    z.add_(net.b(net.d(x)))
    return F.relu(z)


def alias_takes_the_sum(net, x):
    z = net.p(x)
    alias = z
    z += net.b(net.d(x))
    return net.a(z) + alias


def scaled_in_place(net, x):
    y = net.d(x)
    alias = y
    y *= net.scale(y)
    return net.p(y) + alias


def scaled_after_a_write(net, x):
    scale = net.scale(x)
    x.mul_(2)
    return net.p(x * scale)


WAYS = (
    source_written,
    part_written,
    view_written,
    alias_written,
    written_by_module,
    term_written_before_the_sum,
    term_takes_the_sum,
    alias_takes_the_sum,
    scaled_in_place,
    scaled_after_a_write,
)


def pruned(net: nn.Module) -> nn.Module:
    return sparse.magnitude_prune_(net, 0.75).eval()


def assert_same(net: nn.Module, *arguments, **options) -> nn.Module:
    quick = sparse.sparsify(copy.deepcopy(net), autotune=False, **options)
    truth = copy.deepcopy(net).double()(*(argument.double() for argument in arguments))
    torch.testing.assert_close(quick(*arguments).double(), truth, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(quick(*arguments).double(), truth, rtol=1e-4, atol=1e-5)
    return quick


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_writes(way, fuse):
    x = torch.randn(2, CHANNELS, 9, 7)
    assert_same(pruned(Net(way)), x, fuse_activation=fuse)


@pytest.mark.parametrize("chain", [1.0, 3.0])
@pytest.mark.parametrize("dense", [0.3, 0.9, 1.9])
def test_writes_whatever_is_the_quickest(chain, dense, monkeypatch):
    measuring(monkeypatch, chain=chain, dense=dense)
    x = torch.randn(2, CHANNELS, 9, 7)
    for way in WAYS:
        net = pruned(Net(way))
        quick = sparse.sparsify(net, example_input=x, min_sparsity=0.5)
        with torch.no_grad():
            torch.testing.assert_close(quick(x), net(x), rtol=1e-4, atol=1e-5)


def test_writes_that_nobody_else_sees_are_fused():
    def way(net, x):
        y = net.b(F.relu_(net.d(net.inplace(net.a(x)))))
        y += x
        x = torch.relu_(y)
        x += net.p(x)
        return x

    quick = assert_same(pruned(Net(way)), torch.randn(1, CHANNELS, 9, 7))
    calls = [node for node in quick.graph.nodes if node.op.startswith("call")]
    assert [str(node.target) for node in calls[1:]] == ["fused_convs_0"]
    assert len(quick.fused_convs_0.steps) == 4


class Optional(nn.Module):
    """Two ways, by what is given."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), nn.ReLU())
        self.head = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x, skip=None, twice: bool = False):
        y = self.head(self.body(x))
        if twice is not False:
            y = y * 2
        return y if skip is None else y + skip


def test_arguments_left_out():
    net, x = pruned(Optional()), torch.randn(2, CHANNELS, 5, 5)
    quick = assert_same(net, x)
    assert_same(net, x, torch.randn(2, CHANNELS, 5, 5))
    torch.testing.assert_close(quick(x, twice=True), 2 * quick(x))


def test_an_argument_that_is_passed_on_is_traced():
    class Resized(Optional):
        def forward(self, x, size=None):
            y = F.interpolate(x, size=size, scale_factor=2.0 if size is None else None)
            return self.head(self.body(y))

    class Passed(Optional):
        def forward(self, x, dtype=None):
            return self.head(self.body(x)).sum(1, dtype=dtype)

    assert type(assert_same(pruned(Passed()), torch.randn(1, CHANNELS, 5, 5))) is not Passed
    assert_same(pruned(Resized()), torch.randn(1, CHANNELS, 5, 5))


@pytest.mark.parametrize("chain", [1.0, 3.0])
@pytest.mark.parametrize("dense", [0.3, 0.9, 1.9])
def test_inputs_by_name(chain, dense, monkeypatch):
    """Whichever is the quickest, of layers as one call, one by one and dense."""

    def way(net, x):
        return F.relu(net.b(input=net.d(input=x)) + net.act(input=x))

    x = torch.randn(1, CHANNELS, 9, 7)
    net = pruned(Net(way)).eval()
    assert_same(net, x)
    measuring(monkeypatch, chain=chain, dense=dense)
    quick = sparse.sparsify(net, example_input=x)
    fused = [m for m in quick.modules() if type(m).__name__ == "FusedConvs"]
    assert bool(fused) == (chain == 1.0 and dense > 0.3)
    with torch.no_grad():
        torch.testing.assert_close(quick(x), net(x), rtol=1e-4, atol=1e-5)


def test_scaling_in_place_that_nobody_else_sees_is_fused():
    def way(net, x):
        y = net.d(x)
        y *= net.scale(y)
        return net.p(y)

    net = Net(way).eval()
    pruned(net.p)  # the layers of the scale stay dense
    quick = assert_same(net, torch.randn(1, CHANNELS, 9, 7))
    assert [step.gate for step in quick.fused_convs_0.steps][-1]
    assert_same(copy.deepcopy(quick), torch.randn(1, CHANNELS, 9, 7))


def test_numbers_that_are_added_to_stay_what_they_were():
    def way(net, x):
        count = before = x.size(1)
        count += 1
        return net.b(net.d(x)) * count / before

    assert_same(pruned(Net(way)), torch.randn(1, CHANNELS, 9, 7))


def test_models_with_writes_are_copied_and_saved(tmp_path):
    quick = sparse.sparsify(pruned(Net(alias_takes_the_sum)), autotune=False)
    x = torch.randn(1, CHANNELS, 9, 7)
    torch.save(quick, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(loaded(x), quick(x))
    assert torch.equal(copy.deepcopy(quick)(x), quick(x))
