"""The problems of tests/data/sinkhorn.npz, for all tests of curvkern.ot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from curvkern import ot
from stored import Stored, data

TIGHT = 1e-13  # tolerance of the solves


class Case(Stored):
    """One problem with its solution."""

    file = "sinkhorn.npz"

    @property
    def balanced(self) -> bool:
        return bool(np.isinf(self["rho"]).all())

    @property
    def groups(self) -> list[str]:
        """Groups of arguments with a direction and the derivatives along it."""
        return [g for g in ("weights", "cost", "eps", "rho") if f"value_{g}" in self]

    def arguments(self) -> dict[str, Tensor]:
        keys = ("a", "b", "eps", "rho", *(("C",) if "C" in self else ("x", "y")))
        return {key: torch.tensor(self[key]) for key in keys}

    def direction(self, group: str) -> dict[str, Tensor]:
        keys = {"weights": ("a", "b"), "cost": ("C", "x", "y")}.get(group, (group,))
        return {key: torch.tensor(self[f"d_{key}"]) for key in keys if f"d_{key}" in self}

    def solve(self, arguments: dict[str, Tensor] | None = None, **options: Any) -> ot.OTResult:
        given = dict(self.arguments() if arguments is None else arguments)
        a, b, eps, rho = (given.pop(key) for key in ("a", "b", "eps", "rho"))
        options = {"tol": TIGHT, "rho": tuple(rho), **options}
        if "C" in given:
            return ot.sinkhorn(a, b, given["C"], eps, **options)
        kind = str(self["cost"])
        return ot.sinkhorn_points(given["x"], given["y"], eps, a=a, b=b, cost=kind, **options)

    def loss(self, result: ot.OTResult) -> Tensor:
        return (result.plan * torch.tensor(self["W"])).sum()


NAMES = sorted({name.split("/")[0] for name in data(Case.file)})
CASES = [Case(name) for name in NAMES]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
