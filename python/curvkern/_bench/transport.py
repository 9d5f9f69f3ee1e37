"""Other libraries' solvers of entropic transport, with the settings the benchmarks use.

Each takes a :class:`Problem` and returns what it has :class:`Found`. What counts is the L1
error of both marginals, recomputed here in float64 by :func:`l1_error`. POT and RegOT stop by
an L2 norm: theirs is the target over the root of n + m, with which the L1 error is sure to be
there.

``POT sinkhorn``
    ``ot.sinkhorn(method="sinkhorn")``: matrix scaling without logarithms, the quickest of POT's
    where exp(-C / eps) does not underflow; at most 10 000 iterations, and 2e10 entries.
``RegOT SSNS``, ``RegOT SPLR``
    ``regot.sinkhorn_ssns`` and ``sinkhorn_splr`` with default options on a Fortran-ordered
    cost, as they ask for; at most 1000 and 1500 iterations, and 4e8 and 3e9 entries.
``MDOT-TNT``
    ``mdot_tnt.mdot.mdot`` from gamma = 16 to 1 / eps on costs of at most 1; its exponent p is
    the one with which the tolerance of the last gamma is the target. It is not in the extra
    ``peers``, as its licence is for non-commercial use.
``POT emd (exact)``
    The network simplex: another problem, that without entropy; for reference.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import torch

TARGET = 1e-9  # L1 error of both marginals
SLACK = 1.001  # for the rounding of the recomputation


class Problem(NamedTuple):
    """Weights ``(n,)`` and ``(m,)`` of mass 1, costs ``(n, m)`` and eps."""

    a: np.ndarray
    b: np.ndarray
    cost: np.ndarray
    eps: float


Duals = tuple[np.ndarray, np.ndarray]


class Found(NamedTuple):
    """A plan, or (u, v) with ``P_ij = exp(u_i + v_j - C_ij / eps)``; iterations, where told."""

    solution: np.ndarray | Duals
    iterations: int | None = None


Solver = Callable[[Problem], Found]


class NotReached(RuntimeError):
    """A solver ended above the target."""


def l1_error(problem: Problem, found: np.ndarray | Duals) -> float:
    """``|P1 - a|_1 + |P'1 - b|_1`` in float64."""
    if isinstance(found, tuple):
        u, v = found
        found = np.exp(u[:, None] + v - problem.cost / problem.eps)
    rows, columns = found.sum(1) - problem.a, found.sum(0) - problem.b
    return float(np.abs(rows).sum() + np.abs(columns).sum())


class Contestant:
    """Solves all problems in a call; the first one makes sure that each reaches the target.

    It raises :class:`NotReached` at the first problem that does not. ``iterations`` is then
    their number for all problems together, None where the solver does not tell.
    """

    def __init__(self, solve: Solver, problems: Sequence[Problem]) -> None:
        self.solve, self.problems = solve, problems
        self.verified = False
        self.iterations: int | None = None

    def __call__(self) -> int:
        counts: list[int | None] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for problem in self.problems:
                start = time.perf_counter()
                found = self.solve(problem)
                seconds = time.perf_counter() - start
                if self.verified:
                    continue
                counts.append(found.iterations)
                error = l1_error(problem, found.solution)
                if not error <= SLACK * TARGET:
                    raise NotReached(f"L1 error {error:.1e} after {seconds:.2g} s")
        if not self.verified:
            told = [count for count in counts if count is not None]
            self.iterations = sum(told) if len(told) == len(counts) else None
        self.verified = True
        return len(self.problems)


def l2_tolerance(problem: Problem) -> float:
    """The L2 norm of the residual with which its L1 norm is sure to be at the target."""
    return TARGET / math.sqrt(sum(problem.cost.shape))


def pot_sinkhorn(problem: Problem) -> Found:
    """POT's matrix scaling; it looks at its error every 10 iterations."""
    import ot

    most = min(10_000, int(2e10 / problem.cost.size))
    plan, log = ot.sinkhorn(
        *problem,
        method="sinkhorn",
        stopThr=l2_tolerance(problem),
        numItermax=most,
        warn=False,
        log=True,
    )
    return Found(plan, log["niter"])


def pot_emd(problem: Problem) -> Found:
    """POT's network simplex."""
    import ot

    return Found(ot.emd(*problem[:3], numItermax=10**7))


def ssns(problem: Problem) -> Found:
    """RegOT's safe and sparse Newton method."""
    import regot

    most = min(1000, int(4e8 / problem.cost.size))
    return _regot(regot.sinkhorn_ssns, problem, most)


def splr(problem: Problem) -> Found:
    """RegOT's sparse plus low-rank quasi-Newton method."""
    import regot

    most = min(1500, int(4e8 / problem.cost.size))
    return _regot(regot.sinkhorn_splr, problem, most)


def _regot(solve: Callable, problem: Problem, most: int) -> Found:
    cost = np.asfortranarray(problem.cost)
    tolerance = l2_tolerance(problem)
    found = solve(cost, problem.a, problem.b, problem.eps, tol=tolerance, max_iter=most)
    return Found(found.plan, found.niter)


def mdot_tnt(problem: Problem) -> Found:
    """Mirror descent with truncated Newton projections, on torch tensors."""
    from mdot_tnt.mdot import mdot

    a, b, cost = map(torch.from_numpy, problem[:3])
    largest = float(cost.max())
    gamma = largest / problem.eps
    entropy = min(-float((w * w.log()).sum()) for w in (a, b))
    p = math.log(entropy / TARGET) / math.log(gamma)
    u, v, *_ = mdot(a, b, cost / largest, gamma, p=p)
    return Found((u.numpy(), v.numpy()))


EXACT, POT = "POT emd (exact)", "POT sinkhorn"
ENTROPIC: dict[str, tuple[str, Solver]] = {
    "RegOT SSNS": ("regot", ssns),
    "RegOT SPLR": ("regot", splr),
    "MDOT-TNT": ("mdot_tnt", mdot_tnt),
    POT: ("ot", pot_sinkhorn),
}


def contestants(problems: Sequence[Problem]) -> dict[str, Contestant]:
    """The exact solver and the entropic ones that are installed."""
    installed = {name: solve for name, (module, solve) in ENTROPIC.items() if find_spec(module)}
    return {
        name: Contestant(solve, problems)
        for name, solve in {EXACT: pot_emd, **installed}.items()
    }
