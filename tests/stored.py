"""Problems that a file of tests/data holds, by name and field."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np


@cache
def data(file: str) -> dict[str, np.ndarray]:
    """All arrays of a file, named ``problem/field``."""
    with np.load(Path(__file__).parent / "data" / file) as arrays:
        return dict(arrays)


@dataclass(frozen=True)
class Stored:
    """One problem of the file that a subclass names."""

    name: str
    file: ClassVar[str]

    def __getitem__(self, field: str) -> np.ndarray:
        return data(self.file)[f"{self.name}/{field}"]

    def __contains__(self, field: str) -> bool:
        return f"{self.name}/{field}" in data(self.file)
