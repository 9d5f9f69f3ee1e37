"""What a benchmark case is: contestants that do the same work, and the bars for ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec

OURS = "curvkern"
REFERENCE = "pure PyTorch"  # the twin in curvkern.reference

Contestants = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Bar:
    """A promise: at most ``slower`` x a rival's time, or at least ``faster`` x faster.

    Of several rivals it is the quickest that counts. A bar with ``mean`` is kept by the
    geometric mean over all cases that name the same one.
    """

    rival: str | tuple[str, ...]
    slower: float | None = None
    faster: float | None = None
    mean: str = ""

    def __post_init__(self) -> None:
        if (self.slower is None) == (self.faster is None):
            raise ValueError("Bar: expected exactly one of slower= and faster=")

    def met(self, ratio: float) -> bool:
        """Judge ``ratio`` = our time / the rival's time."""
        if self.slower is not None:
            return ratio <= self.slower
        assert self.faster is not None
        return ratio * self.faster <= 1

    def quickest(self, ratios: Mapping[str, float]) -> str | None:
        """The rival with the largest ratio; None where none was measured."""
        rivals = (self.rival,) if isinstance(self.rival, str) else self.rival
        return max((r for r in rivals if r in ratios), key=ratios.__getitem__, default=None)

    def describe(self, ratio: float, rival: str) -> str:
        """The ratio beside its bar, in words."""
        if self.slower is not None:
            return f"{ratio:.2f}x {rival}, bar <= {self.slower:g}x"
        return f"{1 / ratio:.1f}x faster than {rival}, bar >= {self.faster:g}x"


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes
    ----------
    family, op, region, mode, dtype
        Together the name of the case; ``mode`` is "value", "value+grads", ...
    where
        What the short ``region`` stands for, in words.
    setup
        Called with the number of elements; returns the contestants by name, ready to be called:
        "curvkern" first, then the yardstick and rivals that are installed.
    yardstick
        The contestant whose time is the unit, a well-known function of the same dtype.
    bytes, flops
        Per element: what any implementation has to move and the least arithmetic known for it;
        with the machine's measured limits they give the time that nothing can beat.
    elements
        The size of the full run.
    quick
        Whether ``--quick`` includes it.
    repeats
        Calls of a turn that are timed, after a first one that is told apart from them; 0: a
        turn is one call. For what a program calls again and again, with its operands as warm
        in the caches as they then are.
    memory
        Whether the peak of resident memory is measured, too.
    needs
        Modules without which the case is left out, with a printed reason.
    rivals
        Contestants that ``setup`` leaves out without the module named beside them; so does the
        report, with the reason.
    note
        Shown under the table: an honest remark about the comparison.
    """

    family: str
    op: str
    region: str
    mode: str
    dtype: str
    where: str
    setup: Callable[[int], Contestants]
    yardstick: str
    bytes: float
    flops: float
    bars: tuple[Bar, ...] = field(default=())
    elements: int = 2**18
    quick: bool = False
    repeats: int = 0
    memory: bool = False
    needs: tuple[str, ...] = ()
    rivals: tuple[tuple[str, str], ...] = ()
    note: str = ""

    @property
    def name(self) -> str:
        """``op/region/dtype/mode``, unique within a family."""
        return "/".join((self.op, self.region, self.dtype, self.mode))

    def missing(self) -> list[str]:
        """The needed modules that are not installed."""
        return [name for name in self.needs if find_spec(name) is None]

    def missing_rivals(self) -> dict[str, str]:
        """The rivals that are not installed, each with its module."""
        return {name: module for name, module in self.rivals if find_spec(module) is None}
