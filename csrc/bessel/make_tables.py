"""Write tables.hpp: the constants of the log-Bessel formulas, exact or from 60 digits.

Run ``python csrc/bessel/make_tables.py`` from the repository root (needs mpmath). The output is
committed, so that a build needs neither this script nor mpmath.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import mpmath as mp
import numpy as np

mp.mp.dps = 60
DEBYE_TERMS = 24
# The trapezoidal rule for K: (step, nodes) for v <= 1 and above, in both precisions.
RULES = {
    "low_double": (Fraction(5, 32), 48),
    "low_float": (Fraction(5, 16), 23),
    "high_double": (Fraction(15, 128), 72),
    "high_float": (Fraction(1, 4), 31),
}
# For v <= 1, K and the even part of I are fitted between these x, Hankel's expansion beyond.
SURFACE_ENDS = {"double": [1.2, 3.2, 8.5, 22.5], "float": [1.2, 3.2, 10.4]}


def debye_logarithm(terms: int) -> list[list[Fraction]]:
    """d_k with log sum_k u_k(t) / v^k = sum_k p^k d_k(t^2), p = 1/sqrt(v^2 + x^2).

    The recurrence of the u_k is DLMF 10.41.9; u_k(t) = t^k w_k(t^2), and a power series'
    logarithm follows from k w_k = sum_m m d_m w_{k-m}.
    """
    w = [[Fraction(1)]]
    for k in range(terms):
        following = [Fraction(0)] * (k + 2)
        for j, a in enumerate(w[-1]):
            e = k + 2 * j
            following[j] += a * (Fraction(e, 2) + Fraction(1, 8 * (e + 1)))
            following[j + 1] -= a * (Fraction(e, 2) + Fraction(5, 8 * (e + 3)))
        w.append(following)
    d = [[Fraction(0)]]
    for k in range(1, terms + 1):
        total = [k * a for a in w[k]]
        for m in range(1, k):
            for i, a in enumerate(d[m]):
                for j, b in enumerate(w[k - m]):
                    total[i + j] -= m * a * b
        d.append([a / k for a in total])
    return d


def quotient_at_one(row: list[Fraction]) -> list[Fraction]:
    """Coefficients of (f(1) - f(x)) / (1 - x) from those of f: sums of the higher ones."""
    return [sum(row[i + 1 :], Fraction(0)) for i in range(len(row) - 1)]


def matrix(rows: list[list[Fraction]], width: int) -> str:
    """Rows of numbers, filled up with zeros."""
    padded = ([float(a) for a in row] + [0.0] * (width - len(row)) for row in rows)
    return ",\n".join("    {" + ", ".join(repr(a) for a in row) + "}" for row in padded)


def polynomial(f, low, high, degree: int) -> tuple[float, list[float]]:
    """Chebyshev interpolant of f on [low, high], as coefficients of powers of (x - centre)."""
    centre, half = (mp.mpf(low) + high) / 2, (mp.mpf(high) - low) / 2
    n = degree + 1
    nodes = [mp.cos(mp.pi * (2 * i + 1) / (2 * n)) for i in range(n)]
    vandermonde = mp.matrix(n, n)
    values = mp.matrix(n, 1)
    for i, node in enumerate(nodes):
        values[i] = f(centre + half * node)
        for j in range(n):
            vandermonde[i, j] = (half * node) ** j
    return float(centre), [float(a) for a in mp.lu_solve(vandermonde, values)]


def hankel_logarithm(q, w):
    """log(1 + sum_k a_k(v) q^k) / (q (w - 1/4)), w = v^2: Hankel's expansion (DLMF 10.40.1).

    q = 1/x gives I and q = -1/x K; summed up to its smallest term, e^(-2/|q|) of the first.
    """
    term = total = mp.mpf(1)
    for k in range(1, 200):
        following = -term * (4 * w - (2 * k - 1) ** 2) / (8 * k) * q
        if abs(following) >= abs(term):
            break
        term = following
        total += term
    return mp.log(total) / (q * (w - mp.mpf(1) / 4))


def scaled_kv(q, w):
    """log(sqrt(2 x/pi) e^x K_v(x)) / (w - 1/4), q = 1/x, w = v^2."""
    x, v = 1 / q, mp.sqrt(w)
    return mp.log(mp.sqrt(2 * x / mp.pi) * mp.exp(x) * mp.besselk(v, x)) / (w - mp.mpf(1) / 4)


def scaled_even_iv(q, w):
    """(sqrt(2 pi x) e^-x E - 1) / (w - 1/4), E = (I_v + I_-v)/2, q = 1/x, w = v^2."""
    x, v = 1 / q, mp.sqrt(w)
    even = (mp.besseli(v, x) + mp.besseli(-v, x)) / 2
    return (mp.sqrt(2 * mp.pi * x) * mp.exp(-x) * even - 1) / (w - mp.mpf(1) / 4)


def polynomial2(f, low, high, rows: int, columns: int, tolerance: float):
    """Chebyshev interpolant of f(q, w) on low <= q <= high, 0 <= w <= 1, cut at the tolerance.

    Row i holds the coefficients of (q - centre)^i (w - 1/2)^j; what is below the tolerance
    in the Chebyshev basis, relative to the largest coefficient, is left out.
    """

    def transform(n):  # values at the nodes to Chebyshev coefficients
        return mp.matrix(
            [[(2 - (k == 0)) * mp.cos(k * mp.acos(t)) / n for t in nodes(n)] for k in range(n)]
        )

    def nodes(n):
        return [mp.cos(mp.pi * (2 * i + 1) / (2 * n)) for i in range(n)]

    def monomials(n, slope):  # T_k(slope x) in powers of x
        powers = [[mp.mpf(1)], [mp.mpf(0), slope]]
        for _ in range(2, n):
            up = [mp.mpf(0)] + [2 * slope * a for a in powers[-1]]
            for i, a in enumerate(powers[-2]):
                up[i] -= a
            powers.append(up)
        return powers

    centre, half = (low + high) / 2, (high - low) / 2
    values = mp.matrix(
        [[f(centre + half * a, (1 + b) / 2) for b in nodes(columns)] for a in nodes(rows)]
    )
    weights = transform(rows) * values * transform(columns).T
    largest = max(abs(a) for a in weights)
    in_q, in_w = monomials(rows, 1 / half), monomials(columns, mp.mpf(2))
    total = mp.matrix(rows, columns)
    for k in range(rows):
        for m in range(columns):
            if abs(weights[k, m]) > tolerance * largest:
                for i, a in enumerate(in_q[k]):
                    for j, b in enumerate(in_w[m]):
                        total[i, j] += weights[k, m] * a * b
    return float(centre), [[float(total[i, j]) for j in range(columns)] for i in range(rows)]


def surface(name: str, note: str, f, low, high, tolerance: float) -> str:
    """A table of ragged rows, row i with length[i] coefficients and zeros, and its lengths."""
    centre, rows = polynomial2(f, mp.mpf(low), mp.mpf(high), 32, 12, tolerance)
    lengths = [max([j + 1 for j, a in enumerate(row) if a] or [0]) for row in rows]
    for i in reversed(range(len(rows) - 1)):
        lengths[i] = max(lengths[i], lengths[i + 1])
    count = sum(n > 0 for n in lengths)
    body = ",\n".join(
        "    {" + ", ".join(repr(a) for a in row[: lengths[0]]) + "}" for row in rows[:count]
    )
    return (
        f"// {note}\n"
        f"CURVKERN_TABLE int {name}_length[] = "
        f"{{{', '.join(str(n) for n in lengths[:count])}}};\n"
        + (f"inline constexpr double {name}_centre = {centre!r};\n" if centre else "")
        + f"CURVKERN_TABLE double {name}[{count}][{lengths[0]}] = {{\n{body}}};\n"
    )


def surfaces() -> list[str]:
    note = "coefficients of (q - centre)^i (w - 1/2)^j, w = v^2"
    parts = []
    for kind, tolerance, ends in [
        ("double", 2.0**-59, SURFACE_ENDS["double"]),
        ("float", 2.0**-29, SURFACE_ENDS["float"]),
    ]:
        parts.append(f"inline constexpr double ends_{kind}[] = {{{str(ends)[1:-1]}}};\n")
        radius = 1 / mp.mpf(ends[-1])
        hankel = f"log(1 + sum a_k q^k) / (q (w - 1/4)), |q| <= {1 / ends[-1]:.3f}: {note}"
        parts.append(
            surface(f"hankel_{kind}", hankel, hankel_logarithm, -radius, radius, tolerance)
        )
        for piece, (low, high) in enumerate(pairwise(ends)):
            where = f"{low} <= x = 1/q <= {high}: {note}"
            for name, f, what in [
                ("kv", scaled_kv, "log(sqrt(2 x/pi) e^x K) / (w - 1/4)"),
                (
                    "even_iv",
                    scaled_even_iv,
                    "(sqrt(2 pi x) e^-x E - 1) / (w - 1/4)",
                ),
            ]:
                bounds = (1 / mp.mpf(high), 1 / mp.mpf(low))
                parts.append(
                    surface(f"{name}_{kind}_{piece}", f"{what}, {where}", f, *bounds, tolerance)
                )
    return parts


def reciprocal_gamma_even(w):  # (1/Gamma(1+f) + 1/Gamma(1-f)) / 2, w = f^2
    f = mp.sqrt(w)
    return (mp.rgamma(1 + f) + mp.rgamma(1 - f)) / 2


def reciprocal_gamma_odd(w):  # (1/Gamma(1-f) - 1/Gamma(1+f)) / (2 f)
    f = mp.sqrt(w)
    return (mp.rgamma(1 - f) - mp.rgamma(1 + f)) / (2 * f)


def log_gamma_product(w):  # log Gamma(1+f) Gamma(1-f)
    x = mp.pi * mp.sqrt(w)
    return mp.log(x / mp.sin(x))


def lgamma_quotient(v):
    return mp.loggamma(1 + v) / (v * (v - 1))


def split(x, kind: str) -> tuple[float, float]:
    narrow = float if kind.endswith("double") else (lambda y: float(np.float32(float(y))))
    high = narrow(x)
    return high, narrow(x - mp.mpf(high))


def array(name: str, values: list[float], comment: str) -> str:
    body = ", ".join(repr(v) for v in values)
    return f"// {comment}\nCURVKERN_TABLE double {name}[] = {{{body}}};\n"


def write(path: Path) -> None:
    parts = ["// Written by make_tables.py; do not edit.\n// clang-format off\n#pragma once\n"]
    parts.append(
        '#include "../core/hd.hpp"\n\n'
        "namespace curvkern::bessel::tables {\nCURVKERN_PER_ISA {\n"
    )
    d, size = debye_logarithm(DEBYE_TERMS), DEBYE_TERMS + 1
    body = matrix(d, size)
    parts.append("// debye[k][j]: coefficient of p^k tau^j, exact rationals rounded once\n")
    parts.append(f"CURVKERN_TABLE double debye[{size}][{size}] = {{\n{body}}};\n")
    parts.append(
        "// debye_quotient[k][j]: coefficient of p^k tau^j in (d_k(1) - d_k(tau)) / (1 - tau)\n"
    )
    body = matrix([quotient_at_one(row) for row in d], size)
    parts.append(f"CURVKERN_TABLE double debye_quotient[{size}][{size}] = {{\n{body}}};\n")
    parts += surfaces()
    for name, f, low, high, degree, note in [
        ("rgamma_even", reciprocal_gamma_even, 0, 0.25, 13, "(1/Gamma(1+f) + 1/Gamma(1-f))/2"),
        ("rgamma_odd", reciprocal_gamma_odd, 0, 0.25, 13, "(1/Gamma(1-f) - 1/Gamma(1+f))/(2f)"),
        ("log_gamma_product", log_gamma_product, 0, 0.25, 21, "log Gamma(1+f) Gamma(1-f)"),
    ]:
        centre, table = polynomial(f, low, high, degree)
        parts.append(array(name, table, f"{note} in powers of f^2 - {centre}, |f| <= 1/2"))
    for name, f, note in [
        ("lgamma_quotient", lgamma_quotient, "log Gamma(1+v) / (v (v-1))"),
        ("digamma1p", lambda v: mp.digamma(1 + v), "psi(1+v)"),
    ]:
        centre, table = polynomial(f, 0, 1, 24)
        parts.append(array(name, table, f"{note} in powers of v - {centre}, 0 <= v <= 1"))
    for kind, (step, count) in RULES.items():
        nodes = [
            mp.cosh(mp.mpf(step.numerator) * j / step.denominator) - 1 for j in range(count)
        ]
        pairs = [split(x, kind) for x in nodes]
        parts.append(f"inline constexpr double step_{kind} = {float(step)!r};\n")
        parts.append(f"inline constexpr int nodes_{kind} = {count};\n")
        weight = split(mp.log(mp.mpf(step.numerator) / (2 * step.denominator)), kind)
        parts.append(array(f"log_weight_{kind}", list(weight), "log(step / 2)"))
        parts.append(array(f"cosh_{kind}", [h for h, _ in pairs], "cosh(j step) - 1"))
        parts.append(array(f"cosh_rest_{kind}", [lo for _, lo in pairs], "what rounding left"))
        decay = [
            float(mp.exp(-mp.mpf(step.numerator) * j / step.denominator)) for j in range(count)
        ]
        parts.append(array(f"decay_{kind}", decay, "exp(-j step)"))
    parts.append("}\n}  // namespace curvkern::bessel::tables\n")
    path.write_text("\n".join(parts))


if __name__ == "__main__":
    write(Path(__file__).with_name("tables.hpp"))
