"""Make python/curvkern/_check/bessel.json, the truths behind `python -m curvkern check`.

Two formulas that share nothing give the two kinds, each with its derivative in the order:

    I_v(x) = (x/2)^v / Gamma(v+1) * sum_k (x^2/4)^k / (k! (v+1)_k)        all terms positive
    K_v(x) = 1/2 * integral exp(-x cosh t + v t) dt over the real line    trapezoidal rule

so that d/dv log I is a mean of digamma values and d/dv log K is the mean of t; their second
derivatives in v are the variances, less the mean of trigamma values for I. The Wronskian
I_v K_{v+1} + I_{v+1} K_v = 1/x and its derivatives in v then check one against the other. All
else follows from Bessel's equation and the recurrences.
Needs mpmath; takes about ten seconds: `python tests/data/make_check_bessel.py`
"""

from __future__ import annotations

import json
from pathlib import Path

import mpmath as mp
import numpy as np

TARGET = Path(__file__).resolve().parents[2] / "python" / "curvkern" / "_check" / "bessel.json"
mp.mp.dps = 60

# Every number is a float32, so that one table serves both precisions.
PAIRS = [
    *[(0.0, x) for x in (1e-6, 0.5, 2.0, 8.0, 30.0, 700.0)],
    *[(0.5, x) for x in (1e-3, 1.0, 20.0, 300.0)],
    *[(1.0, x) for x in (1e-4, 0.75, 5.0, 50.0)],
    *[(0.1, x) for x in (0.01, 1.5, 12.0)],
    *[(0.9375, x) for x in (0.125, 3.0, 42.0)],
    *[(2.0000002, x) for x in (0.3, 2.0, 10.0)],  # close to an integer
    *[(3.25, x) for x in (1e-2, 4.0, 1400.0)],
    *[(12.6, x) for x in (0.2, 15.0, 80.0)],
    *[(31.0, x) for x in (1e-3, 8.0, 50.0, 1000.0)],  # d = 64
    *[(89.0, x) for x in (1.0, 60.0, 1424.0)],  # the edge of a published 20-term region
    *[(150.0, x) for x in (1.0, 150.0, 5000.0)],
    *[(1023.0, x) for x in (10.0, 900.0, 20000.0)],  # d = 2048
    *[(16383.0, x) for x in (1.0, 5000.0, 16000.0, 100000.0)],  # d = 32768
]


def first_kind(v: mp.mpf, x: mp.mpf) -> dict[str, mp.mpf]:
    """The series of log I_v(x) and of its derivatives."""
    quarter = x * x / 4
    term, k, total, weighted_k = mp.mpf(1), 0, mp.mpf(1), mp.mpf(0)
    psi, psi1 = mp.digamma(v + 1), mp.psi(1, v + 1)
    weighted_psi, weighted_curve = psi, psi * psi - psi1
    while True:
        psi += 1 / (v + 1 + k)
        psi1 -= 1 / (v + 1 + k) ** 2
        k += 1
        term *= quarter / (k * (v + k))
        total += term
        weighted_k += k * term
        weighted_psi += psi * term
        weighted_curve += (psi * psi - psi1) * term
        if term < total * mp.eps * mp.mpf("1e-5") and k > x / 2:
            break
    log_sum = mp.log(total)
    log_i = v * mp.log(x / 2) - mp.loggamma(v + 1) + log_sum
    return {
        "log_iv": log_i,
        "log_ive": log_i - x,
        "log_hyp0f1": log_sum,
        "log_iv_dv": mp.log(x / 2) - weighted_psi / total,
        "log_iv_dvv": weighted_curve / total - (weighted_psi / total) ** 2,
        "log_hyp0f1_dv": mp.digamma(v + 1) - weighted_psi / total,
        "log_iv_dx": (v + 2 * weighted_k / total) / x,
    }


def second_kind(v: mp.mpf, x: mp.mpf) -> dict[str, mp.mpf]:
    """The integral of log K_v(x) and of its derivatives, by the trapezoidal rule."""
    centre = mp.asinh(v / x)
    width = (v * v + x * x) ** mp.mpf("-0.25")
    step = min(mp.mpf("0.3") * width, mp.mpf("0.05"))
    peak = v * centre - x * mp.cosh(centre)
    floor = -(mp.mp.dps + 5) * mp.log(10)
    total = mean_t = mean_t2 = mean_cosh = mp.mpf(0)
    for direction in (1, -1):
        k = 0 if direction == 1 else 1
        while True:
            t = centre + direction * k * step
            cosh = mp.cosh(t)
            exponent = v * t - x * cosh - peak
            if exponent < floor:
                break
            weight = mp.exp(exponent)
            total += weight
            mean_t += weight * t
            mean_t2 += weight * t * t
            mean_cosh += weight * cosh
            k += 1
    log_k = peak + mp.log(total * step / 2)
    return {
        "log_kv": log_k,
        "log_kve": log_k + x,
        "log_kv_dv": mean_t / total if v else mp.mpf(0),  # odd integrand at v = 0
        "log_kv_dvv": mean_t2 / total - (mean_t / total) ** 2,
        "log_kv_dx": -mean_cosh / total,
    }


def truths(v: float, x: float) -> dict[str, mp.mpf]:
    """All quantities at one point, after the two kinds have checked each other."""
    v, x = mp.mpf(v), mp.mpf(x)
    one, one_up = first_kind(v, x), first_kind(v + 1, x)
    two, two_up = second_kind(v, x), second_kind(v + 1, x)
    left = mp.exp(one["log_iv"] + two_up["log_kv"])
    right = mp.exp(one_up["log_iv"] + two["log_kv"])
    slope = left * (one["log_iv_dv"] + two_up["log_kv_dv"])
    slope += right * (one_up["log_iv_dv"] + two["log_kv_dv"])
    tolerance = mp.mpf("1e-45")
    assert abs(x * (left + right) - 1) < tolerance, (v, x)
    assert abs(x * slope) < tolerance * (1 + abs(one["log_iv_dv"])), (v, x)
    curve = left * (one["log_iv_dvv"] + two_up["log_kv_dvv"])
    curve += left * (one["log_iv_dv"] + two_up["log_kv_dv"]) ** 2
    curve += right * (one_up["log_iv_dvv"] + two["log_kv_dvv"])
    curve += right * (one_up["log_iv_dv"] + two["log_kv_dv"]) ** 2
    assert abs(x * curve) < tolerance * (1 + abs(one["log_iv_dv"])) ** 2, (v, x)
    mixed = one_up["log_iv_dv"] - one["log_iv_dv"]
    if v == 0:  # exponentially small: the mean of the digammas cancels against log(x/2)
        exact = -mp.exp(two["log_kv"] - one["log_iv"])
        assert abs(exact - one["log_iv_dv"]) < tolerance, x
        one["log_iv_dv"] = exact
    i, k = mp.exp(one_up["log_iv"] - one["log_iv"]), mp.exp(two_up["log_kv"] - two["log_kv"])
    i_dv, k_dv = i * mixed, k * (two_up["log_kv_dv"] - two["log_kv_dv"])
    i_dx, k_dx = 1 - i * i - (2 * v + 1) / x * i, k * k - (2 * v + 1) / x * k - 1
    return (
        one
        | two
        | {
            "iv_ratio": i,
            "iv_ratio_dv": i_dv,
            "iv_ratio_dx": i_dx,
            "kv_ratio": k,
            "kv_ratio_dv": k_dv,
            "kv_ratio_dx": k_dx,
            "log_hyp0f1_dx": i,
            "log_ive_dv": one["log_iv_dv"],
            "log_ive_dx": one["log_iv_dx"] - 1,
            "log_kve_dv": two["log_kv_dv"],
            "log_kve_dx": two["log_kv_dx"] + 1,
            # d/dx log I = I_{v+1}/I_v + v/x and d/dx log K = -K_{v+1}/K_v + v/x
            "log_iv_dvx": i_dv + 1 / x,
            "log_iv_dxx": i_dx - v / x**2,
            "log_kv_dvx": 1 / x - k_dv,
            "log_kv_dxx": -k_dx - v / x**2,
        }
    )


def split(value: mp.mpf) -> list[float]:
    """The number as a double and what the double leaves over."""
    high = float(value)
    return [high, float(value - mp.mpf(high))]


def main() -> None:
    points = []
    for order, argument in PAIRS:
        v, x = float(np.float32(order)), float(np.float32(argument))
        points.append({"v": v, "x": x, **{k: split(t) for k, t in truths(v, x).items()}})
    head = {"made_by": "tests/data/make_check_bessel.py", "truth": "[double, remainder]"}
    lines = ",\n".join(json.dumps(point) for point in points)
    opening = json.dumps(head)[:-1]
    TARGET.write_text(f'{opening}, "points": [\n{lines}\n]}}\n')
    print(f"{TARGET}: {len(points)} points, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
