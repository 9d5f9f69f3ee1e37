"""The methods of the compiled solver: sweeps, sparse Newton steps, or sweeps and then those.

Sweeps are cheap, and their error falls by a constant factor, which a small eps brings near 1.
A path of Newton steps costs about the same at every eps. "auto" sweeps, sees how fast the error
falls from one leg to the next, and goes over to Newton steps with the problems whose rest of
the way would be longer in sweeps. What those leave it sweeps to the end.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import _sinkhorn
from ..reference.costs import cost_matrix

FIRST_LEG, SHORTEST_LEG = 40, 20  # sweeps from one look at the error to the next
PATIENCE = 100  # sweeps ahead for which Newton steps are not worth while
MARGIN = 1.2  # of a leg over what the last rate promises
NEAR = 0.05  # error up to which Newton steps start from where the sweeps have come to
LARGEST = 1 << 22  # costs between points that Newton steps may hold: 32 MiB
MOST_POINTS = 1 << 20  # of which a GPU may hold a sparse plan for "auto": 3 GiB

Callback = Callable[[int, Tensor], object]


def check_newton(function: str, problem: _sinkhorn.Problem) -> None:
    """Refuse Newton steps that would hold too many costs between points."""
    n, m = problem.a.shape[1], problem.b.shape[1]
    if problem.cost is None and n * m > LARGEST and _sinkhorn.holds_costs(problem):
        raise ValueError(
            f"{function}: method 'newton' holds the costs in memory, at most {LARGEST}, got "
            f"{n} x {m} points; use 'auto' or 'sinkhorn'"
        )


class Run:
    """A solve of B problems: potentials, errors and counts of each."""

    def __init__(
        self,
        problem: _sinkhorn.Problem,
        f: Tensor | None,
        g: Tensor | None,
        max_iter: int,
        tol: float,
        check_every: int,
        callback: Callback | None,
    ) -> None:
        self.problem, self.f, self.g = problem, f, g
        self.max_iter, self.tol, self.check_every = max_iter, tol, check_every
        self.callback = callback
        self.error = torch.full_like(problem.eps, torch.inf)
        self.n_iter = torch.zeros_like(problem.eps, dtype=torch.int64)
        self.converged = torch.zeros_like(problem.eps, dtype=torch.bool)
        self.history: list[tuple[int, float]] = []

    @property
    def _all(self) -> Tensor:
        return torch.arange(len(self.error), device=self.error.device)

    @property
    def entries(self) -> int:
        return self.problem.a.shape[1] * self.problem.b.shape[1]

    @property
    def fits(self) -> bool:
        """Whether Newton steps can hold the costs of a problem, or do without."""
        if self.problem.cost is not None or self.entries <= LARGEST:
            return True
        points = self.problem.a.shape[1] + self.problem.b.shape[1]
        return not _sinkhorn.holds_costs(self.problem) and points <= MOST_POINTS

    def sweep(
        self, at: Tensor | None = None, most: int | None = None, symmetric: bool = False
    ) -> None:
        """At most so many sweeps of the problems ``at``, which have all had as many before."""
        at = self._all if at is None else at
        if not len(at):
            return
        done = int(self.n_iter[at[0]])
        left = self.max_iter - done
        others = self.error.clone()

        def report(iteration: int, error: Tensor) -> None:
            if iteration > 0 or done == 0:  # else it was the last check of the leg before
                self.callback(done + iteration, others.index_copy(0, at, error))  # type: ignore[misc]

        problem, f, g = self._pick(at)
        f, g, info, history = _sinkhorn.solve(
            problem, f, g, left if most is None else min(most, left), self.tol,
            self.check_every, symmetric=symmetric,
            callback=None if self.callback is None else report,
        )  # fmt: skip
        rest = float(others.index_fill(0, at, 0.0).max())
        self.history += [
            (done + int(iteration), max(error, rest))
            for iteration, error in history.tolist()
            if iteration > 0 or done == 0
        ]
        self._put(at, f, g, info)

    def newton(self, at: Tensor | None = None) -> None:
        """Newton steps for the problems ``at`` until they have converged or get no further."""
        at = self._all if at is None else at
        if not len(at):
            return
        done = int(self.n_iter[at].max())
        others, parts = self.error.clone(), []
        materialises = self.problem.cost is None and _sinkhorn.holds_costs(self.problem)
        for part in at.split(max(1, LARGEST // self.entries) if materialises else len(at)):
            problem, f, g = self._pick(part)
            if materialises:
                cost = problem.scale * cost_matrix(problem.x, problem.y, problem.kind)  # type: ignore[arg-type]
                problem = problem._replace(cost=cost, x=None, y=None)
            parts.append(_sinkhorn.newton(problem, f, g, self.max_iter - done, self.tol))
        f, g, info, trace = map(torch.cat, zip(*parts, strict=True))
        self._put(at, f, g, info)
        ended = torch.arange(trace.shape[1], device=trace.device) >= info[:, 1:2] - 1
        trace = torch.where(ended, info[:, :1], trace).T[: int(info[:, 1].max())]
        for k, errors in enumerate(others.index_copy(0, at, row) for row in trace):
            self.history.append((done + k + 1, float(errors.max())))
            if self.callback is not None:
                self.callback(done + k + 1, errors)

    def auto(self) -> None:
        """Sweeps, then Newton steps where those are the shorter way."""
        at, leg = self._all, FIRST_LEG
        slow = [at[:0]]
        while len(at):
            before, done = self.error[at], self.n_iter[at]
            self.sweep(at, leg)
            rate = (before / self.error[at]).log() / (self.n_iter[at] - done)
            ahead = (self.error[at] / self.tol).log() / rate
            near = (rate > 0) & (ahead < PATIENCE)  # after the first leg the rate is infinite
            left = ~self.converged[at] & (self.n_iter[at] < self.max_iter)
            if self.fits:
                slow.append(at[left & ~near])
                left &= near
            at, ahead = at[left], ahead[left & near]
            wanted = MARGIN * float(ahead.max()) if len(ahead) else PATIENCE
            leg = max(int(wanted), SHORTEST_LEG)
        at = torch.cat(slow)
        far = at[~(self.error[at] < NEAR)]
        if len(far) and self.f is not None and self.g is not None:
            self.f = self.f.index_fill(0, far, 0.0)
            self.g = self.g.index_fill(0, far, 0.0)
        self.newton(at)
        for one in at[~self.converged[at] & (self.n_iter[at] < self.max_iter)].split(1):
            self.sweep(one)  # Newton steps got no further: duplicate points, a plan of blocks

    def _pick(self, at: Tensor) -> tuple[_sinkhorn.Problem, Tensor | None, Tensor | None]:
        if len(at) == len(self.error):
            return self.problem, self.f, self.g
        f, g = (None if t is None else t[at] for t in (self.f, self.g))
        return self.problem.pick(at), f, g

    def _put(self, at: Tensor, f: Tensor, g: Tensor, info: Tensor) -> None:
        if self.f is None or self.g is None or len(at) == len(self.error):
            self.f, self.g = f, g
        else:  # not in place: they may be the caller's
            self.f, self.g = self.f.index_copy(0, at, f), self.g.index_copy(0, at, g)
        self.error[at] = info[:, 0]
        self.n_iter[at] += info[:, 1].to(torch.int64)
        self.converged[at] = info[:, 2] > 0
