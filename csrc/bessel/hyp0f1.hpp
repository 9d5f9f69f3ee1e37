// log 0F1(; v+1; x^2/4) = log[Gamma(v+1) (2/x)^v I_v(x)] outside the plain Debye region.
#pragma once

#include "debye_functions.hpp"
#include "ratio.hpp"
#include "series.hpp"

namespace curvkern::bessel {
CURVKERN_PER_ISA {

// Derivatives from the series in v; d/dx is the ratio I_{v+1}/I_v, given with its own slope.
template <int Order, class R>
CURVKERN_HD void write_hyp_slopes(R v, R x, int terms, R ratio, Slope<R> slope, R* out) {
    Taylor<R, Order> s = series_jet<Order>(v, x, terms);
    R relative = s.d[1] / s.d[0];
    if constexpr (Order == 1) {
        out[0] = relative;
        out[1] = ratio;
    } else {
        out[0] = s.d[2] / s.d[0] - relative * relative;
        out[1] = slope.dv;
        out[2] = slope.dx;
    }
}

template <int Order, class R>
CURVKERN_HD void evaluate_hyp_small(R v, R x, int region, R* out) {
    const bool near_zero = region == small_low || region == small_high;
    const int terms = near_zero ? series_terms<true, R> : series_terms<false, R>;
    if constexpr (Order == 0) {
        Pair<R> y = log_series<false>(v, x, terms);
        out[0] = y.hi + y.lo;
    } else {
        Ratio<R, Order> ratio = iv_ratio_fraction<Order>(v, x);
        write_hyp_slopes<Order>(v, x, terms, ratio.rho.d[0], {ratio.rho.d[1], ratio.dx}, out);
    }
}

// x^2 < 16 (v+1): 30 terms of the series, for any v
template <int Order, class R>
CURVKERN_HD void evaluate_hyp_wide(R v, R x, R* out) {
    constexpr int terms = 30;
    if constexpr (Order == 0) {
        R z = (c<R>(0.5) * x) * (c<R>(0.5) * x) / (v + c<R>(1));
        R term = c<R>(1), sum = c<R>(0);  // sum of t_k / z, t_k = z^k / (k! (1+1/(v+1)) ...)
        for (int k = 2; k <= terms; ++k) {
            sum = sum + term;
            R spread = (v + c<R>(1)) / (v + c<R>(k));
            term = term * (z * spread * (Scalar<R>(1) / static_cast<Scalar<R>>(k)));
        }
        out[0] = log1p(z * sum);
    } else {
        constexpr int most = Limits<R>::terms(0);
        Point<R> p = point<true>(v, x);
        R ratio = debye_ratio<Function::iv_ratio, true>(v, x, p, most);
        Slope<R> slope{};
        if constexpr (Order > 1) slope = debye_ratio_slope<Function::iv_ratio>(v, x, p, most);
        write_hyp_slopes<Order>(v, x, terms, ratio, slope, out);
    }
}

// v < 11 (5), x in the Debye region: log I plus what it lacks, which cancels little here
template <int Order, class R>
CURVKERN_HD void evaluate_hyp_gamma(R v, R x, R* out) {
    constexpr int terms = Limits<R>::terms(0);
    if constexpr (Order == 0) {
        // beyond 2^400 log I is x to the last bit
        R near = min(x, c<R>(is_double<R> ? 0x1p400 : 0x1p45));
        R rest = debye_value<false>(false, v, near, terms, 0) + (x - near);
        out[0] = (rest - v * log_half(x)) + lgamma1p_pair(v).hi;
        return;
    }
    evaluate_debye<Function::log_iv, Order, true>(v, x, terms, 0, out);
    Taylor<R, 1> psi = digamma1p(v);
    Point<R> z = point<true>(v, x);
    if constexpr (Order == 1) {
        out[0] = out[0] + (psi.d[0] - log_half(x));
        out[1] = debye_ratio<Function::iv_ratio, true>(v, x, z, terms);
    } else if constexpr (Order == 2) {
        Slope<R> s = debye_ratio_slope<Function::iv_ratio>(v, x, z, terms);
        out[0] = out[0] + psi.d[1];
        out[1] = s.dv;
        out[2] = s.dx;
    }
}

}  // namespace isa
}  // namespace curvkern::bessel
