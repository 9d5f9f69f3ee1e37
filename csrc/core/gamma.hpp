// log Gamma, digamma and trigamma: Stirling's series and the shift to it.
#pragma once

#include "log_pair.hpp"

namespace curvkern {
CURVKERN_PER_ISA {

inline constexpr double half_log_2pi = 0.91893853320467274178;

CURVKERN_TABLE double stirling_series[] = {1.0 / 12,   -1.0 / 360,      1.0 / 1260, -1.0 / 1680,
                                           1.0 / 1188, -691.0 / 360360, 1.0 / 156};

// log Gamma(w) - [(w - 1/2) log w - w + log(2 pi)/2] = 1/(12 w) - 1/(360 w^3) + .., Stirling's
// series (DLMF 5.11.1), w >= 11 (5)
template <class R>
CURVKERN_HD R stirling_tail(R w) {
    R inverse = c<R>(1) / w;
    return inverse * horner(inverse * inverse, stirling_series);
}

// log w - 1/(2w) - psi(w) and psi'(w) - 1/w - 1/(2 w^2) (DLMF 5.11.2), w >= 11 (5)
template <class R>
CURVKERN_HD R digamma_tail(R w) {
    constexpr double t[] = {1.0 / 12,  -1.0 / 120,     1.0 / 252, -1.0 / 240,
                            1.0 / 132, -691.0 / 32760, 1.0 / 12};
    R square = (c<R>(1) / w) / w;
    return square * horner(square, t);
}

template <class R>
CURVKERN_HD R trigamma_tail(R w) {
    constexpr double t[] = {1.0 / 6,  -1.0 / 30,     1.0 / 42, -1.0 / 30,
                            5.0 / 66, -691.0 / 2730, 7.0 / 6};
    R square = (c<R>(1) / w) / w;
    return (square / w) * horner(square, t);
}

// log Gamma(v + 1), v >= 0, as a pair, to 2^-60 (2^-31) (v + 32). Shift up by the product
// (v + 1) .. (v + shift), whose factors from both ends are v (v + shift + 1) + j (shift + 1 -
// j); then Stirling.
template <class R>
CURVKERN_SHARED Pair<R> lgamma1p_pair_called(R v) {
    constexpr int shift = is_double<R> ? 15 : 7, middle = (shift + 1) / 2;
    const R one = c<R>(1);
    auto large = v > c<R>(shift);
    R base = select(large, c<R>(0), v);
    Pair<R> product = two_sum(base, c<R>(middle));
    Pair<R> square = mul(two_sum(base, c<R>(shift + 1)), base);
    for (int j = 1; j < middle; ++j) {
        product = mul(product, add(square, c<R>(j * (shift + 1 - j))));
    }
    Pair<R> w = two_sum(v, select(large, one, c<R>(shift + 1)));
    Pair<R> log_w = log_quotient(w, one);
    Pair<R> y = mul(add(w, c<R>(-0.5)), log_w);
    y = add(y, negate(w));
    const double lo = is_double<R> ? -3.8782941580672414e-17 : 1.563417713631158e-08;
    y = add(y, Pair<R>{c<R>(half_log_2pi), c<R>(lo)});
    y = add(y, stirling_tail(w.hi));
    Pair<R> shifted = add(y, negate(log_quotient(product, one)));
    return {select(large, y.hi, shifted.hi), select(large, y.lo, shifted.lo)};
}

template <class R>
CURVKERN_HD Pair<R> lgamma1p_pair(R v) {
    if constexpr (is_twin<R>) {
        auto a = lgamma1p_pair_called(v.a), b = lgamma1p_pair_called(v.b);
        return {{a.hi, b.hi}, {a.lo, b.lo}};
    } else {
        return lgamma1p_pair_called(v);
    }
}

template <class R>
CURVKERN_HD R lgamma(R x) {  // x > 0
    // Gamma(x) = Gamma(x + 1) / x
    Pair<R> y = add(lgamma1p_pair(x), negate(log_pair(Pair<R>{x, c<R>(0)})));
    return select(x == infinity<R>(), x, y.hi + y.lo);
}

}  // namespace isa
}  // namespace curvkern
