"""Make vmf.json, the truth for distributions.VonMisesFisher: `python tests/data/make_vmf.py`.

The density on S^(d-1) is C_d(kappa) exp(kappa mu.x). With v = d/2 - 1, F = log 0F1(; v+1;
kappa^2/4) and A = I_{v+1}/I_v (the mean resultant length), in balls that cannot lie:

    log_uniform    = log(1 / |S^(d-1)|)
    log_normalizer = log C_d(kappa) = log_uniform - F(kappa)
    entropy        = -log_normalizer - kappa A
    kl_uniform     = kappa A - F(kappa)
    kl             = A_1 (kappa_1 - kappa_2 cos) + F(kappa_2) - F(kappa_1),  cos = mu_1.mu_2

`fit` rows solve A(kappa) = Rbar for the float64 Rbar given; cond = |dlog kappa / dlog Rbar|.
"""

import json
from pathlib import Path

import numpy as np
import truth
from flint import arb, ctx

SEED = 71993
DIMENSIONS = (2, 3, 64, 2048, 8192, 32768)
PRECISION = 1024  # bits; ample: every ball is checked below


def number(ball):
    """The float64 next to a ball that must be narrow."""
    if not ball.rel_accuracy_bits() >= 80:
        raise truth.PrecisionError(str(ball))
    return float(ball.mid())


def mean_length(d, kappa):
    """A and F at kappa."""
    v = arb(d) / 2 - 1
    low = truth.log_ive(v, kappa)
    return (truth.log_ive(v + 1, kappa) - low).exp(), truth.log_hyp0f1(v, kappa, low)


def log_uniform(d):
    half = arb(d) / 2
    return half.lgamma() - arb(2).log() - half * arb.pi().log()


def slope(d, kappa, a):
    """dA / dkappa."""
    return 1 - a * a - (d - 1) / kappa * a


def describe(d, kappa):
    a, f = mean_length(d, kappa)
    return {
        "log_normalizer": number(log_uniform(d) - f),
        "entropy": number(f - log_uniform(d) - kappa * a),
        "kl_uniform": number(kappa * a - f),
    }


def forward_row(d, kappa):
    kappa_ball = arb(kappa)
    a, _ = mean_length(d, kappa_ball)
    return {
        "d": d,
        "kappa": kappa,
        "A": number(a),
        "one_minus_A": number(1 - a),
        "dA": number(slope(d, kappa_ball, a)),
        **describe(d, kappa_ball),
        "log_uniform": number(log_uniform(d)),
    }


def fit_row(d, guess):
    """Round A(guess) to float64, then solve for that float64 by Newton from the guess."""
    kappa = arb(guess)
    rbar = float(mean_length(d, kappa)[0].mid())
    for _ in range(12):
        a, _ = mean_length(d, kappa)
        kappa = (kappa - (a - rbar) / slope(d, kappa, a)).mid()
    a, _ = mean_length(d, kappa)
    if not abs(a - rbar) < arb(2) ** -400:
        raise truth.PrecisionError(f"fit d={d} rbar={rbar!r}")
    cond = rbar / (kappa * slope(d, kappa, a))
    row = {"d": d, "Rbar": rbar, "kappa": number(kappa), "cond": number(cond)}
    return row | describe(d, kappa)


def kl_row(d, kappa1, kappa2, cos):
    a1, f1 = mean_length(d, arb(kappa1))
    _, f2 = mean_length(d, arb(kappa2))
    kl = a1 * (arb(kappa1) - arb(kappa2) * cos) + f2 - f1
    return {"d": d, "kappa1": kappa1, "kappa2": kappa2, "cos": cos, "kl": number(kl)}


def make():
    ctx.prec = PRECISION
    rng = np.random.default_rng(SEED)
    fit, forward, kl = [], [], []
    for d in DIMENSIONS:
        # kappa near d is the bend between "almost uniform" and "almost a point"
        spread = d * np.exp(rng.uniform(np.log(1e-6), np.log(1e4), 10))
        bend = d * np.exp(rng.uniform(np.log(0.05), np.log(20.0), 6))
        for kappa in np.concatenate([spread, bend]):
            forward.append(forward_row(d, float(kappa)))
        for kappa in d * np.exp(rng.uniform(np.log(1e-4), np.log(1e3), 12)):
            fit.append(fit_row(d, float(kappa)))
        fit.append(fit_row(d, 3e5 * d))  # rbar within 1e-6 of one
        fit.append(fit_row(d, 1e-9 * d))  # rbar close to zero
        for i in range(8):
            kappa1 = float(d * np.exp(rng.uniform(np.log(1e-3), np.log(100.0))))
            nearby = kappa1 * (1 + 10.0 ** -rng.uniform(1, 8))
            far = d * np.exp(rng.uniform(np.log(1e-3), np.log(100.0)))
            cos = (1.0, float(rng.uniform(-1, 1)), 0.0, 1 - 2.0**-20)[i % 4]
            kl.append(kl_row(d, kappa1, float(nearby if i < 4 else far), cos))
    data = {"fit": fit, "forward": forward, "kl": kl}
    path = Path(__file__).with_name("vmf.json")
    path.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    make()
