"""Native Hessian products against torch's double backward: rule by rule, and whole networks."""

from __future__ import annotations

import gc
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from curvkern._tangents import Graph, kernels
from curvkern.curvature import hessian_diagonal, hvp
from curvkern.curvature._hvp import Hessian
from curvkern.optim import OASIS, AdaHessian, SophiaH, _products
from tangent_models import Entry, Problem, filled, models, nodes

MODELS = pytest.mark.parametrize("name", models(torch.float64))


def signs(params: list[Tensor], seed: int = 1) -> list[Tensor]:
    return [filled(*p.shape, seed=seed + i, dtype=p.dtype).sign() for i, p in enumerate(params)]


def expected(params: list[Tensor], loss: Callable[[], Tensor], v: list[Tensor]) -> list[Any]:
    """The gradient and the product, by double backward in operations that have one."""
    with sdpa_kernel(SDPBackend.MATH):
        grads = torch.autograd.grad(loss(), params, create_graph=True)
        found = torch.autograd.grad(grads, params, v, allow_unused=True)
    zeros = (
        torch.zeros_like(p) if h is None else h for h, p in zip(found, params, strict=True)
    )
    return [[g.detach() for g in grads], list(zeros)]


def distance(found: list[Any], truth: list[Any]) -> float:
    a, b = (torch.cat([t.detach().double().flatten() for t in one]) for one in (found, truth))
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


@pytest.mark.parametrize("name", nodes())
def test_rules(name: str) -> None:
    """Each of them in float64, with several products of one graph."""
    run: Entry = nodes()[name]
    p = filled(3, 4).requires_grad_()
    scale = filled(seed=2).requires_grad_()
    params = [p, scale]

    def loss() -> Tensor:
        return (run(torch.tanh(p * 0.7)) * scale).square().mean()

    graph = Graph(loss(), params)
    bar = 1e-10 if name != "casts" else 1e-6
    for seed in range(2):
        v = signs(params, seed)
        truth = expected(params, loss, v)
        for got, true in zip(graph.products(v, keep=True), truth, strict=True):
            assert distance(got, true) <= bar


def test_every_rule_is_used() -> None:
    """Fallbacks are not what the cases above compare."""
    p = filled(3, 4).requires_grad_()
    unknown = {
        name: Graph(run(torch.tanh(p)).square().mean(), [p]).unknown()
        for name, run in nodes().items()
    }
    allowed = {"in_place", "logsumexp", "maximum", "more_losses", "power"}
    assert all(unknown[name] for name in ("unknown", "unknown_chain"))
    assert [n for n, found in unknown.items() if found and n not in allowed] == [
        "unknown", "unknown_chain",
    ]  # fmt: skip


@MODELS
@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_networks(name: str, dtype: torch.dtype, bar: float) -> None:
    params, loss = models(dtype)[name]()
    v = signs(params)
    grads, products = Graph(loss(), params).products(v)
    truth = expected(params, loss, v)
    assert distance(grads, truth[0]) <= bar / 5
    assert distance(products, truth[1]) <= bar


@MODELS
def test_known_nodes(name: str) -> None:
    """No network of these falls back anywhere."""
    params, loss = models(torch.float64)[name]()
    assert Graph(loss(), params).unknown() == []


def network() -> Problem:
    return models(torch.float32)["resnet"]()


def test_twice_and_on_two_threads(thread_counts: Any) -> None:
    """R47: the same bits, and on other threads the same to rounding."""
    params, loss = network()
    v = signs(params)
    found = []
    for count in (1, 1, 2):
        thread_counts(count)
        found.append(hvp(loss(), params, v, mode="native"))
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert distance(found[2], found[0]) <= 1e-5


class Once(torch.autograd.Function):
    """A square that cannot be differentiated twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * ctx.saved_tensors[0] * g


class Twice(Once):
    """One that can."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * ctx.saved_tensors[0] * g


def test_custom_functions() -> None:
    p = filled(3).requires_grad_()
    v = [torch.ones_like(p)]
    found = hvp(Twice.apply(p).pow(2).sum(), [p], v, mode="native")[0]
    torch.testing.assert_close(found, 12 * p.detach().square())
    for mode in ("native", "auto", "reverse"):
        with pytest.raises(RuntimeError, match="second derivative"):
            hvp(Once.apply(p).pow(2).sum(), [p], v, mode=mode)


def test_parameters_used_twice_shared_and_unused() -> None:
    """R19: zeros where the loss does not depend on a parameter, or not on its gradient."""
    W, b = filled(4, 4).requires_grad_(), filled(4, seed=1).requires_grad_()
    unused, line = filled(2).requires_grad_(), filled(2, seed=3).requires_grad_()
    x = filled(3, 4, seed=2)
    params = [W, b, unused, line]

    def loss() -> Tensor:
        h = torch.tanh(x @ W + b)
        return (h @ W.T @ W + b).square().sum() + line.sum()

    v = signs(params)
    found = hvp(loss, params, v, mode="native")
    for a, e in zip(found, hvp(loss, params, v, mode="reverse"), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10)
    assert found[2].tolist() == found[3].tolist() == [0, 0]
    assert hvp(b[0] * 1, b, v[1], mode="native").tolist() == [0] * 4
    only = hvp(loss, [b], [v[1]], mode="native")  # the others are constants
    torch.testing.assert_close(only, hvp(loss, [b], [v[1]], mode="reverse"))


def test_results_share_no_memory() -> None:
    p, q = (filled(3, seed=i).requires_grad_() for i in range(2))
    v = [torch.ones(3, dtype=p.dtype), torch.ones(3, dtype=p.dtype)]
    found = hvp(((p + q).square() / 2).sum(), [p, q], v, mode="native")
    assert [t.tolist() for t in found] == [[2] * 3] * 2
    found[0].zero_()
    assert found[1].tolist() == [2] * 3
    assert v[0].tolist() == [1] * 3


def test_saved_tensors_that_changed() -> None:
    """R34: torch's own guard."""
    p, x = filled(3).requires_grad_(), filled(3, seed=1)
    loss = (p * x).square().sum()
    x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        hvp(loss, p, torch.ones_like(p), mode="native")


def test_graph_that_is_gone() -> None:
    p = filled(3).requires_grad_()
    loss = torch.tanh(p).sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="the graph of the loss is gone"):
        hvp(loss, p, torch.ones_like(p), mode="native")


def test_checkpoint_and_packed_tensors() -> None:
    """What was packed is unpacked; "auto" leaves that to torch, once a block."""
    W = filled(4, 4).requires_grad_()
    x = filled(3, 4, seed=1)
    v = signs([W])[0]

    def block(h: Tensor) -> Tensor:
        return torch.tanh(torch.tanh(h @ W) @ W)

    def loss() -> Tensor:
        return checkpoint(block, checkpoint(block, x, use_reentrant=False),
                          use_reentrant=False).square().sum()  # fmt: skip

    truth = hvp(block(block(x)).square().sum(), W, v, mode="reverse")
    for mode in ("native", "auto"):
        torch.testing.assert_close(hvp(loss, W, v, mode=mode), truth)
    with torch.autograd.graph.save_on_cpu():
        packed = block(x).square().sum()
    assert not Graph(packed, [W]).is_plain()
    torch.testing.assert_close(
        hvp(packed, W, v, mode="native"), hvp(block(x).square().sum(), W, v, mode="reverse")
    )


def test_autocast() -> None:
    """R36: bfloat16 within, float32 products."""
    W = filled(8, 8, dtype=torch.float32).requires_grad_()
    x = filled(6, 8, seed=1, dtype=torch.float32)
    v = signs([W])[0]

    def loss() -> Tensor:
        return torch.nn.functional.linear(x, W).float().tanh().square().mean()

    exact = hvp(loss, W, v)
    with torch.autocast("cpu", torch.bfloat16):
        found = hvp(loss, W, v, mode="native")
    assert found.dtype is torch.float32
    assert distance([found], [exact]) < 0.05


def test_leaves_memory_and_graph_alone() -> None:
    """The graph can be used again, and no tangent outlives the call."""
    params, loss = network()
    value = loss()
    v = signs(params)

    def count() -> int:
        return sum(issubclass(type(o), Tensor) for o in gc.get_objects())

    hvp(value, params, v, mode="native")
    before = count()
    for _ in range(3):
        hvp(value, params, v, mode="native")
    assert count() == before
    value.backward()
    assert params[0].grad is not None


def test_modes_and_refusals() -> None:
    p = filled(3).requires_grad_()
    q = p * 2
    with pytest.raises(ValueError, match="mode 'native' takes parameters that are leaves"):
        hvp(q.square().sum(), q, torch.ones_like(q), mode="native")
    with pytest.raises(TypeError, match="mode 'native' takes real tensors"):
        hvp(torch.fft.rfft(p).abs().sum(), p, torch.ones_like(p), mode="native")
    table = torch.nn.Embedding(4, 3, sparse=True)
    loss = table(torch.tensor([1, 2])).square().sum()
    with pytest.raises(TypeError, match="must be dense"):
        hvp(loss, table.weight, torch.ones(4, 3), mode="native")


def test_older_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its nodes do not tell what they take: "auto" goes by double backward."""
    W = filled(1024, 1024, dtype=torch.float32).div(32).requires_grad_()
    x = filled(64, 1024, seed=1, dtype=torch.float32)

    def loss() -> Tensor:
        return torch.tanh(x @ W).square().mean()

    v = torch.ones_like(W)
    assert Hessian("test", loss, [W], "auto").graph is not None
    monkeypatch.setattr(_products, "tells_shapes", lambda node: False)
    assert Hessian("test", loss, [W], "auto").graph is None
    assert torch.equal(hvp(loss(), W, v), hvp(loss(), W, v, mode="reverse"))
    words = rf"hvp: mode 'native' needs a torch .* got {re.escape(torch.__version__)}; update"
    with pytest.raises(RuntimeError, match=words):
        hvp(loss(), W, v, mode="native")
    with pytest.raises(RuntimeError, match="OASIS: mode 'native' needs a torch"):
        OASIS([W], hvp="native").step(loss)
    before = W.detach().clone()
    OASIS([W]).step(loss)
    assert not torch.equal(W, before)


# The optimizers ---------------------------------------------------------------------------


def trained(
    name: str, mode: str, make: Any, steps: int = 3, **options: Any
) -> tuple[list[Tensor], Any]:
    params, loss = models(torch.float64)[name]()
    params = params[:-1]  # the last one is a constant to the optimizer
    optimizer = make([*params, filled(2).requires_grad_()], hvp=mode, **options)
    with sdpa_kernel(SDPBackend.MATH):
        for _ in range(steps):
            optimizer.step(loss)
    return params, optimizer


@pytest.mark.parametrize("name", ["resnet", "gpt", "grouped"])
@pytest.mark.parametrize("make", [AdaHessian, OASIS, SophiaH])
def test_optimizers_move_alike(name: str, make: Any) -> None:
    """With an unused parameter, several probes, and gradients from the same pass."""
    found = trained(name, "native", make, n_probes=2)
    truth = trained(name, "reverse", make, n_probes=2)
    assert distance(found[0], truth[0]) <= 1e-10


def test_steps_that_are_refused_change_nothing() -> None:
    """R14: a gradient that is not finite, of a finite loss."""
    p = torch.zeros(3, requires_grad=True)
    optimizer = AdaHessian([p], hvp="native")
    with pytest.raises(ValueError, match="gradients must be finite, got 3"):
        optimizer.step(loss=p.abs().sqrt().sum())
    assert p.tolist() == [0] * 3
    with pytest.raises(ValueError, match="hvp must be"):
        AdaHessian([p], hvp="forward")


def test_flat_memory() -> None:
    """R37: sixty steps without the garbage collector."""
    params, loss = network()
    optimizer = AdaHessian(params, lr=1e-3, hvp="native")

    def count() -> int:
        return sum(issubclass(type(o), Tensor) for o in gc.get_objects())

    for _ in range(3):
        optimizer.step(loss)
    gc.collect()
    gc.disable()
    try:
        before = count()
        for _ in range(60):
            optimizer.step(loss)
        assert count() == before
    finally:
        gc.enable()


def test_auto_is_native_for_large_layers() -> None:
    """Many products of one graph, and the choice itself."""
    W = filled(256, 256, dtype=torch.float32).div(16).requires_grad_()
    x = filled(64, 256, seed=1, dtype=torch.float32)

    def loss() -> Tensor:
        return torch.tanh(x @ W).square().mean()

    graph = Graph(loss(), [W])
    assert graph.is_plain()
    assert not graph.is_large()
    V = filled(1024, 1024, dtype=torch.float32).requires_grad_()
    assert Graph(torch.tanh(x.repeat(1, 4) @ V).mean(), [V]).is_large()
    probes = [signs([W], seed) for seed in range(3)]
    many = Hessian("test", loss, [W], "native")
    assert many.graph is not None
    for z in probes:
        torch.testing.assert_close(
            many.product(z), hvp(loss, [W], z, mode="reverse"), rtol=1e-4, atol=1e-7
        )
    assert many.graph.kept is not None
    diagonal = hessian_diagonal(loss, [W], probes=probes)[0]
    mean = sum(z[0] * many.product(z)[0] for z in probes) / 3
    torch.testing.assert_close(diagonal, mean, rtol=1e-4, atol=1e-7)


# Compiled passes --------------------------------------------------------------------------

LAYERS: dict[str, Callable[[], tuple[torch.nn.Module, tuple[int, ...]]]] = {
    "channels": lambda: (torch.nn.BatchNorm2d(5), (3, 5, 3, 7)),
    "plain channels": lambda: (torch.nn.BatchNorm1d(3, affine=False), (4, 3, 37)),
    "rows": lambda: (torch.nn.LayerNorm(33), (130, 33)),
    "plain rows": lambda: (
        torch.nn.LayerNorm((2, 5), elementwise_affine=False), (7, 2, 5)
    ),
    "gelu": lambda: (torch.nn.GELU(), (3, 41)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_compiled_passes(
    name: str, dtype: torch.dtype, bar: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the plain formulas, in float64."""
    found = []
    for compiled, kind in ((True, dtype), (False, torch.float64)):
        if not compiled:
            monkeypatch.setattr(kernels, "takes", lambda *_: False)
        layer, shape = LAYERS[name]()
        layer.to(kind)
        with torch.no_grad():
            for i, p in enumerate(layer.parameters()):
                p.copy_(filled(*p.shape, seed=10 + i))
        x = (filled(*shape) * 2 + 1).to(kind).requires_grad_()
        weight = filled(*shape, seed=3).to(kind).requires_grad_()
        params = [x, weight, *layer.parameters()]
        loss = (torch.tanh(layer(x * weight)) * weight).square().sum()
        graph = Graph(loss, params)
        products = [graph.products(signs(params, seed), keep=True) for seed in range(2)]
        found.append([[t.double() for t in a + b] for a, b in products])
    for got, true in zip(*found, strict=True):
        assert distance(got, true) <= bar


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"groups": 2**32, "inner": 2**32, "by_channel": True}, ValueError, "groups of"),
        ({"inner": 5}, ValueError, "x does not consist of groups of 5 elements"),
        ({"groups": 2, "inner": 3}, ValueError, "groups of 3"),
        ({"groups": 0}, ValueError, "groups of"),
        ({"xd": torch.ones(4, 5)}, ValueError, "xd has 20 elements, expected 24"),
        ({"w": torch.ones(4)}, ValueError, "w has 4 elements, expected 6"),
        ({"mean": torch.ones(4, dtype=torch.float64)}, TypeError, "mean"),
        ({"y": torch.ones(6, 4)}, ValueError, "y has shape"),
        ({"x": torch.ones(4, 6).half()}, TypeError, "x must be"),
        ({"x": torch.ones(6, 4).T}, ValueError, "contiguous"),
    ],
)
def test_what_the_passes_refuse(
    change: dict[str, Any], kind: type[Exception], words: str
) -> None:
    """R22, R25, R31: nothing is read or written."""
    given = {"x": torch.ones(4, 6), "xd": torch.ones(4, 6), "w": None, "wd": None, "bd": None,
             "mean": torch.ones(4), "r": torch.ones(4), "groups": 1, "inner": 6,
             "by_channel": False, "y": torch.zeros(4, 6)} | change  # fmt: skip
    with pytest.raises(kind, match=words):
        kernels.module().norm_tangent(**given)


@pytest.mark.parametrize("name", ["resnet", "gpt"])
def test_threads_change_no_bit_of_the_passes(name: str, thread_counts: Any) -> None:
    params, loss = models(torch.float64)[name]()
    thread_counts(1)
    value, v = loss(), signs(params)
    first = Graph(value, params).products(v)[1]
    thread_counts(2)
    assert distance(Graph(value, params).products(v)[1], first) <= 1e-13


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no peak to read")
def test_peak_memory(run_python: Any) -> None:
    """Twice that of a gradient, where double backward takes two and a half times."""
    script = """
        import torch
        from torch import nn
        from curvkern._bench.machine import peak_MiB
        from curvkern.curvature import hvp
        torch.set_num_threads(1)
        layers = [one for _ in range(12) for one in (
            nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())]
        net = nn.Sequential(*layers)
        x = torch.randn(32, 8, 32, 32)
        params = list(net.parameters())
        v = [torch.ones_like(p) for p in params]
        loss = lambda: net(x).square().mean()
        native = lambda: hvp(loss, params, v, mode="native")
        gradient = lambda: torch.autograd.grad(loss(), params)
        for call in (native, gradient):
            call()
        print(peak_MiB(native) / peak_MiB(gradient))
    """
    # Freed memory goes back at once, so that the peak is what is in use.
    keys = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
    environment = dict(zip(keys, ("65536", "65536", "0"), strict=True))
    done = run_python(textwrap.dedent(script), environment=environment)
    assert float(done.stdout) <= 2.3
