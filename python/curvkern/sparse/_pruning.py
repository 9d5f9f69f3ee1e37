"""Dropping the smallest weights, at once or little by little in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from ..nn._sparse_weight import SparseWeightConv2d
from . import _arguments
from ._weights import block_pair

NAME = "magnitude_prune_"


@dataclass(frozen=True)
class CubicSchedule:
    r"""Sparsity that rises fast at first and slowly in the end [1]_.

    .. math:: s_t = s_f + (s_i - s_f) \Bigl(1 - \frac{t - t_0}{t_1 - t_0}\Bigr)^3

    Parameters
    ----------
    begin, end
        The steps :math:`t_0` and :math:`t_1`, between which weights are dropped.
    every
        Steps from one change of the masks to the next.
    initial
        :math:`s_i`, in [0, 1].

    References
    ----------
    .. [1] M. Zhu, S. Gupta, "To prune, or not to prune", ICLR workshop 2018, equation 1.

    Examples
    --------
    >>> from curvkern import sparse
    >>> schedule = sparse.CubicSchedule(100, 300, every=100)
    >>> [schedule(step, 0.8) for step in (0, 100, 150, 200, 300)]
    [None, 0.0, None, 0.7, 0.8]
    """

    begin: int
    end: int
    every: int = 1
    initial: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("begin", 0), ("end", self.begin + 1), ("every", 1)):
            _arguments.integer("CubicSchedule", name, getattr(self, name), least)
        _share("CubicSchedule", "initial", self.initial)

    def __call__(self, step: int, final: float) -> float | None:
        """The sparsity to prune to at a step; None where the masks stay."""
        if not self.begin <= step <= self.end:
            return None
        if (step - self.begin) % self.every and step != self.end:
            return None
        left = 1 - (step - self.begin) / (self.end - self.begin)
        return final + (self.initial - final) * left**3


Schedule = Callable[[int, float], "float | None"]


class GradualPruning:
    """Prunes a model in training: ``step()`` is called after each step of the optimizer.

    Attributes
    ----------
    steps : int
        How often ``step`` was called.
    sparsity : float
        What the model was last pruned to.
    """

    def __init__(
        self,
        model: nn.Module,
        final: float,
        block: tuple[int, int],
        schedule: Schedule,
    ) -> None:
        self.model, self.final, self.block, self.schedule = model, final, block, schedule
        self.steps, self.sparsity = 0, 0.0
        self._prune()

    def step(self) -> float:
        """Count a step and change the masks where the schedule says so; the sparsity."""
        self.steps += 1
        self._prune()
        return self.sparsity

    def _prune(self) -> None:
        wanted = self.schedule(self.steps, self.final)
        if wanted is not None:
            _prune(self.model, _share(NAME, "schedule", wanted), self.block)
            self.sparsity = wanted

    def state_dict(self) -> dict[str, Any]:
        """The number of steps and the sparsity; masks are in the state of the model."""
        return {"steps": self.steps, "sparsity": self.sparsity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises
        ------
        ValueError
            The state is none of this class; nothing is changed.
        """
        if not isinstance(state, dict) or set(state) != {"steps", "sparsity"}:
            raise ValueError("GradualPruning: state must have steps and sparsity")
        try:
            steps = _arguments.integer("GradualPruning", "steps", state["steps"], 0)
            sparsity = _share("GradualPruning", "sparsity", state["sparsity"])
        except TypeError as error:
            raise ValueError(str(error)) from None
        self.steps, self.sparsity = steps, sparsity


def magnitude_prune_(
    model: nn.Module,
    sparsity: float,
    block: tuple[int, int] = (1, 1),
    schedule: Schedule | None = None,
) -> Any:
    r"""Drop the smallest weights of each 1 x 1 convolution, in place.

    Parameters
    ----------
    model
        Pruned are its ``torch.nn.Conv2d`` of size 1 x 1 without groups, which get the masks of
        ``torch.nn.utils.prune``, and :class:`curvkern.nn.SparseWeightConv2d`, which store fewer
        weights then.
    sparsity
        The share of weights that are to be zero in each layer, in [0, 1]. What was dropped
        stays so.
    block
        (r, c): weights are dropped by blocks of r output and c input channels, those with the
        smallest sum of squares. Layers that it does not divide are pruned by single weights;
        in a ``SparseWeightConv2d`` the block is its own.
    schedule
        In training, a :class:`CubicSchedule`, or what gives for a step and ``sparsity`` the
        sparsity then, or None where the masks stay.

    Returns
    -------
    Module or GradualPruning
        The model; with a ``schedule`` an object whose ``step()`` is to be called after each
        step of the optimizer. Masks are buffers of fixed size, so this works with
        ``DistributedDataParallel`` and ``torch.compile``, but for a ``SparseWeightConv2d``,
        whose parameter shrinks.

    Raises
    ------
    TypeError, ValueError
        An argument of a wrong kind or value.

    Examples
    --------
    >>> import torch
    >>> from curvkern import sparse
    >>> conv = torch.nn.Conv2d(4, 2, 1)
    >>> _ = sparse.magnitude_prune_(conv, 0.75)
    >>> int(conv.weight_mask.sum()), int((conv.weight != 0).sum())
    (2, 2)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{NAME}: model must be a torch.nn.Module, got {type(model).__name__}")
    final = _share(NAME, "sparsity", sparsity)
    pair = block_pair(NAME, block)
    if schedule is not None:
        if not callable(schedule):
            raise TypeError(f"{NAME}: schedule must be callable, got {type(schedule).__name__}")
        return GradualPruning(model, final, pair, schedule)
    _prune(model, final, pair)
    return model


def _share(function: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{function}: {name} must be a number, got {type(value).__name__}")
    if not 0 <= value <= 1:
        raise ValueError(f"{function}: {name} must be in [0, 1], got {value}")
    return float(value)


def prunable(model: nn.Module) -> Iterator[nn.Conv2d | SparseWeightConv2d]:
    """The layers that are pruned."""
    for module in model.modules():
        pointwise = (
            type(module) is nn.Conv2d
            and tuple(module.kernel_size) == (1, 1)
            and module.groups == 1
        )
        if pointwise or isinstance(module, SparseWeightConv2d):
            yield module  # type: ignore[misc]


@torch.no_grad()
def _prune(model: nn.Module, sparsity: float, block: tuple[int, int]) -> None:
    for module in prunable(model):
        if isinstance(module, SparseWeightConv2d):
            dense = module.to_dense().weight[:, :, 0, 0]
            module.set_mask_(smallest_dropped(dense, module.mask(), sparsity, module.block))
            continue
        mask = getattr(module, "weight_mask", None)
        weight = module.weight if mask is None else module.weight_orig
        matrix = weight[:, :, 0, 0]  # type: ignore[index]
        divides = not (matrix.shape[0] % block[0] or matrix.shape[1] % block[1])
        kept = (
            torch.ones_like(matrix, dtype=torch.bool) if mask is None else mask[:, :, 0, 0] != 0
        )
        new = smallest_dropped(matrix, kept, sparsity, block if divides else (1, 1))
        new = new[:, :, None, None].to(matrix.dtype)
        if mask is None:
            prune.custom_from_mask(module, "weight", new)
        else:
            mask.copy_(new)
            with torch.no_grad():  # the hook does it anew at every call
                module.weight = module.weight_orig * mask


def smallest_dropped(
    weight: Tensor, kept: Tensor, sparsity: float, block: tuple[int, int]
) -> Tensor:
    """The mask (O, C) without the least blocks, of which those not kept come first.

    Of equal blocks the first goes first.
    """
    (rows, columns), (r, c) = weight.shape, block

    def by_block(matrix: Tensor) -> Tensor:
        return matrix.reshape(rows // r, r, columns // c, c).transpose(1, 2).flatten(2)

    if not weight.numel():
        return kept.clone()
    score = by_block(weight.double()).square().sum(-1)
    there = by_block(kept).any(-1)
    score = torch.where(there, score, -1.0).flatten()
    drop = round(sparsity * score.numel())
    new = there.flatten().clone()
    new[torch.sort(score, stable=True).indices[:drop]] = False
    new = new.reshape(rows // r, 1, columns // c, 1).expand(-1, r, -1, c)
    return new.reshape(rows, columns) & kept
