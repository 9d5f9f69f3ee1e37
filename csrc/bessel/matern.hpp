// The Matern correlation of order nu at distance rho, in length scales, below the Debye region
// and for small orders, with its derivatives in nu and rho.
//
//   M = 2^{1-nu}/Gamma(nu) z^nu K_nu(z),  z = sqrt(2 nu) rho
// (M. Stein, "Interpolation of Spatial Data", Springer 1999, section 2.7). In z, at fixed nu,
//   M' = -M K_{nu-1}/K_nu,   M'' = M + (2 nu - 1)/z M',
//   M_{nu+1} = M_nu + q/(nu (nu - 1)) M_{nu-1},  q = z^2/4 (DLMF 10.29.1),
//   dM/drho = -nu rho M_{nu-1}/(nu - 1),
// all positive: Temme's series times (x/2)^f gives M where a product of z^nu, K and 1/Gamma
// would over- and underflow, and tends to 1 with all its digits as rho -> 0.
//   matern_power     (z/2)^{2(nu-1)} vanishes
//   matern_temme     z < 1.2
//   matern_fitted    z >= 1.2; second derivatives: matern_integral
//   matern_large_argument    nu < 11 (5) in the Debye region; above: matern_debye.hpp
// The largest error is 6 eps of max(1, |log M|).
#pragma once

#include "debye_functions.hpp"
#include "low_order.hpp"
#include "series.hpp"
#include "temme.hpp"
#include "trapezoid.hpp"

namespace curvkern::bessel {
CURVKERN_PER_ISA {

// M and dM/drho with their derivatives in nu, at fixed z and fixed dz/drho.
template <class R, int N>
struct AtFixedZ {
    Taylor<R, N> value, slope;
};

// z depends on nu and on rho: the chain rule, with M'' as above. Quotients by v come last:
// rho/v may overflow.
template <int Order, class R>
CURVKERN_HD void write_matern(R v, R rho, const AtFixedZ<R, Order>& m, R* out) {
    const auto& [value, slope] = m;
    R half = c<R>(0.5);
    if constexpr (Order == 0) {
        out[0] = min(value.d[0], c<R>(1));
    } else if constexpr (Order == 1) {
        out[0] = value.d[1] + half * ((rho * slope.d[0]) / v);
        out[1] = slope.d[0];
    } else {
        R both = rho * value.d[0] + slope.d[0];
        R twice = slope.d[1] + half * (both - slope.d[0] / v);
        out[0] = value.d[2] + (rho * twice) / v;
        out[1] = slope.d[1] + both;
        out[2] = c<R>(2) * v * value.d[0] + (c<R>(2) * v - c<R>(1)) * (slope.d[0] / rho);
    }
}

// From the order f in [-1/2, 1] up to nu = f + n: what to start from, at fixed z.
template <class R, int N>
struct MaternStart {
    Taylor<R, N> value, slope;  // M_f, which serves where n = 0, and its slope
    Taylor<R, N> over_order;    // rho M_f / f
    Taylor<R, N> following;     // M_{f+1}
};

template <int N, class R>
CURVKERN_HD AtFixedZ<R, N> matern_climb(R v, R rho, R n, const MaternStart<R, N>& start) {
    using T = Taylor<R, N>;
    R half_q = c<R>(0.5) * v * rho;  // q/rho
    T order = T::variable(v - n);
    AtFixedZ<R, N> y = {start.value, start.slope};
    T current = start.following, lower = start.over_order;  // M_{f+j}, rho M_{f+j-1}/(f+j-1)
    constexpr int most = is_double<R> ? 26 : 12;            // of the orders that belong here
    const auto highest = static_cast<int>(largest(min(n, c<R>(most))));
    for (int j = 1; j <= highest; ++j) {
        auto here = n == c<R>(j);
        y.value = select(here, current, y.value);
        y.slope = select(here, -v * lower, y.slope);
        T inverse = reciprocal(order + c<R>(j));
        T next = current + half_q * (lower * inverse);
        lower = rho * (current * inverse);
        current = next;
    }
    return y;
}

// z < 1.2. Where z underflows its logarithm still matters; where n = 0 the sums are over rho,
// where f < 0 times rho, so that e^-2sigma stays within range. 2^lift keeps subnormal rho off.
template <int N, class R>
CURVKERN_HD AtFixedZ<R, N> matern_temme(R v, R rho) {
    using T = Taylor<R, N>;
    constexpr double lift = is_double<R> ? 100.0 : 60.0;
    const double up = is_double<R> ? 0x1p100 : 0x1p60, down = 1 / up;
    R n = nearest_integer(v), f = v - n, one = c<R>(1);
    Pair<R> half_order = log_split(v, c<R>(-1)), log_lifted = log_split(rho, c<R>(lift));
    half_order = {c<R>(0.5) * half_order.hi, c<R>(0.5) * half_order.lo};
    Pair<R> log_two_over_z = negate(add(log_split(rho, c<R>(0)), half_order));
    Pair<R> sigma = temme_sigma(f, log_two_over_z);
    auto first = n == c<R>(0), below = f < c<R>(0);
    R sign = select(first, -one, select(below, one, c<R>(0)));
    Scale<R> scale = {select(first, c<R>(down) / rho, select(below, c<R>(up) * rho, one)),
                      {sign * log_lifted.hi, sign * log_lifted.lo}};
    ReciprocalGamma<R, N> g = reciprocal_gamma<N>(f);
    T order = T::variable(f), gamma = reciprocal(g.even + order * g.odd);
    g.even = g.even * gamma;
    g.odd = g.odd * gamma;
    TemmeSums<R, N> sums =
        temme_sums<N, true>(f, c<R>(0.5) * v * rho * rho, sigma.hi,
                            scaled_exponentials<N>(f, log_two_over_z, sigma, scale), g);
    R unscaled = c<R>(2) / scale.value;
    R by_rho = c<R>(2) * select(below, c<R>(down), rho);
    T slope = order * (c<R>(-4 * up) * sums.down);
    // f K_f = x/2 (K_{f+1} - K_{f-1}): the value from the one, which is exact as f -> 0, its
    // derivatives from the other, which has no constant term in them
    T value = unscaled * (sums.up - sums.down);
    value.d[0] = f * ((c<R>(2 * up) * rho) * sums.plain.d[0]);
    return matern_climb<N>(
        v, rho, n, MaternStart<R, N>{value, slope, by_rho * sums.plain, unscaled * sums.up});
}

// 1.2 <= z below the Debye region, from the fits of K_f and K_{1-f}, f in [0, 1]
// (low_order.hpp): K_{1+f} = K_{1-f} + (2f/z) K_f.
template <int N, class R>
CURVKERN_HD AtFixedZ<R, N> matern_fitted(R v, R rho, int piece) {
    using T = Taylor<R, N>;
    R n = nearest_integer(v - c<R>(0.5)), f = v - n, g = c<R>(1) - f;
    R z = sqrt(c<R>(2) * v) * rho, log_half = log_split(z, c<R>(-1)).hi;
    R w[] = {f * f, g * g};
    R common = f * log_half - lgamma1p_unit(f), root = sqrt(c<R>(2 * pi) / z);
    T k[2];  // 2 (z/2)^f / Gamma(1+f) times K_f and K_{1-f}
    for (int i = 0; i < 2; ++i) {
        Surface<R> fit = kv_surface<N>(c<R>(1) / z, w[i], piece);
        R off = w[i] - c<R>(0.25);
        k[i].d[0] = root * exp_normal(two_sum(-z, common + off * fit.f));
        if constexpr (N > 0) {
            R psi = horner(f - c<R>(0.5), tables::digamma1p);
            R slope = c<R>(2) * (i == 0 ? f : -g) * (fit.f + off * fit.w);
            k[i].d[1] = k[i].d[0] * ((log_half - psi) + slope);
        }
    }
    T order = T::variable(f);
    return matern_climb<N>(
        v, rho, n,
        MaternStart<R, N>{order * k[0], -sqrt(c<R>(2) * v) * (order * k[1]), rho * k[0],
                          (c<R>(0.5) * z) * k[1] + order * k[0]});
}

// (z/2)^{2 nu} vanishes beside 1: sum_{k < nu} q^k / (k! (1-nu)..(k-nu))
template <int N, class R>
CURVKERN_HD AtFixedZ<R, N> matern_power(R v, R rho) {
    using T = Taylor<R, N>;
    R q = c<R>(0.5) * v * rho * rho;
    T value = T::constant(c<R>(1)), slope = T::constant(c<R>(0)), term = value;
    for (int k = 1; k <= 8; ++k) {
        auto wanted = v > c<R>(k + 0.1);  // what follows has vanished
        T order = T::variable(select(wanted, v, c<R>(k + 0.5)));
        T factor = c<R>(-1.0 / k) * reciprocal(order + c<R>(-k));
        // z dM/dz = 2 sum k q^k .., over rho: one factor q as nu rho / 2
        slope =
            slope + (c<R>(k) * v * rho) * select(wanted, term * factor, T::constant(c<R>(0)));
        term = select(wanted, q * (term * factor), T::constant(c<R>(0)));
        value = value + term;
    }
    return {value, slope};
}

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
    y.log_value = {debye_value<true, false>(v, z, terms, 0), c<R>(0)};
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

template <int Order, int Code, class R>
CURVKERN_HD void evaluate_matern(R v, R rho, int region, R* out) {
    if constexpr (Code == kv_power) {
        write_matern<Order>(v, rho, matern_power<Order>(v, rho), out);
    } else if constexpr (Code == small_low) {
        write_matern<Order>(v, rho, matern_temme<Order>(v, rho), out);
    } else if constexpr (Code >= fitted) {
        if constexpr (Order < 2) {
            write_matern<Order>(v, rho, matern_fitted<Order>(v, rho, region - fitted), out);
        }
    } else if constexpr (Order == 2 && (Code == middle_low || Code == middle_high)) {
        // the fits have first derivatives only
        R z = sqrt(c<R>(2) * v) * rho;
        KernelOfMatern<R> k = matern_integral<Code == middle_high>(v, z);
        write_matern<Order>(v, rho, matern_product<Order>(v, z, k), out);
    } else if constexpr (Code == debye_gamma) {
        R z = sqrt(c<R>(2) * v) * rho;
        KernelOfMatern<R> k = matern_large_argument<Order>(v, z);
        write_matern<Order>(v, rho, matern_product<Order>(v, z, k), out);
    }
}

}  // namespace isa
}  // namespace curvkern::bessel
