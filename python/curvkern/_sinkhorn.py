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

from . import _operands, _runtime, _sinkhorn_device
from ._arguments import memory_error
from ._ops import _contiguous, define, library

#: Costs between points.
KINDS = ("sqeuclidean", "half_sqeuclidean", "euclidean", "l1")
#: The largest number of rows in a history; of more checks every second, fourth, ... is kept.
HISTORY = 4096
#: Problems of so many costs on a GPU take their Newton steps on the CPU: hundreds of launches
#: for each cost more than the copy.
SMALL = 1 << 16

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

    def check(self, op: str) -> tuple[int, int, int]:
        """B, n and m, after the dtypes and shapes of all tensors."""
        if self.cost is not None:
            _operands.dimensions(op, "cost", self.cost, 3)
            batch, n, m = self.cost.shape
        else:
            assert self.x is not None
            assert self.y is not None
            _operands.dimensions(op, "x", self.x, 3)
            _operands.dimensions(op, "y", self.y, 3)
            _operands.same_dtype(op, "y", self.y, "x", self.x)
            batch, n, dims = self.x.shape
            m = self.y.shape[1]
            _operands.has_shape(op, "y", self.y, (batch, m, dims))
            if self.kind not in KINDS:
                raise ValueError(
                    f"{op}: cost must be one of {', '.join(KINDS)}, got '{self.kind}'"
                )
        _operands.shaped(op, "a", self.a, (batch, n))
        _operands.shaped(op, "b", self.b, (batch, m))
        _operands.shaped(op, "eps", self.eps, (batch,))
        _operands.shaped(op, "rho", self.rho, (batch, 2))
        return batch, n, m

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


def _empty(like: Tensor, *shape: int | torch.SymInt) -> Tensor:
    return torch.empty(shape, dtype=torch.float64, device=like.device)


def check_solve(
    op: str,
    problem: Problem,
    f: Tensor | None,
    g: Tensor | None,
    max_iter: int,
    check_every: int,
) -> None:
    """Refuse a problem, or potentials to start from, whose dtypes or shapes do not fit."""
    batch, n, m = problem.check(op)
    _operands.shaped(op, "f", f, (batch, n))
    _operands.shaped(op, "g", g, (batch, m))
    _operands.at_least(op, "max_iter", max_iter, 0)
    _operands.at_least(op, "check_every", check_every, 1)


def _check_products(
    problem: Problem, f: Tensor, g: Tensor, v: Tensor | None, u: Tensor | None
) -> int:
    """The number of columns."""
    op = "sinkhorn_products"
    batch, n, m = problem.check(op)
    _operands.shaped(op, "f", f, (batch, n))
    _operands.shaped(op, "g", g, (batch, m))
    columns = {}
    for name, tensor, points in (("v", v, m), ("u", u, n)):
        if tensor is not None:
            _operands.dimensions(op, name, tensor, 3)
            columns[name] = tensor.shape[2]
            count = next(iter(columns.values()))
            _operands.shaped(op, name, tensor, (batch, points, count))
    return next(iter(columns.values()), 0)


def _check_gradient(problem: Problem, f: Tensor, g: Tensor, u: Tensor, w: Tensor) -> None:
    op = "sinkhorn_points_gradient"
    batch, n, m = problem.check(op)
    for name, tensor, points in (("f", f, n), ("g", g, m), ("u", u, n), ("w", w, m)):
        _operands.shaped(op, name, tensor, (batch, points))


def solve(
    problem: Problem,
    f: Tensor | None,
    g: Tensor | None,
    max_iter: int,
    tol: float,
    check_every: int,
    translate: bool = True,
    anneal: bool = True,
    symmetric: bool = False,
    callback: Callback | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Potentials (B, n), (B, m); info (B, 3): error, iterations, converged; history (h, 2)."""
    check_solve("sinkhorn", problem, f, g, max_iter, check_every)
    a, b = problem.a, problem.b
    if a.is_cuda:
        return _sinkhorn_device.solve(
            _sinkhorn_device.Inputs(*problem), f, g, max_iter, tol, check_every, translate,
            anneal, symmetric, callback, HISTORY,
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
        symmetric, HISTORY, report,
    )  # fmt: skip
    return *out, torch.tensor(history, dtype=torch.float64).reshape(-1, 2)


def holds_costs(problem: Problem) -> bool:
    """Whether :func:`newton` needs a matrix of costs: on the CPU it does."""
    entries = problem.a.shape[1] * problem.b.shape[1]
    return not problem.a.is_cuda or entries <= SMALL


def newton(
    problem: Problem, f: Tensor | None, g: Tensor | None, max_iter: int, tol: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sparse Newton steps: f, g, info as :func:`solve` has them.

    Last comes the error (B, t) after each iteration; NaN after the last. Small problems on a
    GPU are copied to the CPU, and the results back.
    """
    if not holds_costs(problem):
        inputs = _sinkhorn_device.Inputs(*problem)
        return _sinkhorn_device.newton(inputs, f, g, max_iter, tol, HISTORY)
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
    count = _check_products(problem, f, g, v, u)
    a, b = problem.a, problem.b
    if a.is_cuda:
        return _sinkhorn_device.products(_sinkhorn_device.Inputs(*problem), f, g, v, u)
    torch.get_num_threads()
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
    _check_gradient(problem, f, g, u, w)
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


def _dense(a: Tensor, b: Tensor, cost: Tensor, eps: Tensor, *rho: Tensor) -> Problem:
    return Problem(a, b, cost, None, None, "", 1.0, eps, rho[0] if rho else _hard(eps))


def _points(
    a: Tensor,
    b: Tensor,
    x: Tensor,
    y: Tensor,
    kind: str,
    scale: float,
    eps: Tensor,
    *rho: Tensor,
) -> Problem:
    hard_or = rho[0] if rho else _hard(eps)
    return Problem(a, b, None, x, y, kind, scale, eps, hard_or)


def _hard(eps: Tensor) -> Tensor:
    return torch.full((*eps.shape[:1], 2), torch.inf, dtype=torch.float64, device=eps.device)


def _fake_solve(
    problem: Problem,
    f: Tensor | None,
    g: Tensor | None,
    max_iter: int,
    tol: float,
    check_every: int,
    *_: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_solve("sinkhorn", problem, f, g, max_iter, check_every)
    checks = torch.library.get_ctx().new_dynamic_size()
    a, b = problem.a, problem.b
    return _empty(a, *a.shape), _empty(a, *b.shape), _empty(a, len(a), 3), _empty(a, checks, 2)


def _fake_products(
    problem: Problem, f: Tensor, g: Tensor, v: Tensor | None, u: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    count = _check_products(problem, f, g, v, u)
    a, b = problem.a, problem.b
    pv = _empty(a, *a.shape, 0 if v is None else count)
    return pv, _empty(a, *b.shape, 0 if u is None else count), _empty(a, len(a), 2)


def _fake_gradient(problem: Problem, f: Tensor, g: Tensor, u: Tensor, w: Tensor) -> Tensor:
    _check_gradient(problem, f, g, u, w)
    assert problem.x is not None
    return _empty(u, *problem.x.shape)


def _define(
    signature: str,
    problem: Callable[..., Problem],
    function: Callable[..., Any],
    fake: Callable[..., Any],
) -> None:
    """An operation whose first arguments, up to ``eps`` or ``rho``, are those of a problem."""
    names = [argument.split()[-1] for argument in signature.partition("(")[2].split(", ")]
    count = 1 + names.index("rho" if "rho" in names else "eps")

    def of_problem(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: function(problem(*arguments[:count]), *arguments[count:])

    both = of_problem(function)
    define(signature, cpu=both, cuda=both, fake=of_problem(fake))
    name = signature.partition("(")[0]

    def refuse(*_: Any) -> None:
        raise RuntimeError(f"{name}: the operation has no derivatives; functions of ot have")

    torch.library.register_autograd(f"curvkern::{name}", refuse, lib=library)


_DENSE = "Tensor a, Tensor b, Tensor cost, Tensor eps"
_POINTS = "Tensor a, Tensor b, Tensor x, Tensor y, str kind, float scale, Tensor eps"
_SOLVE = (
    "Tensor rho, Tensor? f, Tensor? g, int max_iter, float tol, int check_every, "
    "bool translate=True, bool anneal=True, bool symmetric=False) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
_PRODUCTS = "Tensor f, Tensor g, Tensor? v, Tensor? u) -> (Tensor, Tensor, Tensor)"
_GRADIENT = "Tensor f, Tensor g, Tensor u, Tensor w) -> Tensor"

for _costs, _arguments, _problem in (("dense", _DENSE, _dense), ("points", _POINTS, _points)):
    _define(f"sinkhorn_{_costs}({_arguments}, {_SOLVE}", _problem, solve, _fake_solve)
    _define(
        f"sinkhorn_{_costs}_products({_arguments}, {_PRODUCTS}",
        _problem,
        products,
        _fake_products,
    )
_define(f"sinkhorn_points_gradient({_POINTS}, {_GRADIENT}", _points, gradient, _fake_gradient)
