"""Runs a product with a sparse matrix in the variant asked for, or measured quickest."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _runtime, _sparseconv, _sparseconv_device
from ..reference import sparseconv as reference
from ._patterns import Entry

DENSE = "dense"
TUNED = "tuned"
AUTO = "auto"

#: A variant is timed so often at least, and for so many seconds.
ROUNDS, SECONDS = 5, 0.01

Operands = tuple[Tensor, "Tensor | None", "Tensor | None", str]
Call = Callable[[Tensor, "Tensor | None"], Tensor]


def kernels(tensor: Tensor) -> Any:
    """The kernels for where a tensor lies: a module with the functions of ``_sparseconv``."""
    return _sparseconv_device if tensor.is_cuda else _sparseconv


def key(x: Tensor) -> tuple[Any, ...]:
    """What a measurement with x of shape (B, K, P) holds for."""
    batch, _, pixels = x.shape
    return x.dtype, batch, pixels, torch.get_num_threads(), _runtime.isa(), x.device


def run(entry: Entry, values: Tensor, operands: Operands, variant: str, frozen: bool) -> Tensor:
    """act(W x + bias + residual).

    ``frozen``: the values are expected to be the same at the next call, so what is made of
    them is kept while they are unchanged.
    """
    x, bias, residual, activation = operands
    if frozen:
        return bound(entry, values, operands, variant)(x, residual)
    if variant == TUNED:
        variant = choice(entry, values, operands)
    if variant == DENSE:
        return product(dense(entry, values), x, bias, residual, activation)
    if not is_variant(variant, x.is_cuda):
        variant = AUTO  # a layer that was made for another device
    y: Tensor = kernels(x).conv1x1(
        x, entry.pattern, values, bias, residual, activation, variant=variant
    )
    return y


def bound(entry: Entry, values: Tensor, operands: Operands, variant: str) -> Call:
    """The product with values that do not change, of x and residual like these.

    It takes (B, K, H, W) as well as (B, K, P).
    """
    x, bias, _, activation = operands
    if variant == TUNED:
        variant = choice(entry, values, operands)
    if variant == DENSE:
        weight = entry.made(values, DENSE, lambda: dense(entry, values))
        return _of_pixels(lambda x, residual: product(weight, x, bias, residual, activation))
    module = kernels(x)
    packed = pack(entry, values, x, variant)

    def call(x: Tensor, residual: Tensor | None) -> Tensor:
        y: Tensor = module.conv1x1_packed(x, packed, bias, residual, activation)
        return y

    return _of_pixels(call) if x.is_cuda else call


def _of_pixels(call: Call) -> Call:
    """A call that takes (B, K, P), for images too."""

    def images(x: Tensor, residual: Tensor | None) -> Tensor:
        if x.dim() == 3:
            return call(x, residual)
        y = call(x.flatten(2), None if residual is None else residual.flatten(2))
        return y.unflatten(2, x.shape[2:])

    return images


def pack(entry: Entry, values: Tensor, x: Tensor, variant: str) -> Any:
    """The values for a variant, kept while they are unchanged."""
    module = kernels(x)
    if not is_variant(variant, x.is_cuda):  # "auto", or a layer made for another device
        threads = torch.get_num_threads()
        names = module.variants(entry.pattern, x.dtype, x.shape[0], x.shape[2], threads)
        variant = names[0]
    return entry.made(values, variant, lambda: module.pack(entry.pattern, values, variant))


def dense(entry: Entry, values: Tensor) -> Tensor:
    """The whole matrix."""
    pattern = entry.pattern
    return reference.to_dense(pattern.crow, pattern.col, values.detach(), pattern.shape)


def product(
    weight: Tensor, x: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str
) -> Tensor:
    """The same by torch's product of dense matrices."""
    if x.shape[0] == 1 and residual is None and bias is not None:
        z = torch.addmm(bias[:, None], weight, x[0])[None]
    else:
        z = torch.matmul(weight, x)
        if bias is not None:
            z += bias[:, None]
        if residual is not None:
            z += residual
    return _sparseconv.IN_PLACE[activation](z)


def choice(entry: Entry, values: Tensor, operands: Operands) -> str:
    """The variant that was measured quickest for these sizes; measured once."""
    x = operands[0]
    wanted = key(x)
    found = entry.choices.get(wanted)
    if found is not None:
        return found
    batch, _, pixels = x.shape
    names = kernels(x).variants(entry.pattern, x.dtype, batch, pixels, wanted[3])
    calls: dict[str, Callable[[], object]] = {
        name: partial(run, entry, values, operands, name, True) for name in (*names, DENSE)
    }
    seconds = measure(calls, x.device)
    entry.seconds.setdefault(wanted, seconds)
    return entry.choices.setdefault(wanted, min(seconds, key=seconds.__getitem__))


def measure(calls: dict[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    """The least time of each, in interleaved rounds after one that does not count."""

    def finish() -> None:
        if device.type == "cuda":  # else launches would be timed, not kernels
            torch.cuda.synchronize(device)

    for call in calls.values():
        call()
    finish()
    best = dict.fromkeys(calls, float("inf"))
    began, rounds = time.perf_counter(), 0
    while rounds < ROUNDS or time.perf_counter() - began < SECONDS:
        for name, call in calls.items():
            before = time.perf_counter()
            call()
            finish()
            best[name] = min(best[name], time.perf_counter() - before)
        rounds += 1
    return best


def is_variant(name: str, cuda: bool) -> bool:
    """Whether kernels may have a variant: "strip4", "strip7x2"; on a GPU "lanes16"."""
    if cuda:
        return name in _sparseconv_device.VARIANTS
    return re.fullmatch(r"strip[1-9](x[1-9][0-9]?)?", name) is not None
