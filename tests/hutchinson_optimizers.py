"""The optimizers of the Hutchinson family, for tests that hold for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from adahessian_steps import values
from curvkern.optim import OASIS, SANIA, AdaHessian, SophiaG, SophiaH

EVERY: dict[str, Callable[..., Any]] = {
    "AdaHessian": lambda p, **options: AdaHessian(
        p, 0.05, n_probes=2, average="signed", spatial="row", **options
    ),
    "OASIS": lambda p, **options: OASIS(p, 0.05, **options),
    "SANIA": SANIA,
    # With the usual gamma every quotient would be clipped.
    "SophiaH": lambda p, **options: SophiaH(
        p, 0.02, gamma=20.0, update_every=2, n_probes=2, **options
    ),
    "SophiaG": lambda p, **options: SophiaG(p, 0.02, gamma=20.0, update_every=2, **options),
}
every_optimizer = pytest.mark.parametrize("name", EVERY)
#: Those that take Hessian products.
with_products = pytest.mark.parametrize("name", [n for n in EVERY if n != "SophiaG"])
#: Those of them whose steps need no loss.
without_loss = pytest.mark.parametrize("name", ["AdaHessian", "OASIS", "SophiaH"])


def advance(optimizer: Any, loss: Callable[[], Tensor]) -> Any:
    """One step from a closure."""
    if isinstance(optimizer, SophiaG):
        return optimizer.step(loss, sampled_loss=loss)
    return optimizer.step(loss)


def given(optimizer: Any, one: list[Any]) -> list[list[Any]]:
    """The same products, or probes, for each probe of the next step."""
    return [one] * optimizer._probe_count()


def state_of(optimizer: Any) -> list[Tensor]:
    """Copies of the tensors of its state."""
    state = optimizer.state_dict()
    tensors = [t for s in state["state"].values() for t in s.values() if torch.is_tensor(t)]
    return [t.clone() for t in tensors]


def snapshot(model: torch.nn.Module, optimizer: Any) -> tuple[list[Tensor], Any, Any]:
    """Copies of parameters and state."""
    state = optimizer.state_dict()
    counts = [
        {key: value for key, value in one.items() if not torch.is_tensor(value)}
        for one in state["state"].values()
    ]
    return [*values(model), *state_of(optimizer)], state["hutchinson"], counts


def unchanged(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    """Whether two of these are equal, bit by bit."""
    if before[1:] != after[1:] or len(before[0]) != len(after[0]):
        return False
    return all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
