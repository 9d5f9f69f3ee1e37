"""What a module of sparse weights makes of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..reference import sparseconv as reference
from ..sparse import _patterns
from ..sparse._weights import of_dense

if TYPE_CHECKING:
    from ._sparse_weight import SparseWeightConv2d

OWN = ("values", "crow_indices", "col_indices")


def load_parts(module: SparseWeightConv2d, state: dict[str, Any], prefix: str) -> None:
    """Prepare the module for its own state, after validation; turn a dense one into its own.

    Raises
    ------
    ValueError
        The parts are those of no matrix of this shape; the module is as it was.
    """
    found = {name: state[prefix + name] for name in OWN if prefix + name in state}
    if len(found) == len(OWN):
        _validate(module, found)
        for name, tensor in found.items():
            _resize(module, name, tensor.shape)
        return
    names = [prefix + name for name in ("weight", "weight_orig", "weight_mask")]
    dense = next((state[name] for name in names[:2] if name in state), None)
    if dense is None:
        return  # torch tells which keys are missing
    where = f"SparseWeightConv2d: {prefix}weight"
    shape = module.shape
    if not isinstance(dense, Tensor) or tuple(dense.shape) not in (shape, (*shape, 1, 1)):
        got = tuple(dense.shape) if isinstance(dense, Tensor) else type(dense).__name__
        raise ValueError(f"{where} must have shape {(*shape, 1, 1)}, got {got}")
    mask = state.get(names[2])
    dense = dense.detach().reshape(shape)
    crow, col = module.crow_indices, module.col_indices
    if mask is not None:
        parts = of_dense("SparseWeightConv2d", dense, mask.reshape(shape), module.block)
        crow, col, values = parts.crow, parts.col, parts.values
    else:
        values = reference.at_pattern(
            dense, crow.to(dense.device), col.to(dense.device), module.block
        )
    for name in names:
        state.pop(name, None)
    for name, tensor in zip(OWN, (values, crow, col), strict=True):
        state[prefix + name] = tensor
        _resize(module, name, tensor.shape)


def _validate(module: SparseWeightConv2d, found: dict[str, Any]) -> None:
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"SparseWeightConv2d: {name} must be a tensor, got {type(tensor).__name__}"
            )
    values, crow, col = (found[name] for name in OWN)
    block = tuple(values.shape[1:]) or (1, 1)
    if block != module.block or not values.is_floating_point():
        raise ValueError(
            f"SparseWeightConv2d: values must be floating with blocks {module.block}, "
            f"got {values.dtype} of shape {tuple(values.shape)}"
        )
    for name, index in (("crow_indices", crow), ("col_indices", col)):
        if index.dim() != 1 or index.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"SparseWeightConv2d: {name} must be a vector of int32 or int64, "
                f"got {index.dtype} of shape {tuple(index.shape)}"
            )
    if len(col) != len(values):
        raise ValueError(
            f"SparseWeightConv2d: col_indices must have the length of values, {len(values)}, "
            f"got {len(col)}"
        )
    _patterns.lookup(crow, col, block, module.shape)


def _resize(module: nn.Module, name: str, shape: Sequence[int]) -> None:
    """Room for as many numbers; the parameter stays the one that an optimizer knows."""
    old = getattr(module, name)
    if old.shape != torch.Size(shape):
        new = torch.empty(shape, dtype=old.dtype, device=old.device)
        if name == "values":
            old.data = new
            old.grad = None
        else:
            setattr(module, name, new)


def cut_state(
    optimizer: torch.optim.Optimizer,
    parameter: Tensor,
    shape: Sequence[int],
    moved: Callable[[Tensor], Tensor],
) -> None:
    """Move the tensors that an optimizer keeps in the old shape of a parameter."""
    state = optimizer.state.get(parameter, {})
    for name, value in state.items():
        if isinstance(value, Tensor) and value.shape == torch.Size(shape) and value.dim():
            state[name] = moved(value)
