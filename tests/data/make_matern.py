"""Make matern.npz and the self-test's matern.json: `python tests/data/make_matern.py`.

Orders nu (v) and distances rho in length scales (x), on both sides of every border between the
formulas of csrc/bessel/matern.hpp, and between them, with the truth of `truth_matern.py`.
Takes a few minutes; `--check` compares a part of the committed files with the second formula.

Keys of the file: v, x, region, f32 (both are float32 numbers), every name of
truth_matern.QUANTITIES, and value__lo, what the double leaves over.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import mpmath as mp
import numpy as np
import truth_matern as truth
from flint import arb

HERE = Path(__file__).parent
TARGET = HERE.parents[1] / "python" / "curvkern" / "_check" / "matern.json"
SEED = 1999

# Of float64 and of float32; second derivatives take half as much again for the tiers.
FITS = (1.2, 3.2, 8.5)  # lower ends of the intervals of z
DEBYE = (22.5, 10.4)  # z^2 + 0.8 nu^2
TIERS = (41.5, 255.0, 19.5)  # |(nu, z)|
STIRLING = (11.0, 5.0)  # orders
POWER = 1.1  # the least order for which (z/2)^{2(nu-1)} may vanish
VANISHED = (66, 36)  # as 2 to minus this
WIDER = 1.5

FITTED_ORDERS = (0.02, 0.3, 0.5, 0.8, 1.0, 1.04, 1.2, 1.5, 2.0, 2.7, 4.6, 7.5, 10.3, 14.2, 20.5)
SIDES = (-(2.0**-18), 2.0**-18)  # relative, as float32 can tell them apart
CLOSE = (-(2.0**-50), 2.0**-50)  # float64 alone

# Both ends, integers and what is next to them; float64.
WIDE_ORDERS = (
    1e-3,
    0.1,
    0.49,
    1 - 1e-12,
    1.0,
    1 + 2.0**-52,
    2 + 1e-9,
    3 - 1e-6,
    60.0,
    1e3,
    1e6,
)
WIDE_DISTANCES = (1e-200, 1e-12, 1e-7, 1e-4, 0.03, 0.4, 2.2, 12.0)

# The self-test: every number is a float32.
CHECK_ORDERS = (0.0625, 0.3, 0.5, 0.9375, 1.0, 1.7, 2.5, 4.25, 8.2, 11.0, 26.0, 100.0, 1000.0)
CHECK_DISTANCES = (1e-4, 0.02, 0.25, 0.9, 2.2, 5.0)

# The largest errors of either dtype, with and without FMA, among 68 000 points that
# sweep_matern.py drew: most of them where Temme's series is longest, at its end in z and in nu.
SWEPT = (
    (0.0102507658, 10.8788948), (0.0179152023, 8.47450161), (0.0179339442, 12.7237797),
    (0.0220346916, 11.8133802), (0.138707504, 61.7779922), (0.40833202, 2.72271657),
    (0.452395529, 2.91488171), (0.489231378, 1.18848908), (0.499112874, 1.12672544),
    (0.499306232, 1.10767603), (0.499761671, 1.14463413), (0.499932081, 1.11474538),
    (0.499955684, 1.19693255), (0.499965489, 1.00103033), (0.499996752, 1.17598128),
    (0.499998122, 1.19706798), (0.5, 1.17061877), (0.500000358, 1.17047799),
    (0.500001252, 1.16660047), (0.500020027, 1.10853851), (0.500020087, 1.09311545),
    (0.868679404, 29.2592163), (1.48140383, 0.688370645), (1.49783826, 0.677018225),
    (1.49998748, 0.627943516), (1.5, 0.691362202), (1.50000036, 0.638250411),
    (1.50002003, 0.679813206), (1.98426032, 5.55648375), (2.49396753, 0.659141123),
    (2.94555902, 7.86867094), (4.12934208, 0.546924353), (5.83763742, 3.24942565),
    (6.24226761, 10.8867807), (6.85592413, 10.2279749), (8.58166504, 1.08824313),
    (8.75246048, 1.26088357), (14.0539494, 5.32507706), (17.1382942, 0.583984256),
    (18.7321186, 1.36242425), (25.3862572, 0.124842629),
)  # fmt: skip


def borders() -> Iterator[tuple[str, float, float, bool]]:
    """(region, nu, z, whether it is nu that crosses the border)."""
    for z in FITS:
        for v in FITTED_ORDERS:
            if z * z + 0.8 * v * v < DEBYE[0] ** 2:
                yield "fits", v, z, False
    for radius in DEBYE:
        for angle in (0.02, 0.2, 0.5, 0.8, 1.1, 1.3, 1.45, 1.55):
            yield "debye", radius * np.sin(angle) / 0.8**0.5, radius * np.cos(angle), False
    for tier in TIERS:
        for radius in (tier, WIDER * tier):
            for angle in (0.3, 0.6, 0.9, 1.2, 1.4, 1.56):
                yield "tier", radius * np.sin(angle), radius * np.cos(angle), False
    for v, radius in zip(STIRLING, DEBYE, strict=True):
        for factor in (1.001, 1.1, 1.4, 2.0, 4.0):
            yield "stirling", v, factor * (radius**2 - 0.8 * v * v) ** 0.5, True
    for z in (1e-100, 1e-30, 1e-12):
        yield "power", POWER, z, True
    for bits in VANISHED:
        for v in (1.11, 1.3, 1.5, 2.0, 2.4, 3.0, 5.0, 10.0, 20.0):
            z = 2.0 ** (1 - bits / (2 * (v - 1)))
            for octave in (0.45, 0.9, 1.1, 2.1):  # powers of two decide
                yield "power", v, z * octave, False
    for v in np.arange(0.5, 11.6, 0.5):
        for z in (0.3, 2.0, 6.0):
            yield "half", v, z, True


def points() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found: list[tuple[str, float, float]] = []
    for region, v, z, by_order in borders():
        for sides, kind in ((SIDES, np.float32), (CLOSE, np.float64)):
            if region == "power" and not by_order and kind is np.float64:
                continue
            for side in (*sides, 0.0) if region == "half" else sides:
                shift = (1 + side, 1.0) if by_order else (1.0, 1 + side)
                order = float(kind(v * shift[0]))
                found.append((region, order, float(kind(z * shift[1] / np.sqrt(2 * order)))))
    draw = np.random.default_rng(SEED)
    v = np.exp(draw.uniform(np.log(0.01), np.log(400), 240))
    x = np.exp(draw.uniform(np.log(1e-4), np.log(12), 240))
    found += [
        ("between", float(a), float(b))
        for a, b in zip(np.float32(v), np.float32(x), strict=True)
    ]
    found += [("swept", float(np.float32(v)), float(np.float32(x))) for v, x in SWEPT]
    found += [
        ("wide", v, x)
        for v in WIDE_ORDERS
        for x in WIDE_DISTANCES
        if v < 1e4 or x > 1e-5  # Arb's K gives up beyond
    ]
    unique = [point for point in dict.fromkeys(found) if point[2] > 0]  # 1e-100 in float32
    region, v, x = zip(*unique, strict=True)
    return np.array(region), np.array(v), np.array(x)


def make_table() -> None:
    region, v, x = points()
    columns = {name: np.empty(len(v)) for name in (*truth.QUANTITIES, "value__lo")}
    for i, pair in enumerate(zip(v.tolist(), x.tolist(), strict=True)):
        balls = truth.balls(*pair)
        for name, ball in balls.items():
            columns[name][i] = float(ball.mid())
        columns["value__lo"][i] = float(balls["value"].mid() - arb(columns["value"][i]))
        if i % 200 == 0:
            print(f"{i} of {len(v)} points", flush=True)
    with np.errstate(under="ignore"):
        f32 = (v.astype(np.float32) == v) & (x.astype(np.float32) == x)
    np.savez_compressed(HERE / "matern.npz", v=v, x=x, region=region, f32=f32, **columns)


def make_check_table() -> None:
    table = []
    for pair in (*product(CHECK_ORDERS, CHECK_DISTANCES), *SWEPT):
        v, x = map(float, np.float32(pair))
        balls = truth.balls(v, x)
        gaps = relative_gaps(balls, truth.integral(v, x))
        assert max(gaps.values()) < 1e-20, (v, x, gaps)
        table.append({"v": v, "x": x, **{name: float(b.mid()) for name, b in balls.items()}})
    head = {"made_by": "tests/data/make_matern.py"}
    lines = ",\n".join(json.dumps(point) for point in table)
    TARGET.write_text(f'{json.dumps(head)[:-1]}, "points": [\n{lines}\n]}}\n')


def relative_gaps(balls: dict[str, arb], second: dict[str, mp.mpf]) -> dict[str, float]:
    with mp.workdps(50):
        return {
            name: float(abs(mp.mpf(ball.mid().str(40, radius=False)) / second[name] - 1))
            for name, ball in balls.items()
        }


def check() -> None:
    """Worst relative disagreement of the committed table with the integral, in eps."""
    table = np.load(HERE / "matern.npz")
    chosen = np.flatnonzero(table["x"] > 1e-6)[::12]
    worst = dict.fromkeys(truth.QUANTITIES, 0.0)
    for i in chosen:
        second = truth.integral(float(table["v"][i]), float(table["x"][i]))
        for name in worst:
            gap = float(abs(mp.mpf(float(table[name][i])) / second[name] - 1))
            worst[name] = max(worst[name], gap / np.finfo(float).eps)
    print(f"{len(chosen)} points, worst relative gap in eps: {worst}")
    if max(worst.values()) > 0.51:  # the rounding of the table
        sys.exit("the two formulas disagree")


if __name__ == "__main__":
    if "--check" in sys.argv:
        check()
    else:
        make_check_table()
        make_table()
