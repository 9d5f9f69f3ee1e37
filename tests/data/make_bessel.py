"""Make bessel.npz and bessel_edges.json: `python tests/data/make_bessel.py [--check]`.

2104 points in the regions below with the truth of `truth.py`; `--check` compares a subset of
the committed file with a second formula (mpmath: power series differentiated term by term for
I, the integral over cosh differentiated under the sign for K).

Keys of the file: v, x, region, f32 (both inputs are float32 numbers), every name of
truth.VALUES as `name` and `name__lo` (hi + lo), every ratio and derivative as `name`.
"""

import json
import sys
from pathlib import Path

import mpmath
import numpy as np
import truth
from flint import arb, ctx

HERE = Path(__file__).parent
SEED = 20409


def log_uniform(rng, low, high, n):
    return np.exp(rng.uniform(np.log(low), np.log(high), n))


def mixed(rng, low, high, n):
    """Half uniform, half log-uniform."""
    out = rng.uniform(low, high, n)
    out[: n // 2] = log_uniform(rng, low, high, n // 2)
    return rng.permutation(out)


def on_border(v, x):
    """Spread points around a curve: one part in 2^2 .. 2^20 on either side, or on it."""
    rng = np.random.default_rng(SEED + len(v))
    shift = rng.choice([-1.0, 0.0, 1.0], len(v)) * 2.0 ** -rng.uniform(2, 20, len(v))
    return v * (1 + shift), x


def published_borders(rng):
    """Borders of the region table of arXiv 2409.08729, Section 4."""
    v, x = [], []
    for order in (3.05, 3.1, 15.3919, 163.6993, 56.9971, 20.1534, 12.6964, 0.3, 0.46, 0.6, 0.7):
        at = log_uniform(rng, 0.01, 3000.0, 6)
        v.append(np.full_like(at, order))
        x.append(at)
    for at in (1400.0, 30.0, 59.6925, 274.2377, 84.4153, 35.9074, 19.6931):
        order = log_uniform(rng, 0.02, 200.0, 6)
        v.append(order)
        x.append(np.full_like(order, at) * (1 + 2.0 ** -rng.uniform(3, 20, 6)))
    for slope, shift, low in ((0.6229, -3.2318, 1200.0), (0.5113, 0.7939, 60.0)):
        at = log_uniform(rng, low, 1e7, 24)
        v.append(np.exp(slope * np.log(at) + shift))
        x.append(at)
    return on_border(np.concatenate(v), np.concatenate(x))


def zero_curve(log_scaled, sign, orders):
    """Points where log I or log K crosses zero, from on the curve to 1e-2 off it."""
    ctx.prec = 128
    found = []
    for i, v in enumerate(orders):

        def f(x, v=v):
            return float((log_scaled(arb(v), arb(x)) + sign * x).mid())

        low, high = 1e-9, 4.0 * v + 10.0
        while f(low) * f(high) > 0:
            high *= 2
        rising = f(high) > 0
        for _ in range(80):
            middle = 0.5 * (low + high)
            low, high = (low, middle) if (f(middle) > 0) == rising else (middle, high)
        found.append(low * (1 + (0.0, 1e-12, -1e-7, 1e-4, -1e-2)[i % 5]))
    return np.array(orders), np.array(found)


def extreme(rng):
    """v to 1e300, x from 1e-300 to 1e300, and places where squares or quotients overflow."""
    parts = [
        (log_uniform(rng, 1e-3, 1e15, 50), log_uniform(rng, 1e-300, 1e300, 50)),
        (log_uniform(rng, 1e-300, 1.0, 30), log_uniform(rng, 1e-300, 1e3, 30)),
        (order := log_uniform(rng, 1e5, 1e300, 40), order * log_uniform(rng, 1e-4, 1e4, 40)),
        (order := log_uniform(rng, 1e3, 1e15, 60), order * log_uniform(rng, 1e-3, 1e3, 60)),
        (order := log_uniform(rng, 1e2, 1e15, 30), order**0.5 * log_uniform(rng, 0.1, 10, 30)),
        (order := log_uniform(rng, 1e2, 1e10, 30), order**2 * log_uniform(rng, 0.01, 100, 30)),
        (log_uniform(rng, 1e-30, 1e15, 50), log_uniform(rng, 1e-37, 1e37, 50)),
        (np.zeros(12), log_uniform(rng, 1e-300, 1e300, 12)),
        (np.full(8, 1e15), log_uniform(rng, 1e-300, 1e300, 8)),
        (np.array([1e154, 1.4e154, 1e19, 2e19, 1e300, 0.5, 1e-300, 2.0]),
         np.array([1e154, 3e154, 1e19, 1e19, 1e300, 1e300, 1e-300, 1e-160])),
    ]  # fmt: skip
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def near_integers(rng, n):
    shift = rng.choice([-1.0, 1.0], n) * log_uniform(rng, 1e-16, 1e-3, n)
    return np.abs(rng.integers(0, 20, n) + shift), log_uniform(rng, 1e-6, 40.0, n)


def points():
    """(v, x, region) in float64; some two thirds are rounded so that float32 holds them."""
    rng = np.random.default_rng(SEED)
    half = rng.integers(0, 60, 90) / 2.0
    half[:20] = rng.integers(60, 5000, 20) / 2.0
    dims = np.array([2, 3, 8, 64, 128, 512, 2048, 8192, 32768, 1e5, 1e6])
    tiny = np.where(rng.random(100) < 0.3, 0.0, log_uniform(rng, 1e-30, 1e-2, 100))
    groups = {
        "a": (rng.uniform(0, 1, 220), mixed(rng, 1e-6, 50.0, 220)),
        "b": (mixed(rng, 0.05, 150.0, 300), mixed(rng, 1e-6, 150.0, 300)),
        "c": (mixed(rng, 0.05, 1e4, 260), mixed(rng, 1e-2, 1e4, 260)),
        "d": (rng.choice(dims, 240) / 2 - 1, log_uniform(rng, 1e-3, 1e6, 240)),
        "half": (half, log_uniform(rng, 1e-4, 5e3, 90)),
        "nearint": near_integers(rng, 100),
        "matern": (
            np.where(rng.random(110) < 0.4, rng.choice([0.5, 1.5, 2.5], 110),
                     rng.uniform(0.1, 20.0, 110)),
            log_uniform(rng, 1e-8, 30.0, 110),
        ),
        "tiny order": (tiny, log_uniform(rng, 1e-3, 60.0, 100)),
        "small order": (rng.uniform(0, 1, 90), rng.uniform(0.5, 40.0, 90)),
        "border": published_borders(rng),
        "zero I": zero_curve(truth.log_ive, 1, log_uniform(rng, 0.02, 3e4, 60)),
        "zero K": zero_curve(truth.log_kve, -1, log_uniform(rng, 0.02, 3e4, 60)),
        "extreme": extreme(rng),
    }  # fmt: skip
    v = np.concatenate([g[0] for g in groups.values()])
    x = np.concatenate([g[1] for g in groups.values()])
    region = np.repeat(list(groups), [len(g[0]) for g in groups.values()])
    fits = (x > 1e-37) & (x < 1e37) & (v < 1e37) & ((v == 0) | (v > 1e-37))
    keep = np.isin(region, ["nearint", "zero I", "zero K"]) & (rng.random(len(v)) < 0.7)
    rounded = fits & ~keep & (rng.random(len(v)) < 0.7)
    with np.errstate(over="ignore"):
        v, x = (np.where(rounded, y.astype(np.float32), y) for y in (v, x))
    return v, x, region


def make_table():
    v, x, region = points()
    columns = {name: np.empty(len(v)) for name in truth.VALUES + truth.RATIOS}
    columns |= {f"{name}__lo": np.empty(len(v)) for name in truth.VALUES}
    columns |= {name: np.empty(len(v)) for name in truth.SLOPES + truth.CURVATURES}
    for i in range(len(v)):
        for name, ball in truth.bessel(float(v[i]), float(x[i])).items():
            columns[name][i], low = truth.split(ball)
            if name in truth.VALUES:
                columns[f"{name}__lo"][i] = low
        if i % 200 == 0:
            print(f"{i} of {len(v)} points", flush=True)
    with np.errstate(over="ignore"):
        f32 = (v.astype(np.float32) == v) & (x.astype(np.float32) == x)
    np.savez_compressed(HERE / "bessel.npz", v=v, x=x, region=region, f32=f32, **columns)


NAN, INF = float("nan"), float("inf")

# limits at x = 0 with v = 0, at x = 0 with v > 0, as x -> inf, as v -> inf; NaN elsewhere
LIMITS = {
    "log_iv": (0.0, -INF, INF, -INF),
    "log_kv": (INF, INF, -INF, INF),
    "log_ive": (0.0, -INF, -INF, -INF),
    "log_kve": (INF, INF, -INF, INF),
    "iv_ratio": (0.0, 0.0, 1.0, 0.0),
    "kv_ratio": (INF, INF, 1.0, INF),
    "log_hyp0f1": (0.0, 0.0, INF, 0.0),
}
EDGES = [
    (0, "I_0(0) = 1, K_0(0+) = inf; -0 counts as 0", [(0.0, 0.0), (-0.0, 0.0), (0.0, -0.0)]),
    (1, "I_v(0) = 0, K_v(0+) = inf",
     [(1e-300, 0.0), (0.5, 0.0), (1.0, 0.0), (7.25, 0.0), (1e15, 0.0), (0.5, -0.0)]),
    (2, "growth and decay like exp(+-x)", [(0.0, INF), (0.5, INF), (3.0, INF), (1e15, INF)]),
    (3, "v -> inf at fixed x", [(INF, 0.5), (INF, 1e300), (INF, 0.0)]),
    (None, "v -> inf and x -> inf have no common limit", [(INF, INF)]),
    (None, "NaN in, NaN out",
     [(NAN, 1.0), (1.0, NAN), (NAN, 0.0), (0.0, NAN), (NAN, INF), (INF, NAN)]),
    (None, "x < 0 is outside the domain", [(0.5, -1.0), (0.5, -1e-300), (0.5, -INF)]),
    (None, "v < 0 is outside the domain", [(-0.5, 1.0), (-1.0, 1.0), (-INF, 1.0)]),
]  # fmt: skip
OVERFLOWS = [
    ("log_iv", 1e308, 1e-308, -INF, "about -7.1e310"),
    ("log_kv", 1e308, 1e-308, INF, "about 7.1e310"),
    ("log_iv", 1.7e308, 1.7e308, "finite", "9.1e307, though v*v overflows"),
    ("log_iv", 0.0, 5e-324, 0.0, "x*x/4 underflows"),
    ("log_iv", 0.0, 1e-160, "tiny", "2.5e-321 or 0: x*x/4 is subnormal"),
]


def edge_list():
    """IEEE results, one row per (function, v, x). All is text: JSON knows no inf."""
    rows = [
        (function, v, x, NAN if limit is None else limits[limit], why)
        for limit, why, places in EDGES
        for v, x in places
        for function, limits in LIMITS.items()
    ]
    keys = ("fn", "v", "x", "expect", "why")
    return [dict(zip(keys, map(str, row), strict=True)) for row in rows + OVERFLOWS]


def second_formula(v, x):
    """log I, log K and their derivatives in v from mpmath, 60 digits, no code shared."""
    mpmath.mp.dps = 60 + int(2 * x / mpmath.log(10))
    v, x = mpmath.mpf(v), mpmath.mpf(x)
    term = total = mpmath.mpf(1)
    slope = rate = mpmath.mpf(0)  # rate = d log(term) / dv
    k = 0
    while term > total * mpmath.mpf(10) ** -mpmath.mp.dps:
        k += 1
        term *= x * x / (4 * k * (v + k))
        rate -= 1 / (v + k)
        total += term
        slope += rate * term
    log_i = v * mpmath.log(x / 2) - mpmath.loggamma(v + 1) + mpmath.log(total)
    log_i_dv = mpmath.log(x / 2) - mpmath.digamma(v + 1) + slope / total
    mpmath.mp.dps = 40

    def integral(weight):
        """Trapezoid rule on the line: the integrand decays doubly exponentially."""
        h = mpmath.mpf(1) / 32
        end = mpmath.acosh((110 + 2 * v * 10) / x + 2) + 1
        nodes = (h * i for i in range(1, int(end / h) + 1))
        start = mpmath.exp(-x) * weight(mpmath.mpf(0)) / 2
        return h * (start + sum(mpmath.exp(-x * mpmath.cosh(t)) * weight(t) for t in nodes))

    k_v = integral(lambda t: mpmath.cosh(v * t))
    return log_i, mpmath.log(k_v), log_i_dv, integral(lambda t: t * mpmath.sinh(v * t)) / k_v


def check():
    """Worst disagreement of the committed table with the second formula, in float64 eps."""
    table = np.load(HERE / "bessel.npz")
    inside = (table["v"] < 60) & (table["x"] < 60) & (table["x"] > 1e-3)
    worst = dict.fromkeys(("log_iv", "log_kv", "log_iv_dv", "log_kv_dv"), 0.0)
    for i in np.flatnonzero(inside)[::8]:
        other = second_formula(float(table["v"][i]), float(table["x"][i]))
        for name, value in zip(worst, other, strict=True):
            gap = abs(value - mpmath.mpf(float(table[name][i])))
            gap /= max(abs(value), mpmath.mpf(2) ** -1022)
            worst[name] = max(worst[name], float(gap) / np.finfo(float).eps)
    print(f"{len(np.flatnonzero(inside)[::8])} points, worst relative gap in eps: {worst}")
    if max(worst.values()) > 1.0:
        sys.exit("the two formulas disagree")


if __name__ == "__main__":
    if "--check" in sys.argv:
        check()
    else:
        (HERE / "bessel_edges.json").write_text(json.dumps(edge_list(), indent=1) + "\n")
        make_table()
