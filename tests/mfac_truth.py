"""The problems of tests/data/mfac.npz, for all tests of curvkern.fisher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stored import Stored, data


class Problem(Stored):
    """Gradients and what is wanted of them; fields are in the head of make_mfac.py."""

    file = "mfac.npz"

    def __getitem__(self, field: str) -> Any:
        value = super().__getitem__(field)
        return value if value.ndim else value.item()

    def tensor(self, field: str, dtype: torch.dtype | None = torch.float64) -> Tensor:
        return torch.as_tensor(np.array(self[field])).to(dtype)

    def tolerance(self, dtype: torch.dtype) -> float:
        """Bar of the relative error, which grows with the condition of F."""
        condition = float(self["condition"])
        if dtype is torch.float64:
            return 1e-14 * condition + 1e-12
        return 1e-6 if condition <= 1e9 else 1e-4


def problems(kind: str, plain: bool = False) -> pytest.MarkDecorator:
    """Parametrize a test by all problems of a kind: static, ring, removal or prune.

    Plain ones have one block and as many rows as n.
    """
    names = sorted(
        {key.rsplit("/", 1)[0] for key in data(Problem.file) if key.startswith(kind + "/")}
    )
    if plain:
        every = map(Problem, names)
        names = [p.name for p in every if not p["block"] and len(p["G"]) == p["n"]]
    assert names
    ids = [name.split("/")[1].replace(" ", "-") for name in names]
    return pytest.mark.parametrize("problem", [Problem(name) for name in names], ids=ids)


def error(got: Any, truth: Any) -> float:
    """Relative error in the Euclidean norm."""
    got, truth = (torch.as_tensor(t, dtype=torch.float64) for t in (got, truth))
    assert got.shape == truth.shape, (got.shape, truth.shape)
    return float((got - truth).norm() / truth.norm().clamp_min(1e-300))


def check_static(fisher: Any, problem: Problem, dtype: torch.dtype) -> None:
    """All queries of a window or a static Fisher that holds the problem's gradients."""
    bar = problem.tolerance(dtype)
    V = problem.tensor("V", dtype)
    corner = len(problem["inverse"])
    found = {
        "ihvp": error(fisher.ihvp(V), problem["ihvp"]),
        "one": error(fisher.ihvp(V[2]), problem["ihvp"][2]),
        "diagonal": error(fisher.diag_inverse(), problem["diagonal"]),
        "elements": error(
            [[float(fisher.element(i, j)) for j in range(corner)] for i in range(corner)],
            problem["inverse"],
        ),
        "quad_form": error(fisher.quad_form(V), (problem["ihvp"] * problem["V"]).sum(1)),
        "logdet": error(fisher.logdet(), problem["logdet"]),
    }
    assert {name: off for name, off in found.items() if not off <= bar} == {}


def check_ring(make: Callable[..., Any], problem: Problem, dtype: torch.dtype) -> None:
    """A window through all pushes of the problem, twice: fused with either vector."""
    sequence, probe = problem.tensor("sequence", dtype), problem.tensor("probe", dtype)
    options = {"dtype": dtype, "normalize": problem["normalize"]}
    size = (sequence.shape[1], problem["capacity"], problem["damping"])
    first, second = make(*size, **options), make(*size, **options)
    bar = problem.tolerance(dtype)
    for t, g in enumerate(sequence):
        wanted, newest = problem["ihvp"][t], problem["newest"][t]
        assert error(first.push_ihvp(g), newest) <= bar
        assert error(first.ihvp(probe), wanted) <= bar
        assert error(second.push_ihvp(g, probe), wanted) <= bar
        assert error(second.ihvp(g), newest) <= bar
        assert len(first) == len(second) == min(t + 1, first.capacity)
