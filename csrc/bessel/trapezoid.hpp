// K_v(x) from its integral (DLMF 10.32.9) by the trapezoidal rule, for v and x below the Debye
// region and x >= Limits::small.
//
//   K_v(x) = e^-x int_0^inf exp(-x (cosh t - 1)) cosh(v t) dt
// The integrand is entire and decays doubly exponentially, so the rule with step h errs by
// about exp(-2 pi y/h) K_v(x cos y)/K_v(x), the least over y < pi/2, relative to K (Trefethen,
// Weideman 2014, theorem 5.1); the nodes and their cosh are constants. Every derivative is a
// moment of the same positive weights, so d/dv log K = E[t tanh(vt)] keeps its relative
// accuracy down to v = 0.
#pragma once

#include "tables.hpp"
#include "taylor.hpp"

namespace curvkern::bessel {
CURVKERN_PER_ISA {

template <class R>
struct Moments {
    R log_scale;  // log K = log_scale + log(step/2 total)
    Pair<R> total;
    R t, cosh;              // E[t tanh(vt)], E[cosh t - 1]
    R tt, tcosh, coshcosh;  // variance of t (signed), covariance, variance
    R ttcosh;               // third cumulant with cosh
    R below, below_v;       // K_{v-1}/K_v and its derivative in v, where asked for
};

// The rule of a precision and a range of orders: cosh(j step) - 1 as a pair.
template <bool HighOrder, bool Double>
struct Rule;
#define CURVKERN_RULE(high, wide, kind)                                                      \
    template <>                                                                              \
    struct Rule<high, wide> {                                                                \
        static constexpr double step = tables::step_##kind;                                  \
        static constexpr int nodes = tables::nodes_##kind;                                   \
        static CURVKERN_HD double log_weight(int j) { return tables::log_weight_##kind[j]; } \
        static CURVKERN_HD double cosh(int j) { return tables::cosh_##kind[j]; }             \
        static CURVKERN_HD double rest(int j) { return tables::cosh_rest_##kind[j]; }        \
        static CURVKERN_HD double decay(int j) { return tables::decay_##kind[j]; }           \
    };
CURVKERN_RULE(false, true, low_double)
CURVKERN_RULE(false, false, low_float)
CURVKERN_RULE(true, true, high_double)
CURVKERN_RULE(true, false, high_float)
#undef CURVKERN_RULE

// HighOrder: v > 1. Exponents reach 40 there and must be exact to 2^-53, so they are pairs.
// Below: K_{v-1} too, from e^-t + e^{-2vt} e^t in place of 1 + e^{-2vt}.
template <bool HighOrder, int Order, bool Below = false, class R>
CURVKERN_SHARED Moments<R> integrate_kv(R v, R x) {
    using Nodes = Rule<HighOrder, is_double<R>>;
    constexpr double step = Nodes::step;
    constexpr double lowest = is_double<R> ? -700.0 : -80.0;  // exp_normal's range
    R peak = c<R>(0), t_peak = c<R>(0), cosh_peak = c<R>(0);
    if constexpr (HighOrder) {
        // about the largest exponent, v asinh(v/x) - (sqrt(v^2 + x^2) - x)
        R r = sqrt(v * v + x * x);
        t_peak = log_positive((v + r) / x);
        cosh_peak = v * v / (x * (r + x));
        peak = v * t_peak - x * cosh_peak;
    }
    // e^{-vt} cosh and sinh as 1 + g^j and 1 - g^j, both by recurrences of positive terms
    R vh = v * c<R>(step);
    R one_less_g = -expm1(c<R>(-2) * vh), g = c<R>(1) - one_less_g;
    R power = c<R>(1), less = c<R>(0);
    R origin = HighOrder ? exp_normal(-peak) : c<R>(1);
    Moments<R> m{};
    // compensated: these two decide the last digit of K and of the ratio
    Pair<R> total = {origin, c<R>(0)}, sum_cosh = {c<R>(0), c<R>(0)};
    for (int j = 1; j < Nodes::nodes; ++j) {
        R t = c<R>(j * step);
        R chm1 = c<R>(Nodes::cosh(j));
        R weight;
        if constexpr (HighOrder) {
            Pair<R> up = two_prod(v, t), down = two_prod(x, chm1);
            Pair<R> exponent = two_sum(up.hi, -down.hi);
            exponent.lo = exponent.lo + ((up.lo - down.lo) - x * c<R>(Nodes::rest(j)));
            R top = exponent.hi - peak;
            exponent.lo = exponent.lo + ((exponent.hi - top) - peak);
            weight = exp_normal(Pair<R>{max(top, c<R>(lowest)), exponent.lo});
        } else {
            Pair<R> down = two_prod(x, chm1);
            R rest = down.lo + x * c<R>(Nodes::rest(j));
            weight = exp_normal(Pair<R>{max(v * t - down.hi, c<R>(lowest)), -rest});
        }
        less = less + power * one_less_g;
        power = power * g;
        R even = weight * (c<R>(1) + power);
        Pair<R> next = two_sum(total.hi, even);
        total = {next.hi, total.lo + next.lo};
        if constexpr (Below) {
            R falling = weight * c<R>(Nodes::decay(j)), rising = weight * power;
            rising = rising * c<R>(1 / Nodes::decay(j));
            m.below = m.below + (falling + rising);
            if constexpr (Order > 1) {
                m.below_v = m.below_v + (falling * (t - t_peak) - rising * (t + t_peak));
            }
        }
        if constexpr (Order > 0) {
            // moments about the peak: what is subtracted afterwards is small
            R odd = weight * less, ch = chm1 - cosh_peak;
            R first =
                HighOrder ? even * (t - t_peak) - (c<R>(2) * t) * (weight * power) : odd * t;
            m.t = m.t + first;
            Pair<R> grown = two_sum(sum_cosh.hi, even * ch);
            sum_cosh = {grown.hi, sum_cosh.lo + grown.lo};
            m.tcosh = m.tcosh + first * ch;
            if constexpr (Order > 1) {
                R above = t - t_peak, below = t + t_peak;
                R second = HighOrder ? weight * (above * above + power * (below * below))
                                     : even * (t * t);
                m.tt = m.tt + second;
                m.ttcosh = m.ttcosh + second * ch;
                m.coshcosh = m.coshcosh + even * (ch * ch);
            }
        }
        // past the peak every weight is smaller than the last by more than a factor of two
        const double enough = is_double<R> ? 0x1p-58 : 0x1p-28;
        if (!any(even * (c<R>(1) + chm1) > c<R>(enough) * total.hi)) break;
    }
    m.total = fast_two_sum(total.hi, total.lo);
    if constexpr (Order > 0) {
        m.cosh = sum_cosh.hi + sum_cosh.lo;
        // the node t = 0, then means and cumulants
        if constexpr (HighOrder) {
            m.t = m.t - origin * t_peak;
            m.cosh = m.cosh - origin * cosh_peak;
            m.tcosh = m.tcosh + origin * t_peak * cosh_peak;
            m.tt = m.tt + origin * (t_peak * t_peak);
            m.ttcosh = m.ttcosh - origin * (t_peak * t_peak * cosh_peak);
            m.coshcosh = m.coshcosh + origin * (cosh_peak * cosh_peak);
        }
        R inverse = c<R>(1) / m.total.hi;
        R t = m.t * inverse, ch = m.cosh * inverse, tch = m.tcosh * inverse,
          tt = m.tt * inverse;
        m.t = t_peak + t;
        m.cosh = cosh_peak + ch;
        m.tcosh = tch - t * ch;
        m.tt = tt - t * t;
        m.coshcosh = m.coshcosh * inverse - ch * ch;
        m.ttcosh = (m.ttcosh * inverse - tt * ch) - c<R>(2) * t * (tch - t * ch);
    }
    if constexpr (Below) {
        R inverse = c<R>(1) / m.total.hi;
        m.below = (m.below + origin) * inverse;
        m.below_v = (m.below_v - origin * t_peak) * inverse - m.below * (m.t - t_peak);
    }
    m.log_scale = peak;
    return m;
}

// log K + x
template <bool HighOrder, class R>
CURVKERN_HD Pair<R> log_kve_pair(const Moments<R>& m) {
    using Nodes = Rule<HighOrder, is_double<R>>;
    Pair<R> y = add(log_split(m.total.hi, c<R>(0)),
                    Pair<R>{c<R>(Nodes::log_weight(0)), c<R>(Nodes::log_weight(1))});
    y.lo = y.lo + m.total.lo / m.total.hi;
    if constexpr (HighOrder) y = add(y, m.log_scale);
    return y;
}

// log K + scale x
template <bool HighOrder, class R>
CURVKERN_HD R log_kv_integral(R v, R x, Scalar<R> scale) {
    Pair<R> y = log_kve_pair<HighOrder>(integrate_kv<HighOrder, 0>(v, x));
    y = add(y, (scale - 1) * x);
    return y.hi + y.lo;
}

}  // namespace isa
}  // namespace curvkern::bessel
