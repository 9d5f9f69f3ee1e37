// The Matern correlation as the product of its factors: log K, z^nu and 1/Gamma, for z >= 1.2
// and orders to which Stirling's series does not apply (matern_debye.hpp).
#pragma once

#include "debye_functions.hpp"
#include "matern.hpp"
#include "series.hpp"
#include "temme.hpp"  // 1/Gamma near the integers
#include "trapezoid.hpp"

namespace curvkern::bessel {
CURVKERN_PER_ISA {

// log K and K_{nu-1}/K_nu with their derivatives in nu
template <class R>
struct KernelOfMatern {
    Pair<R> log_value;
    R dv, dvv;
    R below, below_v;
};

template <bool HighOrder, class R>
CURVKERN_HD KernelOfMatern<R> matern_integral(R v, R z) {
    Moments<R> m = integrate_kv<HighOrder, 2, true>(v, z);
    return {add(log_kve_pair<HighOrder>(m), -z), m.t, m.tt, m.below, m.below_v};
}

template <int Order, class R>
CURVKERN_HD KernelOfMatern<R> matern_large_argument(R v, R z) {
    constexpr int terms = Limits<R>::terms(0);
    KernelOfMatern<R> y{};
    y.log_value = {debye_value<false>(true, v, z, terms, 0), c<R>(0)};
    if constexpr (Order > 0) {
        Point<R> at = point<false>(v, z);
        DebyeSlopes<R> s = debye_slopes<true>(at, terms);
        y.dv = s.dv;
        y.below = half_angle_tangent<false>(v, z, at) - s.dx_small;
        if constexpr (Order > 1) {
            Curvature<R> k = debye_curvature_small<true>(at, terms);
            y.dvv = k.vv + at.p;
            y.below_v = -(c<R>(1) - at.a) / z - k.vx;
        }
    }
    return y;
}

// 1/Gamma(v) = 1/(Gamma(1+f) (1+f) .. (n-1+f)), or f/Gamma(1+f) for n = 0
template <class R>
CURVKERN_HD R reciprocal_gamma_of_order(R v) {
    R n = nearest_integer(v), f = v - n;
    ReciprocalGamma<R, 0> g = reciprocal_gamma<0>(f);
    R product = c<R>(1);
    const auto highest = static_cast<int>(largest(n));
    for (int j = 1; j < highest; ++j) {
        product = select(n > c<R>(j), product * (f + c<R>(j)), product);
    }
    R unit = g.even.d[0] - f * g.odd.d[0];
    return select(n == c<R>(0), unit * f, unit / product);
}

// From the factors themselves, z >= 1.2 and nu at most 26. The derivative of 1/Gamma has a part
// value/v, whose square would overflow for tiny v where it cancels.
template <int N, class R>
CURVKERN_HD AtFixedZ<R, N> matern_product(R v, R z, const KernelOfMatern<R>& k) {
    Pair<R> log_half = log_ratio(Pair<R>{z, c<R>(0)}, c<R>(2), c<R>(0));
    Pair<R> exponent = add(k.log_value, mul(log_half, v));
    R value =
        (c<R>(2) * reciprocal_gamma_of_order(v)) * (exp(exponent.hi) * (c<R>(1) + exponent.lo));
    AtFixedZ<R, N> y{};
    y.value.d[0] = value;
    if constexpr (N > 0) {
        Taylor<R, 1> psi = digamma1p(v);
        R over = value / v, dv = (k.dv + log_half.hi) - psi.d[0], root = -sqrt(c<R>(2) * v);
        y.value.d[1] = value * dv + over;
        y.slope.d[0] = root * (value * k.below);
        if constexpr (N > 1) {
            y.value.d[2] = value * ((k.dvv - psi.d[1]) + dv * dv) + c<R>(2) * (over * dv);
            y.slope.d[1] = root * (y.value.d[1] * k.below + value * k.below_v);
        }
    }
    return y;
}

}  // namespace isa
}  // namespace curvkern::bessel
