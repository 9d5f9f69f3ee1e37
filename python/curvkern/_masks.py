"""Skipping work that no element needs, where the elements can be looked at."""

from __future__ import annotations

import torch
from torch import Tensor


def all_of(mask: Tensor) -> bool | None:
    """Whether a mask holds everywhere; None where nobody can know (compile, vmap, meta)."""
    if torch.compiler.is_compiling():
        return None
    try:
        return bool(mask.all())
    except RuntimeError:
        return None
