"""The problems of tests/data/sinkhorn.npz, for all tests of curvkern.ot."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from curvkern import ot

TIGHT = 1e-13  # tolerance of the solves


@cache
def _data() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parent / "data" / "sinkhorn.npz") as data:
        return dict(data)


@dataclass(frozen=True)
class Case:
    """One problem with its solution."""

    name: str

    def __getitem__(self, field: str) -> np.ndarray:
        return _data()[f"{self.name}/{field}"]

    def __contains__(self, field: str) -> bool:
        return f"{self.name}/{field}" in _data()

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


NAMES = sorted({name.split("/")[0] for name in _data()})
CASES = [Case(name) for name in NAMES]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
