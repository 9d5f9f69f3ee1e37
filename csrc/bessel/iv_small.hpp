// log I, its derivatives and the ratio I_{v+1}/I_v below the Debye region.
#pragma once

#include "debye_functions.hpp"
#include "ratio.hpp"
#include "series.hpp"
#include "trapezoid.hpp"

namespace curvkern::bessel {
CURVKERN_PER_ISA {

// d/dv log I from K and the ratios through the Wronskian, I_v K_{v+1} + I_{v+1} K_v = 1/x:
// log I = -log x - log K - log(kappa + rho), kappa = K_{v+1}/K_v, rho = I_{v+1}/I_v.
template <int N, class R>
struct FromWronskian {
    Ratio<R, N> ratio;
    R dv, dvv;  // of log I
};

template <int N, bool HighOrder, class R>
CURVKERN_HD FromWronskian<N, R> from_wronskian(R v, R x) {
    Ratio<R, N> ratio = iv_ratio_fraction<N>(v, x);
    Moments<R> m = integrate_kv<HighOrder, N>(v, x);
    R sum = v / x + (c<R>(1) + m.cosh) + ratio.rho.d[0];  // kappa + rho
    R relative = ((c<R>(1) / x + ratio.rho.d[1]) + m.tcosh) / sum;
    R dvv{};
    if constexpr (N > 1) {
        dvv = -m.tt - ((m.ttcosh + ratio.rho.d[2]) / sum - relative * relative);
    }
    return {ratio, -(m.t + relative), dvv};
}

template <Function F, int Order, int Code, class R>
CURVKERN_HD void evaluate_i_small(R v, R x, [[maybe_unused]] Call<Scalar<R>> call, R* out) {
    constexpr bool low = Code == small_low || Code == middle_low;
    if constexpr (F == Function::iv_ratio) {
        if constexpr (Order == 2) {
            Jet<R> ratio = iv_ratio_jet(v, x);
            out[0] = ratio.vv;
            out[1] = ratio.vx;
            out[2] = ratio.xx;
        } else {
            Ratio<R, Order> ratio = iv_ratio_fraction<Order>(v, x);
            out[0] = ratio.rho.d[Order];
            if constexpr (Order == 1) out[1] = ratio.dx;
        }
    } else if constexpr (Order == 0) {
        out[0] = log_iv_series<!low>(v, x, call.region != middle_high, call.scale);
    } else {
        R dv, dvv{};
        Ratio<R, Order> ratio;
        if constexpr (Code == small_low) {
            Taylor<R, Order> s = series_jet<Order>(v, x, series_terms<true, R>);
            Taylor<R, 1> psi = digamma1p(v);
            R slope = s.d[1] / s.d[0];
            dv = (log_half(x) - psi.d[0]) + slope;
            if constexpr (Order > 1) dvv = (s.d[2] / s.d[0] - slope * slope) - psi.d[1];
            ratio = iv_ratio_fraction<Order>(v, x);
        } else {
            auto y = from_wronskian<Order, !low>(v, x);
            ratio = y.ratio;
            dv = y.dv;
            dvv = y.dvv;
        }
        if constexpr (Order == 1) {
            out[0] = dv;
            out[1] = v / x + (ratio.rho.d[0] - call.scale);
        } else {
            out[0] = dvv;
            out[1] = mixed_derivative(v, x);
            out[2] = ratio.dx - (v / x) / x;
        }
    }
}

// Second derivatives where v < 1 and the recessive solution still shows in the mixed one:
//   I_v = E - sin(pi v)/pi K_v, and the Debye sum is that of E
template <class R>
CURVKERN_HD void evaluate_i_recessive(R v, R x, R* out) {
    constexpr int terms = Limits<R>::terms(0);
    evaluate_debye<Function::log_iv, 2, false>(v, x, terms, 0, out);
    Point<R> z = point<false>(v, x);
    R tau = z.a * z.a;
    R odd = debye_sum<0>(-z.p, tau, terms).s - debye_sum<0>(z.p, tau, terms).s;
    Pair<R> main = debye_main<false>(scaling<false>(v, x), x, polar_scaled(v, x).r, 0);
    R k_over_i = c<R>(pi) * exp(c<R>(-2) * main.hi) * exp(odd - c<R>(2) * main.lo);
    // d/dx (K/I) = -1/(x I^2) = -(K/I) (kappa + rho)
    R sum = c<R>(2) * z.r / x +
            (debye_slopes<false>(z, terms).dx_small - debye_slopes<true>(z, terms).dx_small);
    out[1] = out[1] + cos_sin_pi(v).cos * k_over_i * sum;
}

}  // namespace isa
}  // namespace curvkern::bessel
