"""Between points, no value and no derivative takes memory for a matrix of costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from curvkern import _runtime

POINTS = 3500
MATRIX = 8 * POINTS**2 / 2**20  # MiB

# The peak of a process only grows: one run through all of it tells who is the first to exceed.
PEAKS = f"""
import json, resource, torch
from curvkern import ot

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def steps(n):
    x, y = torch.rand(2, n, 2, dtype=torch.float64)
    x.requires_grad_()
    result = ot.sinkhorn_points(x, y, 0.5, tol=1e-6)
    grad = lambda loss, **options: torch.autograd.grad(loss, x, retain_graph=True, **options)[0]
    yield "value", grad(result.value)
    assert result.gap < 1e-3
    yield "gap", None
    yield "apply", grad(result.apply(y).square().sum())
    yield "cost", grad(result.cost)
    yield "potentials", grad(result.f.square().sum())
    yield "divergence", grad(ot.sinkhorn_divergence(x, y, 0.5, tol=1e-6))
    yield "second", grad(grad(result.value, create_graph=True).square().sum())

list(steps(100))  # what libraries allocate once
before = peak()
print(json.dumps({{name: peak() - before for name, _ in steps({POINTS})}}))
"""


@pytest.mark.skipif(_runtime.backend() == "reference", reason="its solver holds the costs")
def test_peaks(run_python: Callable[..., Any]) -> None:
    # Of many threads each would count its own stack and allocator.
    peaks = json.loads(run_python(PEAKS, environment={"OMP_NUM_THREADS": "1"}).stdout)
    assert len(peaks) == 7
    assert {name: peak for name, peak in peaks.items() if peak > MATRIX / 2} == {}
