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
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import ConvergenceWarning, _runtime, _sinkhorn
from .._ops import library
from ..reference import sinkhorn
from . import _solve
from ._checks import check_values
from ._costs import MATRIX


def native(tensor: Tensor) -> ModuleType | None:
    """The compiled solver and its passes over the plan, where they serve.

    They do not where this build has no kernels for the device, nor where the environment asks
    for the reference.
    """
    compiled = _runtime.has_kernels(tensor.device) and _runtime.backend() != "reference"
    return _solve if compiled else None


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


def _run(
    a: Tensor,
    b: Tensor,
    x: Tensor,
    y: Tensor | None,
    eps: Tensor,
    rho: Tensor,
    f: Tensor | None,
    g: Tensor | None,
    function: str,
    kind: str,
    scale: float,
    method: str,
    max_iter: int,
    tol: float,
    check_every: int,
    mass_tol: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _check(
        a, b, x, y, eps, rho, f, g, function, kind, scale, method, max_iter, tol, check_every
    )
    _runtime.spare_forked_child()
    a, b, x, eps, rho = (_plain(t) for t in (a, b, x, eps, rho))
    y, f, g = (None if t is None else _plain(t) for t in (y, f, g))
    check_values(function, a, b, x, y, eps, rho, f, g, mass_tol)
    watch = _current.watch
    options: dict[str, Any] = {
        "method": method,
        "max_iter": max_iter,
        "tol": tol,
        "check_every": check_every,
        "callback": None if watch is None else watch.callback,
    }
    # Masses of one, and equal to the last digit: P = m P~ where e^(f~ + g~) = m e^(f + g).
    balanced = torch.isinf(rho).all(1, keepdim=True)
    mass = torch.where(balanced, a.sum(1, keepdim=True), 1.0)
    half = eps[:, None] * mass.log() / 2
    a, b = a / mass, b / torch.where(balanced, b.sum(1, keepdim=True), 1.0)
    f, g = (None if t is None else t + half for t in (f, g))
    solver = native(a) or sinkhorn
    if kind == MATRIX:
        solution = solver.solve_dense(a, b, x, eps, rho, f, g, **options)
    else:
        solution = solver.solve_points(a, b, x, y, kind, eps, rho, f, g, scale=scale, **options)
    if watch is not None:
        watch.history.extend(solution.history)
    if not bool(solution.converged.all()):
        warn(_complaint(function, solution.error, solution.n_iter, solution.converged, tol))
    return (
        solution.f - half,
        solution.g - half,
        *(t.contiguous() for t in (solution.error, solution.n_iter, solution.converged)),
    )


def _check(
    a: Tensor,
    b: Tensor,
    x: Tensor,
    y: Tensor | None,
    eps: Tensor,
    rho: Tensor,
    f: Tensor | None,
    g: Tensor | None,
    function: str,
    kind: str,
    scale: float,
    method: str,
    max_iter: int,
    tol: float,
    check_every: int,
    *_: float,
) -> None:
    """Dtypes and shapes, also of fake tensors."""
    cost, x_or_none = (x, None) if kind == MATRIX else (None, x)
    problem = _sinkhorn.Problem(a, b, cost, x_or_none, y, kind, scale, eps, rho)
    _sinkhorn.check_solve(function, problem, f, g, max_iter, check_every)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.resolve_neg().contiguous()


def _complaint(
    function: str, error: Tensor, n_iter: Tensor, converged: Tensor, tol: float
) -> str:
    worst = int(torch.where(converged, -1.0, error.nan_to_num(torch.inf)).argmax())
    count = int(n_iter[worst])
    missed = int((~converged).sum())
    which = "" if len(error) == 1 else f" in {missed} of {len(error)} problems"
    return (
        f"{function}: not converged{which} after {count} iteration{'s' * (count != 1)}: the "
        f"marginal error is {float(error[worst]):.3g} but tol {tol:.3g}; "
        "raise max_iter, tol or eps"
    )


library.define(
    "ot_solve(Tensor a, Tensor b, Tensor x, Tensor? y, Tensor eps, Tensor rho, Tensor? f, "
    "Tensor? g, str function, str kind, float scale, str method, int max_iter, float tol, "
    "int check_every, float mass_tol) "
    "-> (Tensor f, Tensor g, Tensor error, Tensor n_iter, Tensor converged)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
library.impl("ot_solve", _run, "CPU")
library.impl("ot_solve", _run, "CUDA")


@torch.library.register_fake("curvkern::ot_solve", lib=library)
def _fake(
    a: Tensor, b: Tensor, x: Tensor, y: Tensor | None, eps: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _check(a, b, x, y, eps, *rest)
    return (
        a.new_empty(a.shape),
        b.new_empty(b.shape),
        eps.new_empty(eps.shape),
        eps.new_empty(eps.shape, dtype=torch.int64),
        eps.new_empty(eps.shape, dtype=torch.bool),
    )
