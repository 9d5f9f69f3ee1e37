"""curvkern.optim.MFAC: steps against dense algebra, states, refusals."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from curvkern.optim import MFAC

SETTINGS = {
    "plain": {"momentum": 0.0},
    "momentum": {"momentum": 0.8},
    "decay in the window": {"weight_decay": 0.1},
    "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "maximize": {"maximize": True, "weight_decay": 0.02},
    "warmup": {"warmup": 5},
    "bfloat16": {"window_dtype": torch.bfloat16},
}


def network(dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(
        torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)
    ).to(dtype)


def batches(steps: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(steps, 6, 5, dtype=dtype, generator=torch.Generator().manual_seed(5))


def backward(model: torch.nn.Module, x: Tensor) -> Tensor:
    model.zero_grad()
    loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
    loss.backward()
    return loss


def train(model: torch.nn.Module, optimizer: Any, data: Iterable[Tensor]) -> list[Tensor]:
    for x in data:
        backward(model, x)
        optimizer.step()
    return values(model)


def values(model: torch.nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def bits(optimizer: MFAC) -> dict[str, Tensor]:
    """Every tensor and number of a state, by its path."""

    def walk(path: str, value: Any):
        if isinstance(value, dict):
            for key, part in value.items():
                yield from walk(f"{path}/{key}", part)
        elif isinstance(value, (list, tuple)):
            for key, part in enumerate(value):
                yield from walk(f"{path}/{key}", part)
        else:
            yield path, value.clone() if isinstance(value, Tensor) else value

    return dict(walk("", optimizer.state_dict()))


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return one.keys() == two.keys() and all(
        torch.equal(a, two[key]) if isinstance(a, Tensor) else a == two[key]
        for key, a in one.items()
    )


class Dense:
    """The formulas of the docstring with (d, d) matrices, for one set of parameters."""

    def __init__(self, params: list[Tensor], **options: Any) -> None:
        self.params, self.rows, self.steps = params, [], 0
        self.o = {
            "momentum": 0.9,
            "weight_decay": 0.0,
            "decoupled_weight_decay": False,
            "warmup": 0,
            "maximize": False,
            "window_dtype": torch.float64,
            **options,
        }
        self.b: Any = 0.0

    def step(self) -> None:
        o = self.o
        w = torch.cat([p.detach().flatten() for p in self.params])
        g = torch.cat([p.grad.flatten() for p in self.params])
        g = -g if o["maximize"] else g
        if not o["decoupled_weight_decay"]:
            g = g + o["weight_decay"] * w
        g = g.to(o["window_dtype"]).double()
        self.rows = [*self.rows, g][-o["window"] :]
        G = torch.stack(self.rows)
        F = o["damping"] * torch.eye(len(g), dtype=g.dtype) + G.T @ G / o["window"]
        self.steps += 1
        lr = o["lr"] * min(1.0, self.steps / max(1, o["warmup"]))
        self.b = o["momentum"] * self.b + torch.linalg.solve(F, g)
        if o["decoupled_weight_decay"]:
            w = w * (1 - lr * o["weight_decay"])
        w = w - lr * self.b
        with torch.no_grad():
            for p, part in zip(
                self.params, w.split([p.numel() for p in self.params]), strict=True
            ):
                p.copy_(part.view_as(p))


@pytest.mark.parametrize("grouping", ["global", "per_group", "per_param"])
@pytest.mark.parametrize("name", SETTINGS)
def test_steps(name: str, grouping: str) -> None:
    options = {"lr": 1e-2, "damping": 1e-2, "window": 4, "window_dtype": torch.float64}
    options |= SETTINGS[name]
    model, twin = network(), network()
    groups = [list(part.parameters()) for part in (model[0], model[2])]
    optimizer = MFAC([{"params": g} for g in groups], grouping=grouping, **options)
    parts = {
        "global": [list(twin.parameters())],
        "per_group": [list(twin[0].parameters()), list(twin[2].parameters())],
        "per_param": [[p] for p in twin.parameters()],
    }[grouping]
    dense = [Dense(part, **options) for part in parts]
    for x in batches(9):
        backward(model, x)
        optimizer.step()
        backward(twin, x)
        for part in dense:
            part.step()
        # A rounding apart, bfloat16 rounds a gradient to another neighbour.
        bar = 1e-2 if name == "bfloat16" else 1e-8
        torch.testing.assert_close(values(model), values(twin), rtol=bar, atol=bar)


def test_settings_of_groups_and_schedules() -> None:
    """Settings are read at each step, of each group; so is a damping that changes."""
    model, twin = network(), network()
    fixed = {"damping": 1e-2, "window": 3, "window_dtype": torch.float64}
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters()}]
    optimizer = MFAC(groups, 1e-2, grouping="per_group", **fixed)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    dense = [Dense(list(twin[0].parameters()), lr=0.1, **fixed)]
    dense.append(Dense(list(twin[2].parameters()), lr=1e-2, **fixed))
    for t, x in enumerate(batches(6)):
        backward(model, x)
        loss = optimizer.step(lambda x=x: backward(model, x))
        torch.testing.assert_close(loss, backward(twin, x))
        for part in dense:
            part.step()
            part.o["lr"] *= 0.5 if t % 2 else 1
        torch.testing.assert_close(values(model), values(twin))
        schedule.step()
        optimizer.param_groups[1]["damping"] = dense[1].o["damping"] = 0.05


@pytest.mark.parametrize("grouping", ["global", "per_param"])
@pytest.mark.parametrize("name", SETTINGS)
def test_in_backward(name: str, grouping: str) -> None:
    """The same steps, also where gradients are accumulated, clipped, replaced or missing."""
    options = {"lr": 1e-2, "damping": 1e-2, "window": 4, "grouping": grouping, **SETTINGS[name]}
    options.setdefault("window_dtype", torch.float64)
    model, twin = network(), network()
    one = MFAC(model.parameters(), in_backward=True, **options)
    two = MFAC(twin.parameters(), **options)
    met = []
    for t, x in enumerate(batches(9)):
        for m in (model, twin):
            backward(m, x)
            if t == 3:
                (m(x).sum()).backward()
            elif t == 4:
                torch.nn.utils.clip_grad_norm_(m.parameters(), 1e-2)
            elif t == 5:
                m[0].bias.grad = torch.ones(4, dtype=torch.float64)
            elif t == 6:
                m[0].bias.grad = None
            elif t == 7:
                with torch.no_grad():
                    m[2].weight.mul_(0.9)
        met.append([sum(p is not None for p in w._products) for w in one._windows])
        one.step()
        two.step()
        bar = 1e-2 if name == "bfloat16" else 1e-9
        torch.testing.assert_close(values(model), values(twin), rtol=bar, atol=bar)
    # From the second step on backward has met all parameters.
    assert met[1:] == [[4] if grouping == "global" else [1] * 4] * 8


def test_no_gradient_is_zero() -> None:
    """Bit for bit, and without decay: a frozen parameter stays what it is."""
    model, twin = network(), network()
    for m in (model, twin):
        m[2].bias.requires_grad_(False)
    before = model[2].bias.clone()
    one = MFAC(model.parameters(), window=3, weight_decay=0.1, decoupled_weight_decay=True)
    two = MFAC(twin.parameters(), window=3, weight_decay=0.1, decoupled_weight_decay=True)
    for t, x in enumerate(batches(5)):
        for m in (model, twin):
            backward(m, x)
        if t == 2:
            model[0].weight.grad = None
            twin[0].weight.grad.zero_()
            two.param_groups[0]["weight_decay"] = one.param_groups[0]["weight_decay"] = 0.0
        one.step()
        two.step()
        assert all(torch.equal(a, b) for a, b in zip(values(model), values(twin), strict=True))
    assert torch.equal(model[2].bias, before)

    empty = MFAC([torch.ones(2, requires_grad=True)], weight_decay=0.5)
    empty.step()  # as torch's: no gradient at all is no error
    assert empty.param_groups[0]["params"][0].tolist() == [1, 1]


def test_add_param_group() -> None:
    """Before the first step it joins the window, afterwards it has its own."""
    a, b, c = (torch.randn(k, dtype=torch.float64, requires_grad=True) for k in (3, 2, 4))
    twins = [t.detach().clone().requires_grad_() for t in (a, b, c)]
    options = {"lr": 0.05, "damping": 0.1, "window": 3, "window_dtype": torch.float64}
    optimizer = MFAC([a], **options)
    optimizer.add_param_group({"params": [b]})
    dense = [Dense(twins[:2], **options)]
    for t in range(6):
        if t == 2:
            optimizer.add_param_group({"params": c, "lr": 0.2})
            dense.append(Dense(twins[2:], **{**options, "lr": 0.2}))
        for p, q in zip((a, b, c), twins, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        optimizer.step()
        for part in dense:
            part.step()
        torch.testing.assert_close([a, b, c], twins)
    assert len(optimizer.state_dict()["windows"]) == 2


def test_shapes_of_parameters() -> None:
    """0-d, empty, transposed and narrow parameters."""
    scalar = torch.tensor(1.0, requires_grad=True)
    empty = torch.ones(0, 3, requires_grad=True)
    transposed = torch.randn(3, 2).T.requires_grad_()
    half = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    params = [scalar, empty, transposed, half]
    for grouping in ("global", "per_param"):
        optimizer = MFAC(params, lr=1e-2, damping=10.0, window=2, grouping=grouping)
        for _ in range(3):
            before = transposed.detach().clone()
            optimizer.zero_grad()
            (scalar**2 + (transposed**2).sum() + empty.sum() + half.float().sum()).backward()
            optimizer.step()
            # Along -w, and row by row: a transposed update would show.
            assert ((transposed - before) * before < 0).all()
    assert scalar < 1
    assert (half < 1).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("grouping", ["global", "per_param"])
def test_non_finite_gradient(bad: float, grouping: str) -> None:
    """Refused, with parameters, momentum and every window bitwise as they were."""
    data = batches(6)
    model, twin = network(), network()
    one = MFAC(model.parameters(), window=3, grouping=grouping)
    two = MFAC(twin.parameters(), window=3, grouping=grouping)
    for x in (data[0], data[1]):
        train(model, one, [x])
        train(twin, two, [x])
    before, state = values(model), bits(one)
    backward(model, data[2])
    model[2].bias.grad[1] = bad
    with pytest.raises(ValueError, match="finite"):
        one.step()
    assert all(torch.equal(a, b) for a, b in zip(values(model), before, strict=True))
    assert same(bits(one), state)
    train(model, one, data[2:])
    train(twin, two, data[2:])
    assert all(torch.equal(a, b) for a, b in zip(values(model), values(twin), strict=True))

    # Also what only the window's dtype cannot hold, and at the first step.
    w = torch.ones(2, dtype=torch.float64, requires_grad=True)
    w.grad = torch.tensor([1.0, 1e300], dtype=torch.float64)
    optimizer = MFAC([w])
    with pytest.raises(ValueError, match=r"finite in torch.float32, got 1 of 2"):
        optimizer.step()
    assert w.tolist() == [1, 1]
    w.grad.fill_(1.0)
    optimizer.step()


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("steps", [0, 2, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_resume_bit_by_bit(steps: int, dtype: torch.dtype, in_backward: bool) -> None:
    options: dict[str, Any] = {"in_backward": in_backward}
    options |= {"window": 4, "window_dtype": dtype, "weight_decay": 0.01, "warmup": 5}
    data = batches(steps + 6)

    def make(model: torch.nn.Module) -> MFAC:
        groups = [{"params": model[0].parameters(), "lr": 0.01}, {"params": [model[2].weight]}]
        optimizer = MFAC(groups, grouping="per_group", **options)
        optimizer.add_param_group({"params": [model[2].bias]})
        return optimizer

    model = network()
    optimizer = make(model)
    train(model, optimizer, data[:steps])
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    copied, copied_optimizer = copy.deepcopy((model, optimizer))
    wanted = train(model, optimizer, data[steps:])

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    fresh = network()
    other = make(fresh)
    train(fresh, other, batches(3) + 1)  # what it had before does not matter
    fresh.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    got = train(fresh, other, data[steps:])
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert same(bits(other), bits(optimizer))
    got = train(copied, copied_optimizer, data[steps:])
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_a_loaded_state_is_not_shared() -> None:
    model, twin = network(), network()
    one, two = MFAC(model.parameters(), window=2), MFAC(twin.parameters(), window=2)
    train(model, one, batches(3))
    two.load_state_dict(one.state_dict())
    state = bits(two)
    train(model, one, batches(2))
    assert same(bits(two), state)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"lr": -1.0}, ValueError, "lr must be finite and not negative, got -1"),
        ({"lr": float("nan")}, ValueError, "lr"),
        ({"lr": "0.1"}, TypeError, "lr must be a number, got str"),
        ({"momentum": 1.0}, ValueError, r"momentum must be in \[0, 1\), got 1"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay"),
        ({"damping": 0.0}, ValueError, "damping must be positive and finite, got 0"),
        ({"damping": torch.ones(2)}, TypeError, "damping"),
        ({"window": 0}, ValueError, "window must be at least 1, got 0"),
        ({"window": 2.0}, TypeError, "window must be an int, got float"),
        ({"warmup": -1}, ValueError, "warmup must be at least 0, got -1"),
        ({"grouping": "layer"}, ValueError, "one of global, per_group, per_param, got 'layer'"),
        ({"in_backward": 1}, TypeError, "in_backward must be a bool, got int"),
        ({"maximize": 1}, TypeError, "maximize must be a bool"),
        ({"window_dtype": torch.int32}, TypeError, "window_dtype must be"),
        ({"params": [torch.ones(2, dtype=torch.complex64)]}, TypeError, "complex64"),
        ({"params": []}, ValueError, "empty"),
        ({"hesitant": True}, TypeError, "hesitant"),
    ],
)
def test_refusals(options: dict[str, Any], kind: type[Exception], words: str) -> None:
    options = {"params": [torch.ones(2, requires_grad=True)], **options}
    with pytest.raises(kind, match=words):
        MFAC(options.pop("params"), **options)


def test_refusals_within_a_window() -> None:
    a, b = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    groups = [{"params": [a]}, {"params": [b], "damping": 0.1}]
    with pytest.raises(ValueError, match=r"damping is 0\.1 and 1e-05 within one window"):
        MFAC(groups).step()
    a.grad = torch.ones(2).to_sparse()
    with pytest.raises(TypeError, match="gradients must be dense"):
        MFAC([a]).step()
    optimizer = MFAC([b])
    with pytest.raises(ValueError, match="lr"):
        optimizer.add_param_group({"params": [a], "lr": -1})
    assert len(optimizer.param_groups) == 1


def test_damping_changed_on_one_side_is_refused_before_the_step() -> None:
    """Nothing moves when groups of one window come to differ."""
    a, b = (torch.ones(k, requires_grad=True) for k in (2, 3))
    optimizer = MFAC([{"params": [a]}, {"params": [b]}], window=2)
    for p in (a, b):
        p.grad = torch.ones_like(p)
    optimizer.step()
    before = bits(optimizer), a.tolist()
    optimizer.param_groups[1]["damping"] = 0.5
    with pytest.raises(ValueError, match="damping is"):
        optimizer.step()
    optimizer.param_groups[1]["damping"] = 1e-5
    assert same(bits(optimizer), before[0])
    assert a.tolist() == before[1]


@pytest.mark.parametrize("skip", [False, True])
def test_in_backward_under_a_gradient_scaler(skip: bool) -> None:
    """The scale comes off the gradients after backward, behind their version counters."""
    ends = []
    for in_backward in (False, True):
        model = network().float()
        optimizer = MFAC(model.parameters(), lr=1e-2, window=3, in_backward=in_backward)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for t, x in enumerate(batches(6)):
            optimizer.zero_grad()
            scaler.scale(model(x.float()).square().mean()).backward()
            if skip and t == 3:
                model[0].bias.grad.fill_(float("inf"))
            scaler.step(optimizer)
            scaler.update()
        assert optimizer._windows[0].steps == 6 - skip
        ends.append(values(model))
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("in_backward", [False, True])
def test_a_narrow_window_does_not_round_the_step(in_backward: bool) -> None:
    params = [torch.nn.Parameter(torch.randn(50, dtype=torch.float64)) for _ in range(2)]
    (one, two), g = params, torch.randn(4, 50, dtype=torch.float64)
    two.data.copy_(one.data)
    options = {"lr": 1e-2, "damping": 1e-3, "window": 3, "window_dtype": torch.bfloat16}
    optimizer = MFAC([one], in_backward=in_backward, **options)
    dense = Dense([two], **options)
    for row in g:
        for p, step in ((one, optimizer.step), (two, dense.step)):
            p.grad = None
            (p * row).sum().backward()
            step()
    torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("damping", -1.0),
        ("damping", None),
        ("lr", float("nan")),
        ("momentum", 1.5),
        ("warmup", 0.5),
        ("maximize", 1),
    ],
)
def test_a_setting_changed_to_nonsense_stops_the_step(name: str, value: Any) -> None:
    """Before any parameter or window, also those of other groups."""
    model = network()
    groups = [{"params": list(layer.parameters())} for layer in (model[0], model[2])]
    optimizer = MFAC(groups, grouping="per_group")
    train(model, optimizer, batches(2))
    before = bits(optimizer), [v.clone() for v in values(model)]
    kept = optimizer.param_groups[1][name]
    optimizer.param_groups[1][name] = value
    with pytest.raises((TypeError, ValueError), match=name):
        optimizer.step()
    optimizer.param_groups[1][name] = kept
    assert same(bits(optimizer), before[0])
    assert all(map(torch.equal, values(model), before[1]))


def test_a_damping_changed_before_the_state_was_saved() -> None:
    model = network()
    optimizer = MFAC(model.parameters(), window=3, damping=0.1)
    train(model, optimizer, batches(2))
    optimizer.param_groups[0]["damping"] = 10.0
    twin = copy.deepcopy(model)
    again = MFAC(twin.parameters(), window=3)
    again.load_state_dict(optimizer.state_dict())
    for m, o in ((model, optimizer), (twin, again)):
        train(m, o, batches(2))
    assert again._windows[0].fisher.damping == 10.0
    assert all(map(torch.equal, values(model), values(twin)))


@pytest.mark.parametrize("bad", [lambda b: b * float("nan"), lambda b: b.to_sparse()])
def test_momentum_that_cannot_be_true(bad: Any) -> None:
    model = network()
    optimizer = MFAC(model.parameters(), window=3)
    train(model, optimizer, batches(2))
    before, state = bits(optimizer), copy.deepcopy(optimizer.state_dict())
    state["state"][0]["momentum_buffer"] = bad(state["state"][0]["momentum_buffer"])
    with pytest.raises(ValueError, match="momentum_buffer"):
        optimizer.load_state_dict(state)
    assert same(bits(optimizer), before)
    with pytest.raises(TypeError, match="dict"):
        optimizer.load_state_dict(None)  # type: ignore[arg-type]
