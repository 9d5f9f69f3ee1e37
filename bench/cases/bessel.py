"""Benchmark cases of the log-Bessel family.

Inputs are uniform over their region. Against each function stand torch.lgamma (the yardstick),
the pure-PyTorch twin, and SciPy's scaled functions under a logarithm where those stay finite:
elsewhere they under- or overflow, many return early, and their time would mean nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from curvkern import reference, special
from curvkern._bench.case import OURS, REFERENCE, Bar, Case, Contestants

FUNCTIONS = ("log_iv", "log_kv", "log_ive", "log_kve", "iv_ratio", "kv_ratio", "log_hyp0f1")
REGIONS = {
    "a": "v in [0, 1], x in [1e-6, 50]",
    "b": "v, x in [0, 150]",
    "c": "v, x in [0, 1e4]",
    "d": "v = d/2 - 1, d in [2, 1e6], x in [0, 1e6]",
}
REAL = (
    "real input, scikit-learn's digits: their norms as concentrations at d = 64, 512, 4096, "
    "32768; their distances under a Matérn kernel of smoothness 1.7"
)
YARDSTICK = "torch.lgamma"
VALUE = f"{OURS} value"
LGAMMA_BAR = {"log_iv": 1.25, "log_kv": 2.5}
SCIPY_WORKS = {("a", "float64"), ("a", "float32"), ("b", "float64")}
SCIPY_BAR = {("log_iv", "a"): 10, ("log_iv", "b"): 25, ("log_kv", "a"): 7, ("log_kv", "b"): 10}
QUICK_FLOAT32 = {("log_iv", "b"), ("log_iv", "d"), ("log_kv", "b"), ("log_kv", "d")}
DIMENSIONS = (64, 512, 4096, 32768)
SIZE = {"float64": 8, "float32": 4}

# The least arithmetic known for one value: two logarithms of about 30 operations and a pair of
# polynomials of degree 16 at two operations a term. A derivative adds a pair, that in v a
# logarithm as well; a ratio needs no logarithm.
LOGARITHM, POLYNOMIALS = 30, 2 * 2 * 16
VALUE_FLOPS = 2 * LOGARITHM + POLYNOMIALS
GRADIENT_FLOPS = VALUE_FLOPS + 2 * POLYNOMIALS + LOGARITHM
RATIO_FLOPS = POLYNOMIALS


def cases() -> list[Case]:
    """Values, values with both gradients, fixed orders, and real input."""
    listed = []
    for op in FUNCTIONS:
        grid = [(region, dtype) for region in REGIONS for dtype in SIZE]
        listed += [_value(op, region, dtype) for region, dtype in grid]
        if op in ("log_iv", "log_kv"):
            listed += [_gradients(op, region, dtype) for region, dtype in grid]
            listed += [_fixed_order(op, v) for v in (0, 1)]
    listed += [_von_mises_fisher(dtype) for dtype in SIZE]
    listed += [_matern(mode, dtype) for mode in ("value", "value+grads") for dtype in SIZE]
    return listed


def inputs(region: str, dtype: str, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Orders and arguments, uniform over a region."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, n, generator=generator, dtype=torch.float64)
    if region == "a":
        v, x = first, 1e-6 + (50 - 1e-6) * second
    elif region == "d":
        v, x = torch.floor(2 + first * (1e6 - 1)) / 2 - 1, 1e6 * second
    else:
        top = {"b": 150, "c": 1e4}[region]
        v, x = top * first, top * second
    kind = getattr(torch, dtype)
    return v.to(kind), x.to(kind)


def _value(op: str, region: str, dtype: str) -> Case:
    def setup(n: int) -> Contestants:
        v, x = inputs(region, dtype, n)
        calls = {
            OURS: lambda: getattr(special, op)(v, x),
            YARDSTICK: lambda: torch.lgamma(x),
            REFERENCE: lambda: getattr(reference.bessel, op)(v, x),
        }
        rival = _scipy(op) if (region, dtype) in SCIPY_WORKS else None
        if rival is not None:
            order, argument = v.numpy(), x.numpy()
            calls["SciPy"] = lambda: rival(order, argument)
        return calls

    bars = [Bar(YARDSTICK, slower=LGAMMA_BAR[op])] if op in LGAMMA_BAR else []
    if (op, region) in SCIPY_BAR:
        bars.append(Bar("SciPy", faster=SCIPY_BAR[op, region]))
    return Case(
        family="bessel",
        op=op,
        region=region,
        mode="value",
        dtype=dtype,
        where=REGIONS[region],
        setup=setup,
        yardstick=YARDSTICK,
        bytes=3 * SIZE[dtype],
        flops=RATIO_FLOPS if op.endswith("ratio") else VALUE_FLOPS,
        bars=tuple(bars),
        quick=op in LGAMMA_BAR and (dtype == "float64" or (op, region) in QUICK_FLOAT32),
        note="SciPy is timed where its scaled functions are finite: in a, and in b in float64",
    )


def _gradients(op: str, region: str, dtype: str) -> Case:
    def setup(n: int) -> Contestants:
        v, x = inputs(region, dtype, n)
        order, argument = v.clone().requires_grad_(), x.clone().requires_grad_()
        ones = torch.ones_like(v)

        def forward_and_backward(function: Callable) -> tuple[torch.Tensor, ...]:
            result = function(order, argument)
            return result.detach(), *torch.autograd.grad(result, (order, argument), ones)

        return {
            OURS: lambda: forward_and_backward(getattr(special, op)),
            VALUE: lambda: getattr(special, op)(v, x),
            YARDSTICK: lambda: torch.lgamma(x),
            REFERENCE: lambda: forward_and_backward(getattr(reference.bessel, op)),
        }

    return Case(
        family="bessel",
        op=op,
        region=region,
        mode="value+grads",
        dtype=dtype,
        where=REGIONS[region],
        setup=setup,
        yardstick=YARDSTICK,
        # The value pass moves 3 numbers; backward reads v, x, the incoming gradient, writes 2.
        bytes=8 * SIZE[dtype],
        flops=GRADIENT_FLOPS,
        bars=(Bar(VALUE, slower=3),),
        quick=region in "bd" and dtype == "float64",
        note="value+grads is autograd in v and x; no peer offers the derivative in the order",
    )


def _fixed_order(op: str, v: int) -> Case:
    scaled = {
        ("log_iv", 0): torch.special.i0e,
        ("log_iv", 1): torch.special.i1e,
        ("log_kv", 0): torch.special.scaled_modified_bessel_k0,
        ("log_kv", 1): torch.special.scaled_modified_bessel_k1,
    }[op, v]
    sign = 1 if op == "log_iv" else -1

    def setup(n: int) -> Contestants:
        x = inputs("a", "float64", n)[1]
        order = torch.full_like(x, v)
        return {
            OURS: lambda: getattr(special, op)(order, x),
            YARDSTICK: lambda: torch.lgamma(x),
            REFERENCE: lambda: getattr(reference.bessel, op)(order, x),
            "torch.special": lambda: torch.log(scaled(x)) + sign * x,
        }

    return Case(
        family="bessel",
        op=op,
        region=f"v={v}",
        mode="value",
        dtype="float64",
        where=f"v = {v}, x in [1e-6, 50]",
        setup=setup,
        yardstick=YARDSTICK,
        bytes=3 * SIZE["float64"],
        flops=VALUE_FLOPS,
        note="at v = 0 and 1 torch.special has functions of that one order",
    )


def _von_mises_fisher(dtype: str) -> Case:
    """Log-normalizers of a concentration per sample, and their gradients: metric learning."""

    def setup(n: int) -> Contestants:
        norms = torch.linalg.vector_norm(_digits(), dim=1).to(getattr(torch, dtype))
        each = math.ceil(n / len(DIMENSIONS))
        sample = norms.repeat(math.ceil(each / len(norms)))[:each]
        kappa = torch.cat([sample * (d / 64) for d in DIMENSIONS])[:n].requires_grad_()
        order = torch.tensor(DIMENSIONS, dtype=kappa.dtype).repeat_interleave(each)[:n] / 2 - 1

        def normalizer(log_iv: Callable) -> torch.Tensor:
            half = order + 1
            log_c = order * kappa.log() - half * math.log(2 * math.pi) - log_iv(order, kappa)
            return torch.autograd.grad(log_c.sum(), kappa)[0]

        return {
            OURS: lambda: normalizer(special.log_iv),
            YARDSTICK: lambda: torch.lgamma(order),
            REFERENCE: lambda: normalizer(reference.bessel.log_iv),
        }

    return Case(
        family="bessel",
        op="vMF log-normalizer",
        region="digits",
        mode="value+grad",
        dtype=dtype,
        where=REAL,
        setup=setup,
        yardstick=YARDSTICK,
        bytes=8 * SIZE[dtype],
        flops=VALUE_FLOPS + POLYNOMIALS + LOGARITHM,
        quick=dtype == "float64",
        needs=("sklearn",),
    )


def _matern(mode: str, dtype: str) -> Case:
    """A Matérn matrix between digits, with gradients in smoothness and length scale."""

    def setup(n: int) -> Contestants:
        pixels = (_digits() / 16).to(getattr(torch, dtype))
        side = math.isqrt(n)
        left, right = pixels[:side], pixels[-side:]
        r = torch.cdist(left, right)  # of different digits: never 0
        nu, scale = (
            torch.tensor(a, dtype=r.dtype, requires_grad=mode == "value+grads")
            for a in (1.7, 2.0)
        )

        def twin(r: torch.Tensor, nu: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return reference.matern.matern(nu.expand_as(r), r / scale)

        def timed(function: Callable) -> object:
            matrix = function(r, nu, scale)
            if mode == "value":
                return matrix
            return torch.autograd.grad(matrix.sum(), (nu, scale))

        calls = {
            OURS: lambda: timed(special.matern),
            YARDSTICK: lambda: torch.lgamma(r),
            REFERENCE: lambda: timed(twin),
        }
        if mode == "value":
            from sklearn.gaussian_process.kernels import Matern

            kernel, a, b = Matern(length_scale=2.0, nu=1.7), left.numpy(), right.numpy()
            calls["scikit-learn"] = lambda: kernel(a, b)
        return calls

    return Case(
        family="bessel",
        op="matern",
        region="digits",
        mode=mode,
        dtype=dtype,
        where=REAL,
        setup=setup,
        yardstick=YARDSTICK,
        bytes=3 * SIZE[dtype],
        flops=VALUE_FLOPS if mode == "value" else GRADIENT_FLOPS,
        quick=dtype == "float64",
        needs=("sklearn",),
        note="scikit-learn's Matérn kernel is timed as it is called, with its distances",
    )


def _digits() -> torch.Tensor:
    """The 1797 handwritten digits of scikit-learn, 64 features each."""
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits().data)


def _scipy(op: str) -> Callable | None:
    """The function written with SciPy's scaled Bessel functions, if SciPy is installed."""
    try:
        import numpy as np
        from scipy.special import gammaln, ive, kve
    except ImportError:
        return None
    return {
        "log_iv": lambda v, x: np.log(ive(v, x)) + x,
        "log_kv": lambda v, x: np.log(kve(v, x)) - x,
        "log_ive": lambda v, x: np.log(ive(v, x)),
        "log_kve": lambda v, x: np.log(kve(v, x)),
        "iv_ratio": lambda v, x: ive(v + 1, x) / ive(v, x),
        "kv_ratio": lambda v, x: kve(v + 1, x) / kve(v, x),
        "log_hyp0f1": lambda v, x: gammaln(v + 1) + v * np.log(2 / x) + np.log(ive(v, x)) + x,
    }[op]
