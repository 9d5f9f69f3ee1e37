"""The problems of tests/data/hutchinson.npz, whose fields are in the head of its script."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hutchinson_models import LOSSES
from stored import Stored, data

FILE = "hutchinson.npz"
META: dict[str, dict[str, Any]] = json.loads(str(data(FILE)["meta_json"]))
SPATIAL = {"none": "none", "conv": "conv", "row": "row"}


class Field(Stored):
    """Arrays by their names below one, as tensors."""

    file = FILE

    def tensor(self, field: str, dtype: torch.dtype | None = torch.float64) -> Tensor:
        value = torch.as_tensor(np.array(self[field]))
        return value.to(dtype) if value.is_floating_point() else value


class Model:
    """Parameters of a stored model and its loss, in a dtype."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float64) -> None:
        self.meta = META["models"][name]
        self.field = Field(f"model/{name}")
        self.dtype = dtype
        parts = [self.field.tensor(f"p{i}", dtype) for i in range(self.meta["nparams"])]
        self.params = [p.clone().requires_grad_() for p in parts]
        self.x, self.y = (self.field.tensor(key, dtype) for key in "xy")

    def loss(self, params: Sequence[Tensor] | None = None) -> Tensor:
        own = self.params if params is None else params
        return LOSSES[self.meta["kind"]](own, self.x, self.y)

    def split(self, flat: Any) -> list[Tensor]:
        """A flat vector as tensors like the parameters."""
        flat = torch.as_tensor(flat).to(self.dtype)
        parts = flat.split([p.numel() for p in self.params])
        return [a.view_as(p) for a, p in zip(parts, self.params, strict=True)]

    def flat(self, tensors: Sequence[Tensor] | None = None) -> Tensor:
        tensors = self.params if tensors is None else tensors
        return torch.cat([t.detach().reshape(-1) for t in tensors])

    @cached_property
    def hessian(self) -> Tensor:
        return self.field.tensor("H")


class Trajectory:
    """One configuration of one model."""

    def __init__(self, name: str) -> None:
        self.meta = META["traj"][name]
        self.field = Field(f"traj/{name}")

    def model(self, dtype: torch.dtype = torch.float64) -> Model:
        return Model(self.meta["model"], dtype)


def spatial_of(meta: dict[str, Any]) -> Any:
    return tuple(meta["sizes"]) if meta["mode"] == "instr" else meta["mode"]


def trajectories(algorithm: str | None) -> pytest.MarkDecorator:
    names = [n for n, c in META["traj"].items() if c.get("alg") == algorithm]
    assert names
    return pytest.mark.parametrize("name", names)


every_model = pytest.mark.parametrize("name", META["models"])
