"""The self-test behind ``python -m curvkern check``.

Each module here has a function ``rows()`` that measures and yields rows; a row passes when its
largest error is finite and within its bar.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from .._console import BAD, Table, progress


@dataclass(frozen=True)
class Row:
    """One measured line: the largest error of one quantity, in units of its dtype's eps."""

    function: str
    quantity: str  # "value", "d/dv", "d2/dvdx", "fit"
    dtype: str
    against: str  # "table" (high precision), "closed form", "reference" (plain PyTorch)
    points: int
    error: float
    bar: float
    worst: str  # the input of the largest error

    @property
    def passed(self) -> bool:
        """Whether the error is a number within the bar."""
        return self.error <= self.bar


def measured(
    names: tuple[str, str, str, str],
    points: int,
    bar: float,
    errors: Callable[[], np.ndarray],
    label: Callable[[int], str],
) -> Row:
    """The row (function, quantity, dtype, against) of these errors.

    NaN is the largest error of all, and so is an exception.
    """
    try:
        found = errors()
    except Exception as error:
        return Row(*names, points, math.inf, bar, f"{type(error).__name__}: {error}")
    found = np.where(np.isnan(found), np.inf, found)
    at = int(found.argmax())
    return Row(*names, points, float(found[at]), bar, label(at))


def families() -> list[str]:
    """The families that have a self-test."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def measure(family: str) -> Iterator[Row]:
    """Run one family's self-test."""
    module = importlib.import_module(f"{__name__}.{family}")
    yield from module.rows()


def run() -> int:
    """Measure every family, print the table, return the exit status: 1 if a bar is missed."""
    table = Table(
        "curvkern check: largest error in eps of the dtype",
        ["function", "quantity", "dtype", "against", "points", "error", "bar", "", "worst at"],
        left=frozenset({0, 1, 2, 3, 7, 8}),
    )
    missed = []
    for family in progress([(name, name) for name in families()], "check"):
        if table.rows:
            table.rows.append(None)
        for row in measure(family):
            verdict = "ok" if row.passed else BAD
            numbers = [str(row.points), f"{row.error:.3g}", f"{row.bar:.3g}"]
            names = [row.function, row.quantity, row.dtype, row.against]
            table.rows.append([*names, *numbers, verdict, row.worst if row.error else "-"])
            if not row.passed:
                missed.append(row)
    table.print()
    total = sum(row is not None for row in table.rows)
    if missed:
        names = sorted({row.function for row in missed})
        print(f"FAILED: {len(missed)} of {total} rows miss their bar: {', '.join(names)}")
        return 1
    print(f"passed: all {total} rows are within their bars")
    return 0
