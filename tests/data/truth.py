"""Log-Bessel functions and their derivatives to any precision, in ball arithmetic.

Nothing here is shared with curvkern. Values come from Arb (python-flint), which returns an
interval that contains the true value; above v = 1e5, where Arb slows down and then gives up,
they come from the Debye expansion (DLMF 10.41) in the same ball arithmetic. Derivatives in the
order are central differences with a step of 2^-128: their truncation error is about 2^-256,
their rounding error is part of the ball, and `bessel` raises the working precision until every
ball is narrow enough.
"""

from functools import cache

from flint import arb, arb_poly, ctx, fmpq, fmpq_poly

VALUE_BITS = 130  # absolute and relative accuracy of the values
SLOPE_BITS = 90  # relative accuracy of ratios and derivatives
UNDERFLOW = arb(2) ** -1200  # a ball below this is the float64 zero
DEBYE_FROM = 1e5
DEBYE_TERMS = 60  # 60! / (2e5)^60 < 2^-780
MAX_PRECISION = 1 << 15

VALUES = ("log_iv", "log_kv", "log_ive", "log_kve", "log_hyp0f1")
RATIOS = ("iv_ratio", "kv_ratio")
SLOPES = (
    "log_iv_dv", "log_iv_dx", "log_kv_dv", "log_kv_dx", "log_ive_dx", "log_kve_dx",
    "log_hyp0f1_dv", "kv_ratio_dv", "kv_ratio_dx",
)  # fmt: skip
CURVATURES = tuple(
    f"{name}_{pair}"
    for name in ("log_iv", "log_kv", "log_hyp0f1")
    for pair in ("dvv", "dvx", "dxx")
)


class PrecisionError(ArithmeticError):
    """The working precision was not enough to enclose a result narrowly."""


@cache
def debye_polynomial(k):
    """u_k(t) of DLMF 10.41.10, exact rational coefficients."""
    if k == 0:
        return fmpq_poly([1])
    u = debye_polynomial(k - 1)
    weight = fmpq_poly([fmpq(1, 2), 0, fmpq(-1, 2)])
    kernel = fmpq_poly([fmpq(1, 8), 0, fmpq(-5, 8)])
    return fmpq_poly([0, 0, 1]) * weight * u.derivative() + (kernel * u).integral()


def _debye(v, x, sign):
    """log of I_v(x) e^-x (sign +1) or K_v(x) e^x (sign -1) for large v, DLMF 10.41.3-4."""
    z = x / v
    r = (1 + z * z).sqrt()
    # eta - z, written so that neither a huge nor a tiny z cancels in it
    eta_minus_z = 1 / (r + z) + (z / (1 + r)).log()
    total = arb(1)
    for k in range(1, DEBYE_TERMS):
        total += arb_poly(debye_polynomial(k))(1 / r) / (sign * v) ** k
    front = -(2 * arb.pi() * v).log() / 2 if sign > 0 else (arb.pi() / (2 * v)).log() / 2
    return front + sign * v * eta_minus_z - r.log() / 2 + total.log()


def log_ive(v, x):
    """Ball for log(I_v(x) e^-x) at the current precision."""
    return _debye(v, x, 1) if v > DEBYE_FROM else x.bessel_i(v, scaled=True).log()


def log_kve(v, x):
    """Ball for log(K_v(x) e^x) at the current precision."""
    return _debye(v, x, -1) if v > DEBYE_FROM else x.bessel_k(v, scaled=True).log()


def log_hyp0f1(v, x, scaled_i=None):
    """Ball for log 0F1(; v+1; x^2/4): the series where it starts small, else through I_v."""
    z = x * x / 4
    if z / (v + 1) < 0.25:
        term = total = z / (v + 1)
        k = 1
        while not abs(term) < total * arb(2) ** -ctx.prec:
            k += 1
            term = term * z / (k * (v + k))
            total += term
        # the neglected terms sum to less than the last one
        return (total + arb(0, abs(term).upper())).log1p()
    scaled_i = log_ive(v, x) if scaled_i is None else scaled_i
    return scaled_i + x + (v + 1).lgamma() - v * (x / 2).log()


def _balls(v, x):
    """Every quantity at the current precision, as a dict of balls."""
    order, x = arb(v), arb(x)
    h = arb(2) ** -128 * max(1, order)
    steps = (-1, 0, 1)
    i0 = [log_ive(order + s * h, x) for s in steps]
    k0 = [log_kve(order + s * h, x) for s in steps]
    ratio_i = [(log_ive(order + 1 + s * h, x) - i0[s + 1]).exp() for s in steps]
    ratio_k = [(log_kve(order + 1 + s * h, x) - k0[s + 1]).exp() for s in steps]
    f = [log_hyp0f1(order + s * h, x, i0[s + 1]) for s in steps]

    def first(y):
        return (y[2] - y[0]) / (2 * h)

    def second(y):
        return (y[2] - 2 * y[1] + y[0]) / (h * h)

    r, s = ratio_i[1], ratio_k[1]
    kx = order / x - s
    f_xx = 1 - (2 * order + 1) / x * r - r * r  # Riccati equation of I_{v+1} / I_v
    k_xx = 1 + (order / x) ** 2 - kx / x - kx * kx  # Bessel's equation
    even = arb(0)  # K_v is even in v: exact zeros at v = 0
    return {
        "log_iv": i0[1] + x,
        "log_kv": k0[1] - x,
        "log_ive": i0[1],
        "log_kve": k0[1],
        "log_hyp0f1": f[1],
        "iv_ratio": r,
        "kv_ratio": s,
        "log_iv_dv": first(i0),
        "log_iv_dx": r + order / x,
        "log_kv_dv": first(k0) if v else even,
        "log_kv_dx": kx,
        "log_ive_dx": r + order / x - 1,
        "log_kve_dx": kx + 1,
        "log_hyp0f1_dv": first(f),
        "kv_ratio_dv": first(ratio_k),
        "kv_ratio_dx": -k_xx - order / (x * x),
        "log_iv_dvv": second(i0),
        "log_iv_dvx": first(ratio_i) + 1 / x,
        "log_iv_dxx": f_xx - order / (x * x),
        "log_kv_dvv": second(k0),
        "log_kv_dvx": 1 / x - first(ratio_k) if v else even,
        "log_kv_dxx": k_xx,
        "log_hyp0f1_dvv": second(f),
        "log_hyp0f1_dvx": first(ratio_i),
        "log_hyp0f1_dxx": f_xx,
    }


def _narrow(ball, bits):
    if not ball.is_finite():
        return False
    return ball.rel_accuracy_bits() >= bits or bool(abs(ball) < UNDERFLOW)


def bessel(v, x, start=512):
    """Dict of narrow balls for every name in VALUES + RATIOS + SLOPES + CURVATURES."""
    precision = start
    while precision <= MAX_PRECISION:
        ctx.prec = precision
        balls = _balls(v, x)
        if all(_narrow(b, VALUE_BITS if k in VALUES else SLOPE_BITS) for k, b in balls.items()):
            return balls
        precision *= 4
    raise PrecisionError(f"v={v!r}, x={x!r}")


_VALUE = {
    "log_iv": lambda v, x: log_ive(v, x) + x,
    "log_kv": lambda v, x: log_kve(v, x) - x,
    "log_ive": log_ive,
    "log_kve": log_kve,
    "log_hyp0f1": log_hyp0f1,
    "iv_ratio": lambda v, x: (log_ive(v + 1, x) - log_ive(v, x)).exp(),
    "kv_ratio": lambda v, x: (log_kve(v + 1, x) - log_kve(v, x)).exp(),
}


def value(name, v, x):
    """One value, without its derivatives: (hi, lo) with hi + lo right to 100 bits."""
    precision = 192
    while precision <= MAX_PRECISION:
        ctx.prec = precision
        ball = _VALUE[name](arb(v), arb(x))
        if _narrow(ball, VALUE_BITS):
            return split(ball)
        precision *= 2
    raise PrecisionError(f"{name} at v={v!r}, x={x!r}")


def split(ball):
    """The ball's midpoint as hi + lo, two float64 (an infinite or zero hi has lo = 0)."""
    middle = ball.mid()
    hi = float(middle)
    if hi == 0.0 or hi in (float("inf"), float("-inf")):
        return hi, 0.0
    return hi, float(middle - arb(hi))
