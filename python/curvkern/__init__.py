"""Compiled curvature kernels for PyTorch.

Importing this package loads neither torch nor the compiled modules; the first use of a
submodule does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import curvature as curvature
    from . import distributions as distributions
    from . import fisher as fisher
    from . import nn as nn
    from . import optim as optim
    from . import ot as ot
    from . import sparse as sparse
    from . import special as special

__all__ = [
    "ConvergenceWarning",
    "__version__",
    "curvature",
    "distributions",
    "fisher",
    "nn",
    "optim",
    "ot",
    "sparse",
    "special",
]

_SUBMODULES = frozenset(
    {"curvature", "distributions", "fisher", "nn", "optim", "ot", "sparse", "special"}
)


class ConvergenceWarning(RuntimeWarning):
    """An iteration stopped before it reached its tolerance; the result is still finite."""


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
