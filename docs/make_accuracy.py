"""Write docs/accuracy.md from the committed truth: `python docs/make_accuracy.py`.

Errors of curvkern, SciPy and torch on tests/data/bessel.npz, those of the Matern correlation
against Arb, and mpmath's time. Takes two minutes.
"""

from __future__ import annotations

import itertools
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import mpmath
import numpy as np
import scipy
import scipy.special
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import curvkern  # noqa: E402
from bessel_truth import (  # noqa: E402
    FIRST,
    FUNCTIONS,
    LOGARITHMS,
    SECOND,
    Points,
    logarithm_error,
    points,
    relative_error,
)
from curvkern import _runtime, special  # noqa: E402
from curvkern._check.matern import QUANTITIES, errors  # noqa: E402
from matern_truth import balls, evaluate  # noqa: E402
from matern_truth import points as matern_points  # noqa: E402

MPMATH_DIGITS = 40
MPMATH_POINTS = 3  # per region
MPMATH_REGIONS = ("a", "b", "c", "d")

MATERN_POINTS = 400  # per range of orders
MATERN_ORDERS = {"0.01 to 1": (0.01, 1), "1 to 26": (1, 26), "26 to 1000": (26, 1000)}

REGIONS = {
    "a": "v in [0, 1], x in [1e-6, 50]",
    "b": "v in [0.05, 150], x in [1e-6, 150]",
    "c": "v in [0.05, 1e4], x in [0.01, 1e4]",
    "d": "v = d/2 - 1 for d = 2 .. 1e6, x in [1e-3, 1e6]",
    "half": "v a multiple of 1/2",
    "nearint": "v within 1e-16 .. 1e-3 of an integer",
    "matern": "v in [0.1, 20], x in [1e-8, 30]",
    "tiny order": "v = 0 or in [1e-30, 0.01], x in [1e-3, 60]",
    "small order": "v in [0, 1], x in [0.5, 40]",
    "border": "around the borders of the published region table",
    "zero I": "around the curve where log I is zero",
    "zero K": "around the curve where log K is zero",
    "extreme": "v to 1e300, x from 1e-300 to 1e300",
}

SCIPY: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "log_iv": lambda v, x: np.log(scipy.special.ive(v, x)) + x,
    "log_kv": lambda v, x: np.log(scipy.special.kve(v, x)) - x,
    "log_ive": lambda v, x: np.log(scipy.special.ive(v, x)),
    "log_kve": lambda v, x: np.log(scipy.special.kve(v, x)),
    "iv_ratio": lambda v, x: scipy.special.ive(v + 1, x) / scipy.special.ive(v, x),
    "kv_ratio": lambda v, x: scipy.special.kve(v + 1, x) / scipy.special.kve(v, x),
    "log_hyp0f1": lambda v, x: (
        scipy.special.gammaln(v + 1) - v * np.log(x / 2) + np.log(scipy.special.ive(v, x)) + x
    ),
}
TORCH_ORDERS: dict[str, dict[float, Callable[[Tensor], Tensor]]] = {
    "log_iv": {
        0.0: lambda x: torch.special.i0e(x).log() + x,
        1.0: lambda x: torch.special.i1e(x).log() + x,
    },
    "log_kv": {
        0.0: lambda x: torch.special.scaled_modified_bessel_k0(x).log() - x,
        1.0: lambda x: torch.special.scaled_modified_bessel_k1(x).log() - x,
    },
}
MPMATH: dict[str, Callable[[float, float], mpmath.mpf]] = {
    "log_iv": lambda v, x: mpmath.log(mpmath.besseli(v, x)),
    "log_kv": lambda v, x: mpmath.log(mpmath.besselk(v, x)),
}


def error(got: Tensor, name: str, at: Points) -> np.ndarray:
    return (logarithm_error if name in LOGARITHMS else relative_error)(got, name, at)


def number(value: float) -> str:
    return f"{value:.2f}" if value < 99.5 else f"{value:.1e}"


def summary(errors: np.ndarray) -> tuple[str, str, str]:
    """Largest and median of the finite errors, share of failures."""
    finite = errors[np.isfinite(errors)]
    failed = 100 * (1 - len(finite) / len(errors))
    if not len(finite):
        return "-", "-", "100 %"
    return number(finite.max()), number(float(np.median(finite))), f"{failed:.3g} %"


def where(errors: np.ndarray, at: Points) -> str:
    i = int(np.argmax(errors))
    return f"v={float(at.v[i]):.17g}, x={float(at.x[i]):.17g}"


def table(header: list[str], rows: Iterator[list[str]]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def value_rows(name: str, dtype: torch.dtype) -> Iterator[list[str]]:
    everything = points(dtype)
    kind = str(dtype).removeprefix("torch.")
    for region in ("all", *REGIONS):
        inside = everything.region == region if region != "all" else everything.v >= 0
        at = everything.select(inside)
        ours = error(getattr(special, name)(*at.tensors(dtype)), name, at)
        v, x = (t.numpy() for t in at.tensors(dtype))
        with np.errstate(all="ignore"):
            theirs = error(torch.from_numpy(np.asarray(SCIPY[name](v, x))), name, at)
        largest, median, failed = summary(ours)
        bad = [] if failed == "0 %" else [f"({failed} failed)"]
        yield [
            kind, region, str(len(at.v)), " ".join([largest, *bad]), median, where(ours, at),
            *summary(theirs),
        ]  # fmt: skip


def torch_rows() -> Iterator[list[str]]:
    for name, orders in TORCH_ORDERS.items():
        for order, compute in orders.items():
            for dtype in (torch.float64, torch.float32):
                x = torch.logspace(-6, 3, 60, dtype=dtype)
                at = exact_points(name, order, x)
                theirs = error(compute(x), name, at)
                ours = error(getattr(special, name)(order, x), name, at)
                kind = str(dtype).removeprefix("torch.")
                yield [name, f"{order:g}", kind, *summary(ours)[:2], *summary(theirs)]


def exact_points(name: str, order: float, x: Tensor) -> Points:
    """Points that are not in the table, with mpmath's truth."""
    with mpmath.workdps(MPMATH_DIGITS):
        exact = [MPMATH[name](order, float(y)) for y in x]
        hi = np.array([float(value) for value in exact])
        lo = np.array([float(value - high) for value, high in zip(exact, hi, strict=True)])
    argument = x.double().numpy()
    region = np.full(len(x), "torch")
    v = np.full(len(x), order)
    return Points(v, argument, region, {name: hi, f"{name}__lo": lo})


def derivative_rows(dtype: torch.dtype) -> Iterator[list[str]]:
    everything = points(dtype)
    ordinary = (everything.v <= 1e6) & (everything.x >= 1e-8) & (everything.x <= 1e6)
    kind = str(dtype).removeprefix("torch.")
    for (name, variables), key in itertools.chain(FIRST.items(), SECOND.items()):
        row = [name, variables, kind]
        for inside in (ordinary, ~ordinary):
            at = everything.select(inside)
            errors = relative_error(derivative(name, variables, at, dtype), key, at)
            largest, median, failed = summary(errors)
            row += [largest, median, failed, where(errors, at)]
        yield row


def derivative(name: str, variables: str, at: Points, dtype: torch.dtype) -> Tensor:
    v, x = (t.requires_grad_() for t in at.tensors(dtype))
    result = getattr(special, name)(v, x)
    for i, letter in enumerate(variables[1:], 2):
        last = i == len(variables)
        (result,) = torch.autograd.grad(
            result.sum(), {"v": v, "x": x}[letter], create_graph=not last
        )
    return result.detach()


def matern_samples(dtype: torch.dtype) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Random orders and distances, both log-uniform, with Arb's truth; then the table."""
    draw = np.random.default_rng(0)
    lowest, highest = np.transpose(list(MATERN_ORDERS.values()))
    nu = np.exp(draw.uniform(np.log(lowest), np.log(highest), (MATERN_POINTS, len(lowest))))
    r = np.exp(draw.uniform(np.log(1e-4), np.log(12), nu.shape))
    for column, orders in enumerate(MATERN_ORDERS):
        v, x = (torch.from_numpy(a[:, column]).to(dtype).double().numpy() for a in (nu, r))
        truths = [balls(*pair) for pair in zip(v.tolist(), x.tolist(), strict=True)]
        columns = {key: np.array([float(t[key]) for t in truths]) for key in QUANTITIES}
        yield orders, {"v": v, "x": x, **columns}
    table = matern_points(dtype)
    inside = table["x"] > 1e-4
    yield "table", {name: column[inside] for name, column in table.items()}


def matern_rows() -> Iterator[list[str]]:
    for dtype in (torch.float64, torch.float32):
        kind = str(dtype).removeprefix("torch.")
        for orders, at in matern_samples(dtype):
            v, x = (torch.tensor(at[name], dtype=dtype) for name in ("v", "x"))
            for key, quantity in QUANTITIES.items():
                got = evaluate(key, v, x).double().numpy()
                found = errors(got, key, at, dtype)
                size = np.maximum(np.abs(at[key]), torch.finfo(dtype).tiny)
                alone = np.abs(got - at[key]) / size / torch.finfo(dtype).eps
                i = int(np.argmax(found))
                worst = f"r={at['x'][i]:.17g}, nu={at['v'][i]:.17g}"
                yield [kind, orders, quantity, *summary(found)[:2], worst, number(alone.max())]


def mpmath_rows() -> Iterator[list[str]]:
    everything = points(torch.float64)
    mpmath.mp.dps = MPMATH_DIGITS
    for name, compute in MPMATH.items():
        for region in MPMATH_REGIONS:
            at = everything.select(everything.region == region)
            spread = np.linspace(0, len(at.v) - 1, MPMATH_POINTS).astype(int)
            spent = 0.0
            for i in spread:
                start = time.perf_counter()
                compute(float(at.v[i]), float(at.x[i]))
                spent += time.perf_counter() - start
            yield [name, region, f"{1e3 * spent / len(spread):.3g} ms"]


def page() -> Iterator[str]:
    yield "# Accuracy of the log-Bessel functions\n"
    yield (
        "Made by `python docs/make_accuracy.py`; do not edit. "
        f"curvkern {curvkern.__version__}, torch {torch.__version__}, "
        f"SciPy {scipy.__version__}, mpmath {mpmath.__version__}; instruction set "
        f"{_runtime.isa()}.\n"
    )
    yield (
        "Errors are in units of the dtype's eps (2.2e-16 for float64, 1.2e-7 for float32). "
        "Logarithms: |error| / max(1, |log|) after an allowance of 64 eps² max(v, x). "
        "Ratios, log_hyp0f1 and derivatives: relative to the truth, also where the truth is a "
        "small difference of large terms. The truth (tests/data) is that of Arb, to 130 bits; "
        "float32 is measured at points that float32 holds exactly. SciPy is used through `ive` "
        "and `kve`, whose range is wider than that of `iv`, `kv` and `hyp0f1`; it computes the "
        "float32 rows in float32. *Failed* is the share of points with an infinite or NaN "
        "result where the truth is finite.\n"
    )
    yield from table(["region", "points"], ([k, v] for k, v in REGIONS.items()))
    yield "## Values\n"
    header = ["dtype", "region", "points", "max", "median", "worst input"]
    header += ["SciPy max", "SciPy median", "SciPy failed"]
    for name in FUNCTIONS:
        yield f"### {name}\n"
        rows = (value_rows(name, dtype) for dtype in (torch.float64, torch.float32))
        yield from table(header, itertools.chain.from_iterable(rows))
    yield "## torch\n"
    yield "Orders 0 and 1: the logarithm of torch's scaled functions, x in [1e-6, 1e3].\n"
    header = ["function", "v", "dtype", "max", "median"]
    yield from table([*header, "torch max", "torch median", "torch failed"], torch_rows())
    yield "## Derivatives\n"
    yield "*Ordinary* is v <= 1e6, 1e-8 <= x <= 1e6; *beyond* is the rest of the table.\n"
    header = ["function", "derivative", "dtype"]
    for domain in ("ordinary", "beyond"):
        header += [f"{domain}: max", "median", "failed", "worst input"]
    rows = (derivative_rows(dtype) for dtype in (torch.float64, torch.float32))
    yield from table(header, itertools.chain.from_iterable(rows))
    yield "## matern\n"
    yield (
        f"{MATERN_POINTS} random points each, distances in [1e-4, 12] length scales, against "
        "Arb. *Table* are the points of tests/data/matern.npz beyond 1e-4: both sides of "
        "every border between two formulas, and those with the largest errors among 68 000 "
        "random ones, of which two thirds lay where the formulas are worst: z = sqrt(2 nu) "
        "r in [0.5, 8.5], and orders next to half integers with z in [0.7, 1.2]. Errors are "
        "over max(1, |log M|) and relative to the truth, or to what it is a difference of "
        "where that is larger: M for d/dnu, M and |dM/dnu|/nu for d2/dnu2, |dM/dr| for "
        "d2/dnudr, 2 nu M for d2/dr2. The largest stand where Temme's series is longest, nu "
        "near 1/2 and 3/2, z just below 1.2; beyond z = 1.2 values are right to 6.5 eps, in "
        "the uniform expansion to 2.7. *Relative max* is over the truth alone: where nu > 1 "
        "and the distance is small, derivatives in nu vanish with its square, and what is left "
        "of them has few digits.\n"
    )
    yield from table(
        ["dtype", "order", "quantity", "max", "median", "worst input", "relative max"],
        matern_rows(),
    )
    yield "## mpmath's time\n"
    yield f"One value with {MPMATH_DIGITS} digits, mean over {MPMATH_POINTS} points.\n"
    yield from table(["function", "region", "time"], mpmath_rows())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    (ROOT / "docs" / "accuracy.md").write_text("\n".join(page()))
