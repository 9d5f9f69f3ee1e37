"""Coefficients of the expansions in :mod:`.bessel`."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple


class DebyeTable(NamedTuple):
    """Rows k = 0, 1, ...: p_k and q_k as polynomials in t^2, lowest power first."""

    p: list[list[float]]
    q: list[list[float]]


def debye_table(terms: int) -> DebyeTable:
    """p_k and q_k by DLMF 10.41.10-11, where u_k(t) = t^k p_k(t^2).

    With m = k + 2j the exponent of t, a term a t^m of u_k contributes to u_{k+1}
    a (m/2 + 1/(8(m+1))) t^{m+1} - a (m/2 + 5/(8(m+3))) t^{m+3}.
    """
    row = [Fraction(1)]
    p, q = [], []
    for k in range(terms):
        p.append([float(a) for a in row])
        q.append([float(a * Fraction(2 * k + 1 + 4 * j, 2)) for j, a in enumerate(row)])
        following = [Fraction(0)] * (k + 2)
        for j, a in enumerate(row):
            m = k + 2 * j
            following[j] += a * (Fraction(m, 2) + Fraction(1, 8 * (m + 1)))
            following[j + 1] -= a * (Fraction(m, 2) + Fraction(5, 8 * (m + 3)))
        row = following
    return DebyeTable(p, q)


DEBYE = debye_table(18)

#: B_{2k} / (2k (2k-1)), the coefficients of log Gamma(v+1) in 1/v, 1/v^3, ... (DLMF 5.11.1)
STIRLING = [
    1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400,
]  # fmt: skip

#: Taylor coefficients of 1 / Gamma(1 + mu) (DLMF 5.7.1-2)
RECIPROCAL_GAMMA = [
    1.0,
    0.57721566490153286061,
    -0.65587807152025388108,
    -0.042002635034095235529,
    0.1665386113822914895,
    -0.042197734555544336748,
    -0.0096219715278769735621,
    0.0072189432466630995424,
    -0.0011651675918590651121,
    -0.00021524167411495097282,
    0.00012805028238811618615,
    -0.000020134854780788238656,
    -1.2504934821426706573e-6,
    1.1330272319816958824e-6,
    -2.0563384169776071035e-7,
    6.1160951044814158179e-9,
    5.0020076444692229301e-9,
    -1.1812745704870201446e-9,
    1.0434267116911005105e-10,
    7.782263439905071254e-12,
]
