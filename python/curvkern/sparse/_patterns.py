"""Patterns that were validated, for as long as their index tensors live unchanged.

``weight.crow_indices()`` is a new tensor at every call, so an entry is found by the storage
that the indices lie in and by its version counter.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from .. import _sparseconv

#: Entries kept, those used last.
CAPACITY = 1024


class Entry:
    """A validated pattern, with what was made of one set of values and what was measured."""

    def __init__(self, pattern: _sparseconv.Pattern) -> None:
        self.pattern = pattern
        #: (dtype, B, P, threads, instruction set) -> the quickest variant
        self.choices: dict[tuple[Any, ...], str] = {}
        #: that key -> variant -> seconds
        self.seconds: dict[tuple[Any, ...], dict[str, float]] = {}
        self._owner: tuple[Any, ...] | None = None
        self._made: dict[str, Any] = {}

    def made(self, values: Tensor, kind: str, make: Any) -> Any:
        """What ``make()`` returns, kept while ``values`` is the same tensor, unchanged."""
        owner = identity(values)
        if owner is None:
            return make()
        with _lock:
            if self._owner != owner or self._made[""].expired():
                self._owner = owner
                self._made = {"": StorageWeakRef(values.untyped_storage())}
            found = self._made.get(kind)
        if found is None:
            found = make()
            with _lock:
                if self._owner == owner:
                    self._made[kind] = found
        return found


def identity(tensor: Tensor) -> tuple[Any, ...] | None:
    """Equal for two tensors that are views of the same numbers; None where that is unknown."""
    if tensor.is_inference():  # no version counter
        return None
    return (
        tensor.untyped_storage()._cdata,
        tensor.storage_offset(),
        tuple(tensor.shape),
        tensor.stride(),
        tensor.dtype,
        tensor._version,
    )


_lock = threading.Lock()
_entries: OrderedDict[Any, tuple[Entry, tuple[StorageWeakRef, ...]]] = OrderedDict()


def lookup(crow: Tensor, col: Tensor, block: Sequence[int], shape: Sequence[int]) -> Entry:
    """The entry of these indices, validated when they are first seen.

    Raises
    ------
    ValueError
        The indices are not those of a matrix in compressed rows.
    """
    of_crow, of_col = identity(crow), identity(col)
    if of_crow is None or of_col is None:
        return _validated(crow, col, block, shape)
    key = (of_crow, of_col, tuple(block), tuple(shape))
    with _lock:
        found = _entries.get(key)
        # An address is not taken again while a weak reference to it is kept.
        if found is not None and not any(ref.expired() for ref in found[1]):
            _entries.move_to_end(key)
            return found[0]
    entry = _validated(crow, col, block, shape)
    refs = tuple(StorageWeakRef(t.untyped_storage()) for t in (crow, col))
    with _lock:
        for old, (_, dead) in list(_entries.items()):
            if any(ref.expired() for ref in dead):
                del _entries[old]
        while len(_entries) >= CAPACITY:
            _entries.popitem(last=False)
        _entries[key] = entry, refs
    return entry


def _validated(crow: Tensor, col: Tensor, block: Sequence[int], shape: Sequence[int]) -> Entry:
    # Copies: a pattern stays valid whatever becomes of the user's tensors.
    with torch.no_grad():
        copies = crow.detach().clone(), col.detach().clone()
    r, c = block
    return Entry(_sparseconv.Pattern.validated(*copies, (r, c), (shape[0], shape[1])))
