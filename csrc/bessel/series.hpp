// log I_v(x) from the power series (DLMF 10.25.2), for v and x below the Debye region.
//
//   I_v(x) = (x/2)^v / Gamma(v+1) (1 + z f),  z = (x/2)^2 / (v+1),
//   f = sum over k >= 2 of the remaining terms, all positive.
// The prefactor v log(x/2) - log Gamma(v+1) cancels against log(1 + z f) on the curve log I =
// 0, so for v > 1 it is a pair.
#pragma once

#include "tables.hpp"
#include "taylor.hpp"

namespace curvkern::bessel {
CURVKERN_PER_ISA {

// Terms after which the power series is below 2^-54 (2^-26) of its sum, for x < 1.2 (Small) and
// up to Limits::radius(0). Fixed by the region: a result must not depend on its neighbours.
template <bool Small, class R>
inline constexpr int series_terms = is_double<R> ? (Small ? 14 : 54) : (Small ? 9 : 24);

// f above, by Horner's rule on a fraction: numerator and denominator grow like binomials, and
// no division is needed before the end.
template <class R>
CURVKERN_HD R series_tail(R v, R quarter_square, int terms) {
    R numerator = c<R>(1), denominator = c<R>(1);
    for (int k = terms; k >= 2; --k) {
        const Scalar<R> inverse = Scalar<R>(1) / static_cast<Scalar<R>>(k);
        denominator = denominator * (c<R>(1) + v * inverse);
        numerator = denominator + numerator * (quarter_square * (inverse * inverse));
    }
    return numerator / denominator;
}

// Terms that have to be pairs: what follows is below 2^-10 (2^-7) of the sum up to x =
// Limits::radius(0), and so are its roundings.
template <class R>
inline constexpr int series_pairs = is_double<R> ? 20 : 11;

// z f as a pair: numerator and denominator, times prod (k/8)^2, by the same rule. Twenty
// roundings would otherwise show where log I is small.
template <class R>
CURVKERN_SHARED Pair<R> series_pair(R v, R x, int terms) {
    R half = c<R>(0.5) * x;
    Pair<R> square = two_prod(half, half);
    Pair<R> q = {c<R>(1.0 / 64) * square.hi, c<R>(1.0 / 64) * square.lo};
    Pair<R> numerator = {c<R>(1), c<R>(0)}, denominator = numerator;
    int k = terms;
    for (; k > series_pairs<R>; --k) {
        denominator.hi = denominator.hi * ((v + c<R>(k)) * c<R>(k / 64.0));
        numerator.hi = denominator.hi + numerator.hi * q.hi;
    }
    for (; k >= 2; --k) {
        denominator = mul(denominator, mul(two_sum(v, c<R>(k)), c<R>(k / 64.0)));
        numerator = add(denominator, mul(numerator, q));
    }
    return div(mul(square, numerator), mul(denominator, two_sum(v, c<R>(1))));
}

// log(I_v(x) Gamma(v+1) (2/x)^v) = log 0F1(; v+1; x^2/4), relative accuracy as x -> 0. A pair,
// as log I - x must keep the lower digits of a logarithm that reaches x.
template <bool Pairs, class R>
CURVKERN_SHARED Pair<R> log_series(R v, R x, int terms) {
    Pair<R> grown{};
    if constexpr (Pairs) {
        grown = series_pair(v, x, terms);
    } else {
        R half = c<R>(0.5) * x, quarter_square = half * half;
        R z = quarter_square / (v + c<R>(1));
        grown.hi = z * series_tail(v, quarter_square, terms);
    }
    Pair<R> whole = add(grown, c<R>(1));
    Pair<R> y = log_split(whole.hi, c<R>(0));
    y.lo = y.lo + whole.lo / whole.hi;
    auto small = grown.hi < c<R>(0.25);
    return {select(small, log1p(grown.hi), y.hi), select(small, c<R>(0), y.lo)};
}

// log Gamma(v+1), 0 <= v <= 1, exact zeros at both ends
template <class R>
CURVKERN_HD R lgamma1p_unit(R v) {
    return v * (v - c<R>(1)) * horner(v - c<R>(0.5), tables::lgamma_quotient);
}

// log(x/2), also where x/2 is subnormal
template <class R>
CURVKERN_HD R log_half(R x) {
    return log_split(x, c<R>(-1)).hi;
}

// log I - scale x from the series
template <bool HighOrder, class R>
CURVKERN_HD R log_iv_series(R v, R x, bool near_zero, Scalar<R> scale) {
    Pair<R> y = HighOrder && !near_zero ? log_series<true>(v, x, series_terms<false, R>)
                                        : log_series<false>(v, x, series_terms<true, R>);
    y = add(y, -scale * x);
    if constexpr (HighOrder) {  // v > 1
        // subnormal numbers scaled
        auto tiny = x < c<R>(0x1p-100);
        R up = select(tiny, c<R>(0x1p100), c<R>(1)),
          exponent = select(tiny, c<R>(-101), c<R>(-1));
        Pair<R> log_x = log_quotient(Pair<R>{x * up, c<R>(0)}, c<R>(1), exponent);
        y = add(add(mul(log_x, v), negate(lgamma1p_pair(v))), y);
    } else {
        y = add(y, v * log_half(x) - lgamma1p_unit(v));
    }
    return y.hi + y.lo;
}

// d2/dvdx log I = (2v/x) int_0^x I^2 dt/t / I^2 from the series of I^2 (DLMF 10.31.3), positive
// term by term: I^2 ~ sum b_k, b_k/b_{k-1} = (v+k-1/2) x^2 / ((v+k)(2v+k) k), weights v/(v+k).
template <class R>
CURVKERN_SHARED R mixed_derivative(R v, R x) {
    // what each lane needs, whatever its neighbours do
    const R terms = c<R>(is_double<R> ? 16 : 10) + x * c<R>(is_double<R> ? 2.9 : 2.7);
    R term = c<R>(1), sum = c<R>(1), part = c<R>(1);
    for (int k = 1; k <= static_cast<int>(largest(terms)); ++k) {
        R up = v + c<R>(k - 0.5), down = v + c<R>(k);
        R ratio = (x * x) * up / (down * (c<R>(2) * v + c<R>(k)) * c<R>(k));
        term = select(c<R>(k) <= terms, term * ratio, c<R>(0));
        sum = sum + term;
        part = part + term * (v / down);
    }
    return part / (x * sum);
}

// psi(v+1) and psi'(v+1), v >= 0
template <class R>
CURVKERN_SHARED Taylor<R, 1> digamma1p(R v) {
    constexpr int shift = is_double<R> ? 14 : 6;
    // for v <= 1 a polynomial, else shift up and use the asymptotic series (DLMF 5.11.2)
    auto unit = horner(Taylor<R, 1>::variable(v - c<R>(0.5)), tables::digamma1p);
    R sum = c<R>(0), sum2 = c<R>(0);
    for (int j = 1; j <= shift; ++j) {
        R inverse = c<R>(1) / (v + c<R>(j));
        sum = sum + inverse;
        sum2 = sum2 + inverse * inverse;
    }
    R w = v + c<R>(shift + 1);
    R inverse = c<R>(1) / w, square = inverse * inverse;
    R psi = (log(w) - sum) - (c<R>(0.5) * inverse + digamma_tail(w));
    R psi1 = sum2 + ((inverse + c<R>(0.5) * square) + trigamma_tail(w));
    auto low = v <= c<R>(1);
    return {select(low, unit.d[0], psi), select(low, unit.d[1], psi1)};
}

// sum_k t_k(v) and its derivatives in v; t_k = (x^2/4)^k / (k! (v+1)_k)
template <int N, class R>
CURVKERN_SHARED Taylor<R, N> series_jet(R v, R x, int terms) {
    R quarter_square = c<R>(0.25) * x * x;
    auto sum = Taylor<R, N>::constant(c<R>(1));
    auto term = sum;
    for (int k = 1; k <= terms; ++k) {
        auto inverse = reciprocal(Taylor<R, N>::variable(v) + c<R>(k));
        term = (quarter_square * (Scalar<R>(1) / static_cast<Scalar<R>>(k))) * (term * inverse);
        sum = sum + term;
    }
    return sum;
}

}  // namespace isa
}  // namespace curvkern::bessel
