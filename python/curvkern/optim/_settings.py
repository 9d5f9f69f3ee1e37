"""What the optimizers of the Hutchinson family refuse."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

#: Setting -> (what it has to be, the test)
RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "lr": ("finite and not negative", lambda x: 0 <= x < math.inf),
    "eps": ("finite and not negative", lambda x: 0 <= x < math.inf),
    "weight_decay": ("finite and not negative", lambda x: 0 <= x < math.inf),
    "hessian_power": ("in [0, 2]", lambda x: 0 <= x <= 2),
    "alpha": ("positive and finite", lambda x: 0 < x < math.inf),
    "gamma": ("positive and finite", lambda x: 0 < x < math.inf),
    "rho": ("positive and finite", lambda x: 0 < x < math.inf),
    "beta2": ("in [0, 1)", lambda x: 0 <= x < 1),
    "betas": ("in [0, 1)", lambda x: 0 <= x < 1),
    "f_star": ("finite", math.isfinite),
}
CHOICES = {
    "average": ("abs", "signed"),
    "update": ("standard", "atan2"),
    "lazy": ("ema_on_refresh", "ema_stale"),
    "bias": ("refresh", "step"),
    "hvp": ("auto", "reverse", "native"),
}
SPATIAL = ("none", "conv", "row")


def number(name: str, setting: str, value: Any) -> None:
    """A real number within its range; ``lr`` may be a tensor of one element."""
    if isinstance(value, Tensor) and setting == "lr" and value.numel() == 1:
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: {setting} must be a number, got {type(value).__name__}")
    wanted, holds = RANGES[setting]
    if not holds(float(value)):
        raise ValueError(f"{name}: {setting} must be {wanted}, got {float(value)}")


def count(name: str, setting: str, value: Any, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: {setting} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name}: {setting} must be at least {least}, got {value}")


def seed(name: str, value: Any) -> None:
    count(name, "seed", value, 0)
    if value >= 1 << 63:
        raise ValueError(f"{name}: seed must be below 2^63, got {value}")


def choice(name: str, setting: str, value: Any) -> None:
    if value not in CHOICES[setting]:
        raise ValueError(
            f"{name}: {setting} must be one of {', '.join(CHOICES[setting])}, got {value!r}"
        )


def flag(name: str, setting: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: {setting} must be a bool, got {type(value).__name__}")


def spatial(name: str, value: Any) -> None:
    """A mode, or four lengths of flat blocks."""
    if isinstance(value, str):
        if value not in SPATIAL:
            raise ValueError(
                f"{name}: spatial must be one of {', '.join(SPATIAL)} or four block lengths, "
                f"got {value!r}"
            )
        return
    if not isinstance(value, Sequence) or len(value) != 4:
        raise TypeError(f"{name}: spatial must be a str or four block lengths, got {value!r}")
    for size in value:
        if isinstance(size, bool) or not isinstance(size, int) or (size < 1 and size != -1):
            raise ValueError(f"{name}: block lengths must be positive or -1, got {size!r}")


def group(name: str, settings: Mapping[str, Any], wanted: Sequence[str]) -> None:
    """Every setting of a param group."""
    missing = [key for key in wanted if key not in settings]
    if missing:
        raise ValueError(f"{name}: a param group lacks {', '.join(missing)}")
    for key in wanted:
        value = settings[key]
        if key == "betas":
            if not isinstance(value, Sequence) or len(value) != 2:
                raise TypeError(f"{name}: betas must be two numbers, got {value!r}")
            for beta in value:
                number(name, "betas", beta)
        elif key == "spatial":
            spatial(name, value)
        elif key in CHOICES:
            choice(name, key, value)
        elif key == "maximize":
            flag(name, key, value)
        else:
            number(name, key, value)
