// log K, its derivatives and the ratio K_{v+1}/K_v below the Debye region.
#pragma once

#include "debye_functions.hpp"
#include "series.hpp"
#include "temme.hpp"
#include "trapezoid.hpp"

namespace curvkern::bessel {
CURVKERN_PER_ISA {

// Riccati's equation for K_{v+1}/K_v, rho' = rho^2 - 1 - (2v+1) rho/x, once more
// differentiated, in v and in x. Only below the Debye region: it cancels for large arguments.
template <class R>
CURVKERN_HD void riccati_hess(R v, R x, R rho, Slope<R> slope, R vv, R* out) {
    R twice = c<R>(2) * rho;
    R order = (c<R>(2) * v + c<R>(1)) / x;
    out[0] = vv;
    out[1] = (twice - order) * slope.dv - c<R>(2) * (rho / x);
    out[2] = twice * slope.dx - order * (slope.dx - rho / x);
}

// What log K and the ratio K_{v+1}/K_v are made of below the Debye region.
template <class R>
struct KSlopes {
    R dv, dx, dvv, dvx, dxx;     // of log K
    R ratio, ratio_v, ratio_vv;  // kappa = v/x - dx, its derivatives in v
};

// y'' = 1 + v^2/x^2 - y'/x - y'^2 with y' = -(v + below)/x, below = x K_{v-1}/K_v
template <class R>
CURVKERN_HD R kv_curvature(R v, R x, R below) {
    return c<R>(1) + ((v + below - c<R>(2) * v * below - below * below) / x) / x;
}

template <int Order, class R>
CURVKERN_HD KSlopes<R> k_slopes_temme(R v, R x) {
    KSlopes<R> y{};
    SmallK<R, Order> k = temme<Order>(v, x);
    auto inverse = reciprocal(k.kappa);
    auto flat = k.n == c<R>(0);
    R half_square = c<R>(0.5) * x * x;
    R below = select(flat, c<R>(2), half_square) * (k.below.d[0] * inverse.d[0]);
    // 2 ratio / x as a pair, where 2/x is within the reach of two_prod
    R twice = c<R>(2) / x;
    Pair<R> ratio = two_prod(k.ratio.d[0], twice), back = two_prod(twice, x);
    R twice_rest = c<R>(0.5) * ((c<R>(2) - back.hi) - back.lo);  // relative
    R rest = select(flat, k.ratio_rest * twice, c<R>(0));
    R refined = ratio.hi + (ratio.lo + (rest + ratio.hi * twice_rest));
    y.ratio = select(twice < c<R>(is_double<R> ? 0x1p900 : 0x1p90), refined,
                     c<R>(2) * k.ratio.d[0] / x);
    y.dx = -(v + below) / x;
    y.dxx = kv_curvature(v, x, below);
    if constexpr (Order > 0) {
        y.dv = k.kappa.d[1] * inverse.d[0] + k.log_factor.d[1];
        // for n = 0 log K is even in v: d/dx log K = -even/(x K)
        R even_v = (k.even * inverse).d[1];
        y.ratio_v = select(flat, c<R>(1) + even_v, c<R>(2) * k.ratio.d[1]) / x;
        y.dvx = select(flat, -even_v, c<R>(1) - c<R>(2) * k.ratio.d[1]) / x;
    }
    if constexpr (Order > 1) {
        R slope = k.kappa.d[1] * inverse.d[0];
        y.dvv = (k.kappa.d[2] * inverse.d[0] - slope * slope) + k.log_factor.d[2];
        y.ratio_vv = select(flat, (k.even * inverse).d[2], c<R>(2) * k.ratio.d[2]) / x;
    }
    return y;
}

template <bool HighOrder, int Order, class R>
CURVKERN_HD KSlopes<R> k_slopes_integral(R v, R x) {
    Moments<R> m = integrate_kv<HighOrder, (Order > 0 ? Order : 1)>(v, x);
    R up = c<R>(1) + m.cosh;
    return {m.t, -up, m.tt, -m.tcosh, m.coshcosh, v / x + up, c<R>(1) / x + m.tcosh, m.ttcosh};
}

template <Function F, int Order, class R>
CURVKERN_HD void write_k(R v, R x, const KSlopes<R>& y, Scalar<R> scale, R* out) {
    if constexpr (is_ratio(F)) {
        Slope<R> slope = {y.ratio_v, -(v / x) / x - y.dxx};
        if constexpr (Order == 0) out[0] = y.ratio;
        if constexpr (Order == 1) {
            out[0] = slope.dv;
            out[1] = slope.dx;
        }
        if constexpr (Order == 2) riccati_hess(v, x, y.ratio, slope, y.ratio_vv, out);
    } else if constexpr (Order == 1) {
        out[0] = y.dv;
        out[1] = y.dx + scale;
    } else if constexpr (Order == 2) {
        out[0] = y.dvv;
        out[1] = y.dvx;
        out[2] = y.dxx;
    }
}

template <Function F, int Order, int Code, class R>
CURVKERN_HD void evaluate_k_small(R v, R x, Scalar<R> scale, R* out) {
    constexpr bool high = Code == middle_high;
    constexpr bool near_zero = Code == small_low || Code == small_high;
    if constexpr (Order == 0 && !is_ratio(F)) {
        out[0] = near_zero ? log_kv_small(v, x, scale) : log_kv_integral<high>(v, x, scale);
    } else if constexpr (near_zero) {
        // the curvature of the ratio needs the second derivatives of log K
        write_k<F, Order>(v, x, k_slopes_temme<Order>(v, x), scale, out);
    } else {
        // d/dx kappa is a variance: one order more than the ratio itself
        constexpr int moments = is_ratio(F) && Order == 1 ? 2 : Order;
        write_k<F, Order>(v, x, k_slopes_integral<high, moments>(v, x), scale, out);
    }
}

// K where (x/2)^{2v} vanishes beside 1: the first of the two series of DLMF 10.27.4, 10.25.2,
//   K_v(x) = Gamma(v)/2 (2/x)^v (1 + s),  s = sum_{1 <= k < v} q^k / (k! (1-v)..(k-v)),
//   q = x^2/4.
template <Function F, int Order, class R>
CURVKERN_HD void evaluate_k_power(R v, R x, Scalar<R> scale, R* out) {
    using T = Taylor<R, Order>;
    R q = (c<R>(0.5) * x) * (c<R>(0.5) * x);
    T sum = T::constant(c<R>(0)), weighted = sum;  // s, q ds/dq
    T term = T::constant(c<R>(1));
    for (int k = 1; k <= 6; ++k) {
        auto wanted = v > c<R>(k + 0.1);
        T order = T::variable(select(wanted, v, c<R>(k + 0.5)));
        term = (q * (Scalar<R>(-1) / static_cast<Scalar<R>>(k))) *
               (term * reciprocal(order + c<R>(-k)));
        term = select(wanted, term, T::constant(c<R>(0)));
        sum = sum + term;
        weighted = weighted + c<R>(k) * term;
    }
    T total = reciprocal(sum + c<R>(1));
    T below = c<R>(-2) * (weighted * total);  // x K_{v-1}/K_v
    Pair<R> log_x = log_split(x, c<R>(-1));
    if constexpr (Order == 0 && !is_ratio(F)) {
        // log Gamma(v) - log 2 = log Gamma(v+1) - log(2v)
        Pair<R> y = add(lgamma1p_pair(v), negate(log_split(v, c<R>(1))));
        y = add(y, negate(mul(log_x, v)));
        y = add(y, log1p(sum.d[0]) + scale * x);
        out[0] = y.hi + y.lo;
        return;
    }
    KSlopes<R> y{};
    y.ratio = (c<R>(2) * v + below.d[0]) / x;
    y.dx = -(v + below.d[0]) / x;
    y.dxx = kv_curvature(v, x, below.d[0]);
    if constexpr (Order > 0) {
        Taylor<R, 1> psi = digamma1p(v);
        R inverse = c<R>(1) / v;
        R slope = sum.d[1] * total.d[0];
        y.dv = ((psi.d[0] - inverse) - log_x.hi) + slope;
        y.ratio_v = (c<R>(2) + below.d[1]) / x;
        y.dvx = -(c<R>(1) + below.d[1]) / x;
        if constexpr (Order > 1) {
            y.dvv = (psi.d[1] + inverse * inverse) + (sum.d[2] * total.d[0] - slope * slope);
            y.ratio_vv = below.d[2] / x;
        }
    }
    write_k<F, Order>(v, x, y, scale, out);
}

}  // namespace isa
}  // namespace curvkern::bessel
