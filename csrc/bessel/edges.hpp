// IEEE results where v or x is zero, infinite, negative or not a number.
#pragma once

#include "regions.hpp"
#include "series.hpp"

namespace curvkern::bessel {
CURVKERN_PER_ISA {

// The Matern correlation: 1 at no distance, where derivatives are the limits from the right; 0
// far away; exp(-rho^2/2) in the limit of infinite order.
template <int Order, class T>
CURVKERN_HD void evaluate_matern_edge(T v, T rho, T* out) {
    const T inf = infinity<T>();
    for (int o = 0; o <= Order; ++o) out[o] = 0;
    if (!(v > 0 && rho >= 0)) {  // true for NaN
        for (int o = 0; o <= Order; ++o) out[o] = not_a_number<T>();
    } else if (rho == 0) {
        if constexpr (Order == 0) out[0] = 1;
        if constexpr (Order == 1) out[1] = v < T(0.5) ? -inf : (v == T(0.5) ? T(-1) : T(0));
        if constexpr (Order == 2) {
            out[1] = v <= T(0.5) ? inf : T(0);
            out[2] = v < T(0.5)    ? inf
                     : v == T(0.5) ? T(1)
                     : v <= 1      ? -inf
                     : v == inf    ? T(-1)
                                   : -v / (v - 1);
        }
    } else if (v >= T(huge_order<T>) && rho < T(1e4)) {
        const T gauss = exp(T(-0.5) * rho * rho);
        if constexpr (Order == 0) out[0] = gauss;
        if constexpr (Order == 1) out[1] = -rho * gauss;
        if constexpr (Order == 2) out[2] = (rho * rho - 1) * gauss;
    }
}

template <Function F, int Order, class T>
CURVKERN_HD void evaluate_edge(T v, T x, T scale, T* out) {
    if constexpr (is_matern(F)) return evaluate_matern_edge<Order>(v, x, out);
    const T inf = infinity<T>(), nan = not_a_number<T>();
    for (int o = 0; o <= Order; ++o) out[o] = nan;
    const bool legal = v >= 0 && x >= 0;  // false for NaN
    if (!legal || (v == inf && x == inf)) return;
    const bool k = is_k(F), hyp = is_hyp(F);
    if constexpr (Order == 0) {
        if (is_ratio(F)) {
            if (x == inf)
                out[0] = 1;
            else
                out[0] = k ? inf : T(0);
        } else if (hyp) {
            out[0] = x == inf ? inf : T(0);
        } else if (v == inf) {
            out[0] = k ? inf : -inf;
        } else if (x == inf) {
            // scaled functions fall like -log(x)/2
            out[0] = k || scale != 0 ? -inf : inf;
        } else {
            out[0] = k ? inf : (v == 0 ? T(0) : -inf);
        }
    } else if constexpr (Order == 1) {
        if (v == inf) return;
        if (is_ratio(F)) {
            if (x == inf) {
                out[0] = out[1] = 0;
            } else if (!k) {
                out[0] = 0;
                out[1] = T(0.5) / (v + 1);
            } else {
                out[0] = inf;
                out[1] = -inf;
            }
        } else if (hyp) {
            // log 0F1 ~ x - (v + 1/2) log(x/2) + log Gamma(v + 1)
            out[0] = x == inf ? -inf : T(0);
            out[1] = x == inf ? T(1) : T(0);
        } else if (x == inf) {
            out[0] = 0;
            out[1] = (k ? T(-1) : T(1)) * (1 - scale);
        } else if (k) {
            out[0] = v == 0 ? T(0) : inf;
            out[1] = -inf;
        } else {
            out[0] = -inf;
            out[1] = (v == 0 ? T(0) : inf) - scale;
        }
    } else {
        if (v == inf) return;
        if (x == inf) {
            out[0] = hyp ? digamma1p(v).d[1] : T(0);
            out[1] = out[2] = 0;
        } else if (is_ratio(F)) {  // K: 2v/x, I: x/(2(v+1))
            out[0] = k && v <= T(0.5) ? inf : T(0);
            out[1] = k ? -inf : T(-0.5) / ((v + 1) * (v + 1));
            out[2] = k ? inf : T(0);
        } else if (hyp) {
            out[0] = out[1] = 0;
            out[2] = T(0.5) / (v + 1);
        } else if (k) {  // log Gamma(v) - v log(x/2), even in v
            out[0] = v == 0 ? inf : digamma1p(v).d[1] + 1 / (v * v);
            out[1] = v == 0 ? T(0) : -inf;
            out[2] = inf;
        } else {  // v log(x/2) - log Gamma(v + 1)
            out[0] = -digamma1p(v).d[1];
            out[1] = inf;
            out[2] = v == 0 ? T(0.5) : -inf;
        }
    }
}

}  // namespace isa
}  // namespace curvkern::bessel
