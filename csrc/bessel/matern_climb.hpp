// The Matern correlation below the Debye region, from orders in [-1/2, 1] upwards: Temme's
// series (temme.hpp) for z < 1.2, the fits of K_f and K_{1-f} (low_order.hpp) beyond.
//
//   M_{nu+1} = M_nu + q/(nu (nu - 1)) M_{nu-1},  q = z^2/4 (DLMF 10.29.1),
//   dM/drho = -nu rho M_{nu-1}/(nu - 1),
// all positive: Temme's series times (x/2)^f gives M where a product of z^nu, K and 1/Gamma
// would over- and underflow, and tends to 1 with all its digits as rho -> 0.
#pragma once

#include "low_order.hpp"
#include "matern.hpp"
#include "series.hpp"
#include "temme.hpp"

namespace curvkern::bessel {
CURVKERN_PER_ISA {

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

}  // namespace isa
}  // namespace curvkern::bessel
