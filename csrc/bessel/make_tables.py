"""Write tables.hpp: the constants of the log-Bessel formulas, exact or from 60 digits.

Run ``python csrc/bessel/make_tables.py`` from the repository root (needs mpmath). The output is
committed, so that a build needs neither this script nor mpmath.
"""

from __future__ import annotations

from fractions import Fraction
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
TAIL_TERMS = 9


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


def polynomial2(f, bound, rows: int, columns: int, tolerance: float) -> list[list[float]]:
    """Chebyshev interpolant of f(q, w), |q| <= bound and 0 <= w <= 1, cut at the tolerance.

    Row i holds the coefficients of q^i w^j; what is small in the Chebyshev basis is left out.
    """

    def nodes(n):
        return [mp.cos(mp.pi * (2 * i + 1) / (2 * n)) for i in range(n)]

    def transform(n):  # values at the nodes to Chebyshev coefficients
        return mp.matrix(
            [[(2 - (k == 0)) * mp.cos(k * mp.acos(t)) / n for t in nodes(n)] for k in range(n)]
        )

    def monomials(n, slope, shift):  # T_k(slope x + shift) in powers of x
        rows = [[mp.mpf(1)], [shift, slope]]
        for _ in range(2, n):
            up = [mp.mpf(0)] + [2 * slope * a for a in rows[-1]]
            for i, a in enumerate(rows[-1]):
                up[i] += 2 * shift * a
            for i, a in enumerate(rows[-2]):
                up[i] -= a
            rows.append(up)
        return rows

    values = mp.matrix([[f(bound * a, (1 + b) / 2) for b in nodes(columns)] for a in nodes(rows)])
    weights = transform(rows) * values * transform(columns).T
    in_q, in_w = monomials(rows, 1 / bound, mp.mpf(0)), monomials(columns, 2, mp.mpf(-1))
    total = mp.matrix(rows, columns)
    for k in range(rows):
        for m in range(columns):
            if abs(weights[k, m]) * bound > tolerance:
                for i, a in enumerate(in_q[k]):
                    for j, b in enumerate(in_w[m]):
                        total[i, j] += weights[k, m] * a * b
    return [[float(total[i, j]) for j in range(columns)] for i in range(rows)]


def hankel_table(kind: str, radius: float, tolerance: float) -> str:
    """A triangular table: row i has degree[i] + 1 coefficients, the rest is zero."""
    rows = polynomial2(hankel_logarithm, 1 / mp.mpf(radius), 24, 10, tolerance)
    lengths = [max([j + 1 for j, a in enumerate(row) if a] or [0]) for row in rows]
    # a row holds its terms in the running maximum of the later ones: Horner's rule needs no gap
    for i in reversed(range(len(rows) - 1)):
        lengths[i] = max(lengths[i], lengths[i + 1])
    count = sum(n > 0 for n in lengths)
    body = ",\n".join(
        "    {" + ", ".join(repr(a) for a in row[: lengths[0]]) + "}" for row in rows[:count]
    )
    return (
        f"// hankel_{kind}[i][j]: coefficient of q^i w^j in log(..)/(q (w - 1/4)), q = +-1/x, w = v^2\n"
        f"CURVKERN_TABLE int hankel_{kind}_length[] = "
        f"{{{', '.join(str(n) for n in lengths[:count])}}};\n"
        f"CURVKERN_TABLE double hankel_{kind}[{count}][{lengths[0]}] = {{\n{body}}};\n"
    )


def reciprocal_gamma_even(w):  # (1/Gamma(1+f) + 1/Gamma(1-f)) / 2, w = f^2
    f = mp.sqrt(w)
    return (mp.rgamma(1 + f) + mp.rgamma(1 - f)) / 2


def reciprocal_gamma_odd(w):  # (1/Gamma(1-f) - 1/Gamma(1+f)) / (2 f)
    f = mp.sqrt(w)
    return (mp.rgamma(1 - f) - mp.rgamma(1 + f)) / (2 * f)


def gamma_product(w):  # Gamma(1+f) Gamma(1-f)
    x = mp.pi * mp.sqrt(w)
    return x / mp.sin(x)


def digamma_even(w):
    f = mp.sqrt(w)
    return (mp.digamma(1 + f) + mp.digamma(1 - f)) / 2


def inverse_square_tail(terms: int) -> list[list[float]]:
    """c[a][i] with sum_{j > n} 1/(j^2 - w) = sum_a s^-(2a+1) sum_i c[a][i] w^i, s = n + 1/2.

    Expand in w; the sum over j^-(2i+2) is the Euler-Maclaurin series at the midpoint s, whose
    coefficients are Bernoulli polynomials at 1/2 (DLMF 2.10.1, 25.11.43).
    """
    table = []
    for a in range(terms):
        row = [mp.mpf(1) / (2 * a + 1) if i == a else None for i in range(a + 1)]
        for i in range(a):
            k = a - i
            bernoulli = mp.bernpoly(2 * k, mp.mpf(1) / 2) / mp.factorial(2 * k)
            row[i] = bernoulli * mp.rf(2 * i + 2, 2 * k - 1)
        table.append([float(c) for c in row] + [0.0] * (terms - a - 1))
    return table


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
    d = debye_logarithm(DEBYE_TERMS)
    rows = [[float(a) for a in row] + [0.0] * (DEBYE_TERMS + 1 - len(row)) for row in d]
    body = ",\n".join("    {" + ", ".join(repr(a) for a in row) + "}" for row in rows)
    parts.append(f"inline constexpr int debye_terms = {DEBYE_TERMS};\n")
    parts.append("// debye[k][j]: coefficient of p^k tau^j, exact rationals rounded once\n")
    size = DEBYE_TERMS + 1
    parts.append(f"CURVKERN_TABLE double debye[{size}][{size}] = {{\n{body}}};\n")
    parts.append(hankel_table("double", 22.5, 2.0**-58))
    parts.append(hankel_table("float", 10.4, 2.0**-31))
    for name, f, low, high, degree, note in [
        ("rgamma_even", reciprocal_gamma_even, 0, 0.25, 13, "(1/Gamma(1+f) + 1/Gamma(1-f))/2"),
        ("rgamma_odd", reciprocal_gamma_odd, 0, 0.25, 13, "(1/Gamma(1-f) - 1/Gamma(1+f))/(2f)"),
        ("gamma_product", gamma_product, 0, 0.25, 19, "Gamma(1+f) Gamma(1-f)"),
        ("digamma_even", digamma_even, 0, 0.25, 13, "(psi(1+f) + psi(1-f))/2"),
    ]:
        centre, table = polynomial(f, low, high, degree)
        parts.append(array(name, table, f"{note} in powers of f^2 - {centre}, |f| <= 1/2"))
    for name, f, note in [
        ("lgamma_quotient", lgamma_quotient, "log Gamma(1+v) / (v (v-1))"),
        ("digamma1p", lambda v: mp.digamma(1 + v), "psi(1+v)"),
    ]:
        centre, table = polynomial(f, 0, 1, 24)
        parts.append(array(name, table, f"{note} in powers of v - {centre}, 0 <= v <= 1"))
    rows = ",\n".join(
        "    {" + ", ".join(repr(c) for c in row) + "}"
        for row in inverse_square_tail(TAIL_TERMS)
    )
    parts.append("// inverse_square_tail[a][i]: coefficient of s^-(2a+1) w^i\n")
    parts.append(
        f"CURVKERN_TABLE double inverse_square_tail[{TAIL_TERMS}][{TAIL_TERMS}]"
        f" = {{\n{rows}}};\n"
    )
    for kind, (step, count) in RULES.items():
        nodes = [
            mp.cosh(mp.mpf(step.numerator) * j / step.denominator) - 1 for j in range(count)
        ]
        pairs = [split(x, kind) for x in nodes]
        parts.append(f"inline constexpr double step_{kind} = {float(step)!r};\n")
        parts.append(f"inline constexpr int nodes_{kind} = {count};\n")
        parts.append(array(f"cosh_{kind}", [h for h, _ in pairs], "cosh(j step) - 1"))
        parts.append(array(f"cosh_rest_{kind}", [lo for _, lo in pairs], "what rounding left"))
    parts.append("}\n}  // namespace curvkern::bessel::tables\n")
    path.write_text("\n".join(parts))


if __name__ == "__main__":
    write(Path(__file__).with_name("tables.hpp"))
