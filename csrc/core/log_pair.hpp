// Logarithms to about twice the precision, and of quotients that need it only in part.
#pragma once

#include "math.hpp"

namespace curvkern {
CURVKERN_PER_ISA {

// sum_{k < N} low[k] z^k + z^N sum
template <int N, class R>
CURVKERN_HD Pair<R> pair_series(Pair<R> z, Pair<R> sum, const double (&low)[N][2]) {
    CURVKERN_UNROLL
    for (int k = N - 1; k >= 0; --k) {
        Pair<R> p = two_prod(z.hi, sum.hi);
        p.lo = p.lo + (z.hi * sum.lo + z.lo * sum.hi);
        sum = fast_two_sum(c<R>(low[k][0]), p.hi);
        sum.lo = sum.lo + (p.lo + c<R>(low[k][1]));
    }
    return sum;
}

// 2 atanh(s) + exponent ln 2, |s| <= 0.18, to 2^-100 (2^-46)
template <class R>
CURVKERN_ELEMENTARY Pair<R> log_from_atanh(Pair<R> s, R exponent) {
    Pair<R> z = mul(s, s);
    // sum_k z^k / (2k+1), the high powers in working precision, the low ones as pairs
    Pair<R> sum;
    if constexpr (is_double<R>) {
        constexpr double high[] = {1.0 / 21, 1.0 / 23, 1.0 / 25, 1.0 / 27, 1.0 / 29, 1.0 / 31,
                                   1.0 / 33, 1.0 / 35, 1.0 / 37, 1.0 / 39, 1.0 / 41};
        constexpr double low[][2] = {{1.0, 0.0},
                                     {1.0 / 3, 1.850371707708594e-17},
                                     {1.0 / 5, -1.1102230246251566e-17},
                                     {1.0 / 7, 7.93016446160826e-18},
                                     {1.0 / 9, 6.1679056923619804e-18},
                                     {1.0 / 11, -2.523234146875356e-18},
                                     {1.0 / 13, -4.270088556250602e-18},
                                     {1.0 / 15, 9.251858538542971e-19},
                                     {1.0 / 17, 8.163404592832033e-19},
                                     {1.0 / 19, 2.921639538487254e-18}};
        sum = {horner(z.hi, high), c<R>(0)};
        sum = pair_series(z, sum, low);
    } else {
        constexpr double high[] = {1.0 / 11, 1.0 / 13, 1.0 / 15, 1.0 / 17, 1.0 / 19};
        constexpr double low[][2] = {{1.0, 0.0},
                                     {0.3333333432674408, -9.934107758624577e-09},
                                     {0.20000000298023224, -2.9802322831784522e-09},
                                     {0.1428571492433548, -6.38621200366174e-09},
                                     {0.1111111119389534, -8.278422947149977e-10}};
        sum = {horner(z.hi, high), c<R>(0)};
        sum = pair_series(z, sum, low);
    }
    Pair<R> y = mul(s, sum);
    y = {y.hi + y.hi, y.lo + y.lo};
    // exponent * ln 2 in three parts, the first exact
    const double l1 = is_double<R> ? 0x1.62e42fefa38p-1 : 0x1.62e4p-1;
    const double l2 = is_double<R> ? 0x1.ef35793c7673p-45 : 0x1.7f7d1cp-20;
    const double l3 = is_double<R> ? 0x1.f97b57a079a19p-103 : 0x1.ef357ap-45;
    Pair<R> small = two_prod(exponent, c<R>(l2));
    small.lo = small.lo + exponent * c<R>(l3);
    return add(add(Pair<R>{exponent * c<R>(l1), c<R>(0)}, y), small);
}

// x.lo scaled like x.hi was by fold().
template <class R>
CURVKERN_HD R fold_rest(Pair<R> x, R significand) {
    return x.lo * from_bits<R>(Float<R>::one + bits(significand) - bits(x.hi));
}

// log(2^extra numerator / denominator) to 2^-60 (2^-31), where the quotient is a normal number:
// the fold of the quotient scales the numerator to the size of the denominator, log = 2 atanh
// of difference over sum, and what rounding left of that quotient is carried along. The pair
// comes unnormalised: lo may reach 2^-45 (2^-20) exponents.
template <class R>
CURVKERN_ELEMENTARY Pair<R> log_quotient(Pair<R> numerator, R denominator, R extra = R{}) {
    using F = Float<R>;
    R q = numerator.hi * rough_inverse(denominator);
    Bits<R> biased = (bits(q) + (F::one - F::sqrt_half)) >> F::significand_bits;
    R e =
        from_bits<R>(biased | bits(c<R>(F::integer_magic))) - c<R>(F::integer_magic + F::bias);
    R scale = from_bits<R>((2 * F::bias - biased) << F::significand_bits);
    Pair<R> below = fast_two_sum(numerator.hi * scale - denominator, numerator.lo * scale);
    Pair<R> above = fast_two_sum(denominator + denominator, below.hi);
    above.lo = above.lo + below.lo;
    Pair<R> s = div(below, above, inverse(above.hi));
    R z = s.hi * s.hi;
    Pair<R> y = fast_two_sum(s.hi + s.hi, s.hi * atanh_tail(z));
    y.lo = y.lo + c<R>(2) * (s.lo + s.lo * z);
    e = e + extra;
    // the leading part of ln 2 times the exponent is exact
    const double l1 = is_double<R> ? 0x1.62e42fefa38p-1 : 0x1.62e4p-1;
    const double l2 = is_double<R> ? 0x1.ef35793c7673p-45 : 0x1.7f7d1cp-20;
    Pair<R> whole = fast_two_sum(e * c<R>(l1), y.hi);
    return {whole.hi, whole.lo + (y.lo + e * c<R>(l2))};
}

// log(2^extra numerator / denominator), both positive and finite; no overflow on the way.
template <class R>
CURVKERN_ELEMENTARY Pair<R> log_ratio(Pair<R> numerator, R denominator, R extra) {
    Folded<R> n = fold(numerator.hi), d = fold(denominator);
    R lo = fold_rest(numerator, n.significand);
    R exponent = (n.exponent - d.exponent) + extra;
    auto big = n.significand > d.significand * c<R>(1.4142135623730951);
    auto small = n.significand < d.significand * c<R>(0.7071067811865476);
    R scale = select(big, c<R>(0.5), select(small, c<R>(2), c<R>(1)));
    exponent = exponent + select(big, c<R>(1), select(small, c<R>(-1), c<R>(0)));
    R top = n.significand * scale;
    lo = lo * scale;
    // atanh argument (n - d)/(n + d); the difference of the leading parts is exact
    Pair<R> below = fast_two_sum(top - d.significand, lo);
    Pair<R> above = two_sum(top, d.significand);
    above.lo = above.lo + lo;
    return log_from_atanh(div(below, above), exponent);
}

template <class R>
CURVKERN_ELEMENTARY Pair<R> log_pair(Pair<R> x) {  // x > 0, finite and normal
    Folded<R> part = fold(x.hi);
    R lo = fold_rest(x, part.significand);
    Pair<R> below = fast_two_sum(part.significand - c<R>(1), lo);
    Pair<R> above = two_sum(part.significand, c<R>(1));
    above.lo = above.lo + lo;
    return log_from_atanh(div(below, above), part.exponent);
}

}  // namespace isa
}  // namespace curvkern
