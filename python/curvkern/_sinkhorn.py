"""Operations of the Sinkhorn family: ``torch.ops.curvkern.sinkhorn_*``.

They take a batch of B problems as checked tensors: weights ``a`` (B, n) and ``b`` (B, m),
``eps`` (B,), ``rho`` (B, 2) in float64; costs as a matrix (B, n, m), or as points ``x``
(B, n, d) and ``y`` (B, m, d) with the name of a cost and its scale, in float32 or float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _runtime, _sinkhorn_device
from ._arguments import memory_error
from ._ops import _contiguous, define

#: The largest number of rows in a history; of more checks every second, fourth, ... is kept.
HISTORY = 4096

Callback = Callable[[int, Tensor], None]


class Problem(NamedTuple):
    """A batch of problems: ``cost``, or points with a cost function, and what is common."""

    a: Tensor
    b: Tensor
    cost: Tensor | None
    x: Tensor | None
    y: Tensor | None
    kind: str
    scale: float
    eps: Tensor
    rho: Tensor

    def pick(self, index: Tensor) -> Problem:
        """Some problems of the batch."""
        a, b, cost, x, y = (None if t is None else t[index] for t in self[:5])
        assert a is not None
        assert b is not None
        eps, rho = self.eps[index], self.rho[index]
        return Problem(a, b, cost, x, y, self.kind, self.scale, eps, rho)

    def on_cpu(self) -> Problem:
        """The same problems on the CPU."""
        cost, x, y = (None if t is None else t.cpu() for t in (self.cost, self.x, self.y))
        a, b, eps, rho = (t.cpu() for t in (self.a, self.b, self.eps, self.rho))
        return self._replace(a=a, b=b, cost=cost, x=x, y=y, eps=eps, rho=rho)

    def native(self) -> tuple[Any, tuple[str, bool, int, int, int, int]]:
        """The argument of the compiled functions, and that of ``sinkhorn_workspace``."""
        tensors = [None if t is None else _contiguous(t) for t in (*self[:5], *self[7:])]
        inputs = (*tensors[:5], self.kind, float(self.scale), *tensors[5:])
        batch, n = self.a.shape
        narrow = (self.x if self.cost is None else self.cost).dtype is torch.float32  # type: ignore[union-attr]
        kind, dims = ("dense", 0) if self.x is None else (self.kind, self.x.shape[2])
        return inputs, (kind, narrow, batch, n, self.b.shape[1], dims)


def _empty(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float64, device=like.device)


def solve(
    problem: Problem,
    f: Tensor | None,
    g: Tensor | None,
    max_iter: int,
    tol: float,
    check_every: int,
    translate: bool = True,
    anneal: bool = True,
    callback: Callback | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Potentials (B, n), (B, m); info (B, 3): error, iterations, converged; history (h, 2)."""
    a, b = problem.a, problem.b
    if a.is_cuda:
        return _sinkhorn_device.solve(
            _sinkhorn_device.Inputs(*problem), f, g, max_iter, tol, check_every, translate,
            anneal, callback, HISTORY,
        )  # fmt: skip
    torch.get_num_threads()  # hands the setting to a new thread
    module = _runtime.cpu_module()
    try:
        inputs, shape = problem.native()
        workspace = _empty(a, module.sinkhorn_workspace(*shape, 0))
        out = _empty(a, *a.shape), _empty(a, *b.shape), _empty(a, len(a), 3)
    except RuntimeError as error:
        raise memory_error("sinkhorn", (*a.shape, b.shape[1]), error) from None
    errors = _empty(a, len(a))
    starts = (None, None) if f is None or g is None else (_contiguous(f), _contiguous(g))
    report = None if callback is None else lambda i: callback(i, errors.clone())
    history = module.sinkhorn_solve(
        inputs, *starts, workspace, *out, errors, max_iter, tol, check_every, translate, anneal,
        HISTORY, report,
    )  # fmt: skip
    return *out, torch.tensor(history, dtype=torch.float64).reshape(-1, 2)


def newton(
    problem: Problem, f: Tensor | None, g: Tensor | None, max_iter: int, tol: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sparse Newton steps for a matrix of costs: f, g, info as :func:`solve` has them.

    Last comes the error (B, t) after each iteration; NaN after the last. Problems on a GPU are
    copied to the CPU, and the results back.
    """
    if problem.a.is_cuda:
        device, host = problem.a.device, problem.on_cpu()
        f, g = (None if t is None else t.cpu() for t in (f, g))
        f, g, info, trace = (t.to(device) for t in newton(host, f, g, max_iter, tol))
        return f, g, info, trace
    torch.get_num_threads()
    a, b, cost = problem.a, problem.b, problem.cost
    assert cost is not None
    try:
        out = [_empty(t, *t.shape) for t in (a, b)]
        for start, target in zip((f, g), out, strict=True):
            target.fill_(0.0) if start is None else target.copy_(start)
        info = _empty(a, len(a), 3)
        trace = torch.full((len(a), min(max_iter, HISTORY)), torch.nan, dtype=torch.float64)
        _runtime.cpu_module().sinkhorn_newton(
            *map(_contiguous, (a, b, cost, problem.eps, problem.rho)), *out, info, trace,
            max_iter=max_iter, tol=tol, warm_start=f is not None,
        )  # fmt: skip
    except RuntimeError as error:
        raise memory_error("sinkhorn", cost.shape, error) from None
    return out[0], out[1], info, trace


def products(
    problem: Problem, f: Tensor, g: Tensor, v: Tensor | None, u: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """``P v`` (B, n, k), ``P' u`` (B, m, k) and the sums of P C and P log(P / a b'), (B, 2)."""
    a, b = problem.a, problem.b
    if a.is_cuda:
        return _sinkhorn_device.products(_sinkhorn_device.Inputs(*problem), f, g, v, u)
    torch.get_num_threads()
    count = 0 if v is None else v.shape[2]
    count = count if u is None else u.shape[2]
    module = _runtime.cpu_module()
    try:
        inputs, shape = problem.native()
        v, u = (None if t is None else _contiguous(t) for t in (v, u))
        workspace = _empty(a, module.sinkhorn_workspace(*shape, max(count, 1)))
        pv = _empty(a, *a.shape, count if v is not None else 0)
        ptu = _empty(a, *b.shape, count if u is not None else 0)
    except RuntimeError as error:
        raise memory_error("sinkhorn_products", (*a.shape, count), error) from None
    totals = _empty(a, len(a), 2)
    module.sinkhorn_products(
        inputs, _contiguous(f), _contiguous(g), v, u, workspace,
        None if v is None else pv, None if u is None else ptu, totals, count,
    )  # fmt: skip
    return pv, ptu, totals


def gradient(problem: Problem, f: Tensor, g: Tensor, u: Tensor, w: Tensor) -> Tensor:
    """``sum_j P_ij (u_i + w_j) dC_ij/dx_i``, (B, n, d)."""
    assert problem.x is not None
    if problem.a.is_cuda:
        return _sinkhorn_device.gradient(_sinkhorn_device.Inputs(*problem), f, g, u, w)
    torch.get_num_threads()
    module = _runtime.cpu_module()
    try:
        inputs, shape = problem.native()
        workspace = _empty(u, module.sinkhorn_workspace(*shape, 1))
        out = _empty(u, *problem.x.shape)
    except RuntimeError as error:
        raise memory_error("sinkhorn_points_gradient", problem.x.shape, error) from None
    module.sinkhorn_points_gradient(
        inputs, *map(_contiguous, (f, g, u, w)), workspace, out
    )  # fmt: skip
    return out


# Registration -------------------------------------------------------------------------------

_DENSE = "Tensor a, Tensor b, Tensor cost, Tensor eps"
_POINTS = "Tensor a, Tensor b, Tensor x, Tensor y, str kind, float scale, Tensor eps"
_SOLVE = (
    "Tensor rho, Tensor? f, Tensor? g, int max_iter, float tol, int check_every, "
    "bool translate=True, bool anneal=True"
)


def _dense(a: Tensor, b: Tensor, cost: Tensor, eps: Tensor, rho: Tensor) -> Problem:
    return Problem(a, b, cost, None, None, "", 1.0, eps, rho)


def _points(
    a: Tensor,
    b: Tensor,
    x: Tensor,
    y: Tensor,
    kind: str,
    scale: float,
    eps: Tensor,
    rho: Tensor,
) -> Problem:
    return Problem(a, b, None, x, y, kind, scale, eps, rho)


def _hard(eps: Tensor) -> Tensor:
    return torch.full((len(eps), 2), torch.inf, dtype=torch.float64, device=eps.device)


def _define(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> None:
    define(schema, cpu=implementation, cuda=implementation, fake=fake)


def _fake_solve(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    checks = torch.library.get_ctx().new_dynamic_size()
    empty = [a.new_empty(s, dtype=torch.float64) for s in (a.shape, b.shape, (len(a), 3))]
    return empty[0], empty[1], empty[2], a.new_empty((checks, 2), dtype=torch.float64)


def _fake_products(
    a: Tensor, b: Tensor, v: Tensor | None, u: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    pv = a.new_empty((*a.shape, 0 if v is None else v.shape[2]))
    return pv, a.new_empty((*b.shape, 0 if u is None else u.shape[2])), a.new_empty(len(a), 2)


_define(
    f"sinkhorn_dense({_DENSE}, {_SOLVE}) -> (Tensor, Tensor, Tensor, Tensor)",
    lambda a, b, cost, eps, rho, *rest: solve(_dense(a, b, cost, eps, rho), *rest),
    fake=lambda a, b, *_: _fake_solve(a, b),
)
_define(
    f"sinkhorn_points({_POINTS}, {_SOLVE}) -> (Tensor, Tensor, Tensor, Tensor)",
    lambda a, b, x, y, kind, scale, eps, rho, *rest: solve(
        _points(a, b, x, y, kind, scale, eps, rho), *rest
    ),
    fake=lambda a, b, *_: _fake_solve(a, b),
)
_define(
    f"sinkhorn_dense_products({_DENSE}, Tensor f, Tensor g, Tensor? v, Tensor? u) "
    "-> (Tensor, Tensor, Tensor)",
    lambda a, b, cost, eps, f, g, v, u: products(
        _dense(a, b, cost, eps, _hard(eps)), f, g, v, u
    ),
    fake=lambda a, b, cost, eps, f, g, v, u: _fake_products(a, b, v, u),
)
_define(
    f"sinkhorn_points_products({_POINTS}, Tensor f, Tensor g, Tensor? v, Tensor? u) "
    "-> (Tensor, Tensor, Tensor)",
    lambda a, b, x, y, kind, scale, eps, f, g, v, u: products(
        _points(a, b, x, y, kind, scale, eps, _hard(eps)), f, g, v, u
    ),
    fake=lambda a, b, x, y, kind, scale, eps, f, g, v, u: _fake_products(a, b, v, u),
)
_define(
    f"sinkhorn_points_gradient({_POINTS}, Tensor f, Tensor g, Tensor u, Tensor w) -> Tensor",
    lambda a, b, x, y, kind, scale, eps, f, g, u, w: gradient(
        _points(a, b, x, y, kind, scale, eps, _hard(eps)), f, g, u, w
    ),
    fake=lambda a, b, x, *_: x.new_empty(x.shape, dtype=torch.float64),
)
