"""The solve as an operation: checks of values, the solver, the warning.

Everything that looks at values happens in here, where tensors are plain: outside they may be
wrapped by torch.func or traced by torch.compile.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ConvergenceWarning, _runtime, _sinkhorn
from .._ops import library
from .._sinkhorn import Problem
from ..reference import sinkhorn
from . import _kernel, _solve, _tiles
from ._checks import check_values
from ._methods import check_newton


def native(tensor: Tensor) -> ModuleType | None:
    """The compiled solver and its passes over the plan, where they serve.

    They do not where this build has no kernels for the device, nor where the environment asks
    for the reference.
    """
    compiled = _runtime.has_kernels(tensor.device) and _runtime.backend() != "reference"
    return _solve if compiled else None


class Options(NamedTuple):
    """How to solve, and for whom."""

    function: str
    method: str = "auto"
    max_iter: int = 10_000
    tol: float = 1e-9
    check_every: int = 10
    mass_tol: float = 1e-8  # of the equality of masses, relative
    narrow: bool = False  # costs or points are exact in float32, in which the solver has them


DOUBLE_EPS = torch.finfo(torch.float64).eps
HOPELESS = 1e3  # marginal error of a plan whose exponents are nothing but rounding
SHARE = 0.01  # of tol that the rounding of a potential may be without a second look

#: Where no caller of this package is.
_PASSED_OVER = (
    str(Path(__file__).parents[1]),
    str(Path(torch.__file__).parent),
    contextlib.__file__,
)


@dataclass
class Watch:
    """What one public call sees of its solves beside their results."""

    callback: Callable[[int, Tensor], object] | None = None
    history: list[tuple[int, float]] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


class _Current(threading.local):
    watch: Watch | None = None


_current = _Current()


def watching(
    callback: Callable[[int, Tensor], object] | None = None,
) -> contextlib.AbstractContextManager[Watch]:
    """Collect history and complaints of the solves within; at the end warn once, if at all.

    A graph of torch.compile has no place for either: there each solve warns for itself.
    """
    if torch.compiler.is_compiling():
        return contextlib.nullcontext(Watch())
    return _watching(callback)


@contextlib.contextmanager
def _watching(callback: Callable[[int, Tensor], object] | None) -> Iterator[Watch]:
    outer, watch = _current.watch, Watch(callback)
    _current.watch = watch
    try:
        yield watch
    finally:
        _current.watch = outer
    if watch.complaints:
        warn(watch.complaints[0])


def warn(text: str) -> None:
    """A ConvergenceWarning that points at the caller of this package."""
    watch = _current.watch
    if watch is not None:
        watch.complaints.append(text)
        return
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PASSED_OVER):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, ConvergenceWarning, stacklevel=level)


def _run(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _runtime.spare_forked_child()
    given: list[Any] = [_plain(t) if isinstance(t, Tensor) else t for t in arguments]
    count = len(Problem._fields)
    problem, (f, g), options = (
        Problem(*given[:count]),
        given[count : count + 2],
        Options(*given[count + 2 :]),
    )
    _check(problem, f, g, options)
    if options.narrow:
        cost, x, y = (None if t is None else t.to(torch.float32) for t in problem[2:5])
        problem = problem._replace(cost=cost, x=x, y=y)
    check_values(options.function, problem, f, g, options.mass_tol)
    solver = native(problem.a)
    if solver is not None and options.method == "newton":
        check_newton(options.function, problem)
    watch = _current.watch
    a, b, eps = problem.a, problem.b, problem.eps
    # Masses of one, and equal to the last digit: P = m P~ where e^(f~ + g~) = m e^(f + g).
    balanced = torch.isinf(problem.rho).all(1, keepdim=True)
    mass = torch.where(balanced, a.sum(1, keepdim=True), 1.0)
    half = eps[:, None] * mass.log() / 2
    problem = problem._replace(
        a=a / mass, b=b / torch.where(balanced, b.sum(1, keepdim=True), 1.0)
    )
    f, g = (None if t is None else t + half for t in (f, g))
    solve = partial(
        (solver or sinkhorn).solve,
        method=options.method,
        check_every=options.check_every,
        callback=None if watch is None else watch.callback,
    )
    solution = solve(problem, f, g, max_iter=options.max_iter, tol=options.tol)
    solution = _returned(problem, solution, half, options.tol)
    near = solution.converged & (solution.error > options.tol)
    if bool(near.any()):
        solution = _once_more(problem, solution, near.nonzero()[:, 0], half, options, solve)
    lost = ~solution.converged & ~(solution.error < HOPELESS)
    if bool(lost.any()):
        solution = _lowered(problem, solution, lost.nonzero()[:, 0], half)
    if watch is not None:
        watch.history.extend(solution.history)
    f, g, error, n_iter, converged, _ = solution
    converged = converged & (error <= options.tol)
    if not bool(converged.all()):
        warn(_complaint(options, error, n_iter, converged))
    return f, g, error.contiguous(), n_iter.contiguous(), converged.contiguous()


def _returned(
    problem: Problem, solution: _solve.Solution, half: Tensor, tol: float
) -> _solve.Solution:
    """The potentials for masses as given, and the errors of those."""
    f, g = solution.f - half, solution.g - half
    error = _confirmed(problem, f + half, g + half, solution, tol)
    return solution._replace(f=f, g=g, error=error)


def _once_more(
    problem: Problem,
    solution: _solve.Solution,
    at: Tensor,
    half: Tensor,
    options: Options,
    solve: Callable[..., _solve.Solution],
) -> _solve.Solution:
    """What met tol only before its potentials were rounded: on, to half of tol.

    Where rounding allows no more, as many steps as before are the most that this costs.
    """
    before = int(solution.n_iter[at].max())
    steps = min(before, options.max_iter - before)
    if steps < 1:
        return solution
    chosen, half = problem.pick(at), half[at]
    f, g = (t[at] + half for t in (solution.f, solution.g))
    again = solve(chosen, f, g, max_iter=steps, tol=options.tol / 2)
    # The error decides, not whether half of tol was met.
    again = again._replace(converged=torch.isfinite(again.error))
    again = _returned(chosen, again, half, options.tol)
    better = again.error < solution.error[at]
    n_iter = solution.n_iter.index_add(0, at, again.n_iter)
    f, g, error = (
        old.index_copy(0, at[better], new[better])
        for old, new in zip(solution[:3], again[:3], strict=True)
    )
    history = solution.history + [(before + i, e) for i, e in again.history]
    return _solve.Solution(f, g, error, n_iter, solution.converged, history)


def _confirmed(
    problem: Problem, f: Tensor, g: Tensor, solution: _solve.Solution, tol: float
) -> Tensor:
    """The errors, measured again where the rounding of f and g themselves may show in them."""
    reach = f.abs().amax(1) + g.abs().amax(1)
    is_in_doubt = solution.converged & (SHARE * tol * problem.eps < DOUBLE_EPS * reach)
    at = is_in_doubt.nonzero()[:, 0]
    if not len(at):
        return solution.error
    return solution.error.index_copy(0, at, _errors(problem.pick(at), f[at], g[at]))


def _lowered(
    problem: Problem, solution: _solve.Solution, at: Tensor, half: Tensor
) -> _solve.Solution:
    """Potentials without regularisation, for an eps below what float64 tells costs apart by.

    With f_i = min_j (C_ij - g_j), some ulps less, no entry of the plan exceeds that of a b'.
    The value is then near the dual optimum of eps = 0, and finite as all else.
    """
    chosen, half = problem.pick(at), half[at]
    f, g = (torch.nan_to_num(t[at] + half, 0.0, 0.0, 0.0) for t in (solution.f, solution.g))
    hidden = torch.where(chosen.b > 0, -g, torch.inf)[:, None, :]
    parts = [
        (_kernel.costs(*part[2:7]) + hidden).amin(2) for _, part, _ in _kernel.blocks(chosen, f)
    ]
    least = torch.cat(parts, 1)
    ulps = 4 * DOUBLE_EPS * (least.abs() + g.abs().amax(1, keepdim=True))
    f = torch.where(torch.isfinite(least), least - ulps, f)
    return solution._replace(
        f=solution.f.index_copy(0, at, f - half),
        g=solution.g.index_copy(0, at, g - half),
        error=solution.error.index_copy(0, at, _errors(chosen, f, g)),
    )


def _errors(problem: Problem, f: Tensor, g: Tensor) -> Tensor:
    """The marginal errors, relative to the mass, of the plan as anyone recomputes it."""
    a, b, rho = problem.a, problem.b, problem.rho
    eb, ea = _tiles.plain_products(problem, f, g, b[:, :, None], a[:, :, None])
    rows = _kernel.weighted(a, eb[:, :, 0] - torch.exp(-f / rho[:, :1])).abs().sum(1)
    columns = _kernel.weighted(b, ea[:, :, 0] - torch.exp(-g / rho[:, 1:])).abs().sum(1)
    mass = torch.maximum(a.sum(1), b.sum(1))
    return (rows + columns) / mass


def _check(problem: Problem, f: Tensor | None, g: Tensor | None, options: Options) -> None:
    """Dtypes and shapes, also of fake tensors."""
    _sinkhorn.check_solve(
        options.function, problem, f, g, options.max_iter, options.check_every
    )


def _plain(tensor: Tensor) -> Tensor:
    return tensor.resolve_neg().contiguous()


def _complaint(options: Options, error: Tensor, n_iter: Tensor, converged: Tensor) -> str:
    worst = int(torch.where(converged, -1.0, error.nan_to_num(torch.inf)).argmax())
    count = int(n_iter[worst])
    missed = int((~converged).sum())
    advice = "raise max_iter, tol or eps"
    if count < options.max_iter:
        advice = "rounding lets it get no further: raise tol or eps"
    which = "" if len(error) == 1 else f" in {missed} of {len(error)} problems"
    return (
        f"{options.function}: not converged{which} after {count} iteration"
        f"{'s' * (count != 1)}: the marginal error is {float(error[worst]):.3g} but tol "
        f"{options.tol:.3g}; {advice}"
    )


library.define(
    "ot_solve(Tensor a, Tensor b, Tensor? cost, Tensor? x, Tensor? y, str kind, float scale, "
    "Tensor eps, Tensor rho, Tensor? f, Tensor? g, str function, str method, int max_iter, "
    "float tol, int check_every, float mass_tol, bool narrow) "
    "-> (Tensor f, Tensor g, Tensor error, Tensor n_iter, Tensor converged)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
library.impl("ot_solve", _run, "CPU")
library.impl("ot_solve", _run, "CUDA")


@torch.library.register_fake("curvkern::ot_solve", lib=library)
def _fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    count = len(Problem._fields)
    problem, options = Problem(*arguments[:count]), Options(*arguments[count + 2 :])
    _check(problem, arguments[count], arguments[count + 1], options)
    a, b, eps = problem.a, problem.b, problem.eps
    return (
        a.new_empty(a.shape),
        b.new_empty(b.shape),
        eps.new_empty(eps.shape),
        eps.new_empty(eps.shape, dtype=torch.int64),
        eps.new_empty(eps.shape, dtype=torch.bool),
    )
