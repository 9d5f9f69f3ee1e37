"""Between points, no value and no derivative takes memory for a matrix of costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

POINTS = 5000
MATRIX = 8 * POINTS**2 / 2**20  # MiB

PEAK = f"""
import resource, torch
from curvkern import ot

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def solve(n):
    x, y = torch.rand(2, n, 2, dtype=torch.float64)
    x.requires_grad_()
    return x, y, ot.sinkhorn_points(x, y, 0.5, tol=1e-6)

def run(n):
    x, y, result = solve(n)
    {{body}}

run(100)  # what libraries allocate once
before = peak()
run({POINTS})
print(peak() - before)
"""

BODIES = {
    "value": "result.value.backward()",
    "gap": "assert result.gap < 1e-3",
    "apply": "result.apply(y).square().sum().backward()",
    "cost": "result.cost.backward()",
    "potentials": "result.f.square().sum().backward()",
    "divergence": "ot.sinkhorn_divergence(x, y, 0.5, tol=1e-6).backward()",
    "second derivative": (
        "torch.autograd.grad(result.value, x, create_graph=True)[0].square().sum().backward()"
    ),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_peak(body: str, run_python: Callable[..., Any]) -> None:
    # Of many threads each would count its own stack and allocator.
    environment = {"OMP_NUM_THREADS": "1"}
    grown = float(run_python(PEAK.format(body=body), environment=environment).stdout)
    assert grown < MATRIX / 2
