"""What the tests of the laws on the sphere share: the table, makers of laws, comparisons."""

import json
from pathlib import Path

import pytest
import torch

from curvkern.distributions import VonMisesFisher

TABLE = json.loads((Path(__file__).parent / "data" / "vmf.json").read_text())
EPS = 2.0**-52
F64 = torch.float64
SIGMAS = 5.0


def generator(seed):
    return torch.Generator().manual_seed(seed)


def directions(*shape, seed=0, dtype=F64):
    z = torch.randn(*shape, dtype=dtype, generator=generator(seed))
    return z / z.norm(dim=-1, keepdim=True)


def law(dim, kappa, seed=0, **kwargs):
    return VonMisesFisher(directions(dim, seed=seed), torch.tensor(kappa, dtype=F64), **kwargs)


def column(rows, key):
    return torch.tensor([row[key] for row in rows], dtype=F64)


def by_dim(rows):
    dims = sorted({row["d"] for row in rows})
    return [pytest.param(d, [r for r in rows if r["d"] == d], id=f"d={d}") for d in dims]


def at_pole(dim, kappa):
    """A batch of laws about e_1."""
    loc = torch.zeros(len(kappa), dim, dtype=F64)
    loc[:, 0] = 1
    return VonMisesFisher(loc, kappa)


def assert_relative(got, want, bound):
    error = ((got - want) / want).abs().max().item() / EPS
    assert error <= bound, f"{error:.1f} eps, allowed {bound}"
