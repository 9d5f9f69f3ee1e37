"""Rademacher probes from Philox4x32-10, in NumPy.

Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011). The sign of
element i of parameter space is bit i mod 128 of the block with key = seed and counter =
(i / 128, i / 128 >> 32, step, probe); a bit that is set stands for -1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

BLOCK = 128  # signs
_WORD = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox4x32(counter: np.ndarray, key: Sequence[int]) -> np.ndarray:
    """Blocks (n, 4) of 32-bit words from counters (n, 4), both held as uint64."""
    c0, c1, c2, c3 = np.asarray(counter, np.uint64).T
    k0, k1 = key
    for _ in range(10):
        product0 = np.uint64(0xD2511F53) * c0
        product1 = np.uint64(0xCD9E8D57) * c2
        c0, c2 = (
            (product1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            (product0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
        )
        c1, c3 = product1 & _WORD, product0 & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1)


def signs(size: int, offset: int, seed: int, step: int, probe: int) -> Tensor:
    """The signs offset, offset + 1, .. of parameter space as int8, (size,)."""
    first = offset // BLOCK
    index = first + np.arange((offset + size - 1) // BLOCK - first + 1, dtype=np.uint64)
    counter = np.empty((len(index), 4), np.uint64)
    counter[:, 0], counter[:, 1] = index & _WORD, index >> _SHIFT
    counter[:, 2], counter[:, 3] = step & 0xFFFFFFFF, probe & 0xFFFFFFFF
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    bits = (words[:, :, None] >> np.arange(32, dtype=np.uint64)) & np.uint64(1)
    bits = bits.reshape(-1)[offset - first * BLOCK :][:size]
    return torch.from_numpy(1 - 2 * bits.astype(np.int8))


def fill_signs(
    out: Sequence[Tensor], offsets: Sequence[int], seed: int, step: int, probe: int
) -> None:
    """Write the signs from each offset on into each tensor, in the order of its elements."""
    for tensor, offset in zip(out, offsets, strict=True):
        tensor.copy_(signs(tensor.numel(), offset, seed, step, probe).view(tensor.shape))
