// Branch-free elementary functions for host and device: exp, expm1, log, log1p, lgamma.
//
//   function      largest error (ulp, float64 / float32)   valid for
//   exp           1.0 / 1.0      every input; exp(-inf) = 0, subnormal results kept
//   expm1         2.0 / 2.0      every input
//   log           1.0 / 1.0      every input; log(0) = -inf, log(x<0) = nan, subnormals in
//   log1p         2.0 / 2.0      every input; log1p(-1) = -inf
//   lgamma        2.0 / 2.0      x > 0, relative to max(1, |lgamma(x)|)
// tests/test_math.py reads these numbers from this table and holds the functions to them.
//
// exp: Cody-Waite reduction, Taylor series on |r| <= ln(2)/2. log: fold the significand into
// [sqrt(1/2), sqrt(2)), then 2 atanh(s) with s = (m-1)/(m+1), |s| <= 0.1716.
#pragma once

#include "dd.hpp"

namespace curvkern {
CURVKERN_PER_ISA {

inline constexpr double pi = 3.14159265358979323846;
inline constexpr double half_log_2pi = 0.91893853320467274178;

template <class R>
struct Float;  // layout of the IEEE format of R's elements
template <class R>
    requires is_double<R>
struct Float<R> {
    static constexpr int significand_bits = 52, bias = 1023;
    static constexpr std::uint64_t one = 0x3ff0000000000000u;
    static constexpr std::uint64_t sqrt_half = 0x3fe6a09e667f3bcdu;
    static constexpr double smallest_normal = 2.2250738585072014e-308;
    static constexpr double subnormal_scale = 0x1p54, subnormal_shift = 54;
    static constexpr double round_magic = 0x1.8p52, integer_magic = 0x1p52;
    static constexpr double ln2_hi = 0x1.62e42feep-1, ln2_lo = 0x1.a39ef35793c76p-33;
    static constexpr double exp_low = -746.0, exp_high = 710.0;
};
template <class R>
    requires(!is_double<R>)
struct Float<R> {
    static constexpr int significand_bits = 23, bias = 127;
    static constexpr std::uint32_t one = 0x3f800000u;
    static constexpr std::uint32_t sqrt_half = 0x3f3504f3u;
    static constexpr double smallest_normal = 1.17549435e-38;
    static constexpr double subnormal_scale = 0x1p25, subnormal_shift = 25;
    static constexpr double round_magic = 0x1.8p23, integer_magic = 0x1p23;
    static constexpr double ln2_hi = 0x1.62ep-1, ln2_lo = 0x1.0bfbe8p-15;
    static constexpr double exp_low = -104.0, exp_high = 89.0;
};

template <class R>
CURVKERN_HD R infinity() {
    return c<R>(__builtin_huge_val());
}

template <class R>
CURVKERN_HD R not_a_number() {
    return c<R>(__builtin_nan(""));
}

// sum_k table[k] x^k
template <int N, class R>
CURVKERN_HD R horner(R x, const double (&table)[N]) {
    R sum = c<R>(table[N - 1]);
    CURVKERN_UNROLL
    for (int k = N - 2; k >= 0; --k) sum = sum * x + c<R>(table[k]);
    return sum;
}

// The same with the constant term kept beyond R's precision: float32 alone profits, its tables
// being double.
template <int N, class R>
CURVKERN_HD R horner_exact(R x, const double (&table)[N]) {
    if constexpr (is_double<R>) return horner(x, table);
    R sum = c<R>(table[N - 1]);
    CURVKERN_UNROLL
    for (int k = N - 2; k >= 1; --k) sum = sum * x + c<R>(table[k]);
    const float leading = static_cast<float>(table[0]);
    return c<R>(leading) + (sum * x + c<R>(table[0] - leading));
}

// ---- exp ----------------------------------------------------------------------------------

template <class R>
struct Reduced {
    R remainder;  // |r| <= ln(2)/2
    Bits<R> n;    // low bits: the integer n, x = n ln 2 + r
    R n_as_number;
};

template <class R>
CURVKERN_HD Reduced<R> reduce_by_ln2(R x) {
    using F = Float<R>;
    R shifted = x * c<R>(1.4426950408889634) + c<R>(F::round_magic);
    R n = shifted - c<R>(F::round_magic);
    return {(x - n * c<R>(F::ln2_hi)) - n * c<R>(F::ln2_lo), bits(shifted), n};
}

template <class R>
CURVKERN_HD R power_of_two(Bits<R> n) {  // 2^n, n within the normal exponents
    return from_bits<R>(Float<R>::one + (n << Float<R>::significand_bits));
}

// (e^r - 1) / r, |r| <= 0.35
template <class R>
CURVKERN_HD R expm1_quotient(R r) {
    if constexpr (is_double<R>) {
        constexpr double t[] = {1.0,
                                1.0 / 2,
                                1.0 / 6,
                                1.0 / 24,
                                1.0 / 120,
                                1.0 / 720,
                                1.0 / 5040,
                                1.0 / 40320,
                                1.0 / 362880,
                                1.0 / 3628800,
                                1.0 / 39916800,
                                1.0 / 479001600,
                                1.0 / 6227020800};
        return horner(r, t);
    } else {
        constexpr double t[] = {1.0,       1.0 / 2,   1.0 / 6,   1.0 / 24,
                                1.0 / 120, 1.0 / 720, 1.0 / 5040};
        return horner(r, t);
    }
}

// e^x for x where the result is normal: no clamp, no subnormal step.
template <class R>
CURVKERN_HD R exp_normal(R x) {
    Reduced<R> red = reduce_by_ln2(x);
    R r = red.remainder;
    R y = c<R>(1) + r * expm1_quotient(r);
    return from_bits<R>(bits(y) + (red.n << Float<R>::significand_bits));
}

// e^(hi + lo) under the same condition, |lo| far below |hi| or 1.
template <class R>
CURVKERN_HD R exp_normal(Pair<R> x) {
    Reduced<R> red = reduce_by_ln2(x.hi);
    R r = red.remainder + x.lo;
    R y = c<R>(1) + r * expm1_quotient(r);
    return from_bits<R>(bits(y) + (red.n << Float<R>::significand_bits));
}

// e^(hi + lo) - 1 for |hi| < 0.34
template <class R>
CURVKERN_HD R expm1_reduced(Pair<R> x) {
    R r = x.hi + x.lo;
    return r * expm1_quotient(r);
}

template <class R>
CURVKERN_HD R exp(R x) {
    using F = Float<R>;
    R clamped = select(x < c<R>(F::exp_low), c<R>(F::exp_low), x);
    clamped = select(clamped > c<R>(F::exp_high), c<R>(F::exp_high), clamped);  // NaN stays
    Reduced<R> red = reduce_by_ln2(clamped);
    R y = c<R>(1) + red.remainder * expm1_quotient(red.remainder);
    // 2^n in two factors, so that only the last product may round into the subnormals.
    R half_shifted = red.n_as_number * c<R>(0.5) + c<R>(F::round_magic);
    Bits<R> n1 = bits(half_shifted), n2 = red.n - n1;
    return y * power_of_two<R>(n1) * power_of_two<R>(n2 + bits(c<R>(F::round_magic)));
}

template <class R>
CURVKERN_HD R expm1(R x) {
    using F = Float<R>;
    const double low = is_double<R> ? -40.0 : -18.0;
    R clamped = select(x < c<R>(low), c<R>(low), x);
    clamped = select(clamped > c<R>(F::exp_high), c<R>(F::exp_high), clamped);
    Reduced<R> red = reduce_by_ln2(clamped);
    R r = red.remainder;
    R tail = r * expm1_quotient(r);
    R scale =
        power_of_two<R>(red.n - 1u);  // half of 2^n: n may be one past the largest exponent
    R y = c<R>(2) * (scale * tail + (scale - c<R>(0.5)));
    return select(x == c<R>(0), x, y);
}

// ---- log ----------------------------------------------------------------------------------

template <class R>
struct Folded {
    R significand,
        exponent;  // x = significand * 2^exponent, significand in [sqrt(1/2), sqrt(2))
};

template <class R>
CURVKERN_HD Folded<R> fold_normal(R x) {  // x > 0, finite and normal
    using F = Float<R>;
    Bits<R> biased = (bits(x) + (F::one - F::sqrt_half)) >> F::significand_bits;
    R exponent =
        from_bits<R>(biased | bits(c<R>(F::integer_magic))) - c<R>(F::integer_magic + F::bias);
    return {from_bits<R>(bits(x) - (biased << F::significand_bits) + F::one), exponent};
}

template <class R>
CURVKERN_HD Folded<R> fold(R x) {  // x > 0 and finite
    using F = Float<R>;
    auto tiny = x < c<R>(F::smallest_normal);
    Folded<R> part = fold_normal(select(tiny, x * c<R>(F::subnormal_scale), x));
    part.exponent = part.exponent - select(tiny, c<R>(F::subnormal_shift), c<R>(0));
    return part;
}

// (2 atanh(s) - 2 s) / s with z = s^2
template <class R>
CURVKERN_HD R atanh_tail(R z) {
    if constexpr (is_double<R>) {
        constexpr double t[] = {0.0,      2.0 / 3,  2.0 / 5,  2.0 / 7,  2.0 / 9, 2.0 / 11,
                                2.0 / 13, 2.0 / 15, 2.0 / 17, 2.0 / 19, 2.0 / 21};
        return horner(z, t);
    } else {
        constexpr double t[] = {0.0, 2.0 / 3, 2.0 / 5, 2.0 / 7, 2.0 / 9, 2.0 / 11};
        return horner(z, t);
    }
}

// log x for x > 0 and finite.
template <class R>
CURVKERN_HD R log_positive(R x) {
    using F = Float<R>;
    Folded<R> part = fold(x);
    R f = part.significand - c<R>(1);
    R s = f / (c<R>(2) + f);
    // log(1+f) = f - f^2/2 + s (f^2/2 + tail): the leading term is exact.
    R half_square = c<R>(0.5) * f * f;
    R correction = s * (half_square + atanh_tail(s * s));
    R e = part.exponent;
    return e * c<R>(F::ln2_hi) + (f - (half_square - (correction + e * c<R>(F::ln2_lo))));
}

// log x + hi + lo from the parts of x, with an absolute error near ulp(1/4) whatever its size.
// hi has no bits below those of ln2_hi.
template <class R>
CURVKERN_HD Pair<R> log_folded(Folded<R> part, double hi, double lo) {
    using F = Float<R>;
    R f = part.significand - c<R>(1);
    R s = f / (c<R>(2) + f);
    R half_square = c<R>(0.5) * f * f;
    R correction = s * (half_square + atanh_tail(s * s));
    R e = part.exponent;
    Pair<R> y = two_sum(e * c<R>(F::ln2_hi) + c<R>(hi), f);
    correction = correction + (e * c<R>(F::ln2_lo) + c<R>(lo));
    return fast_two_sum(y.hi, y.lo - (half_square - correction));
}

// log(2^extra x) for x > 0 and finite
template <class R>
CURVKERN_HD Pair<R> log_split(R x, R extra) {
    Folded<R> part = fold(x);
    part.exponent = part.exponent + extra;
    return log_folded(part, 0.0, 0.0);
}

template <class R>
CURVKERN_HD R log(R x) {
    R y = log_positive(x);
    y = select(x == infinity<R>(), x, y);
    y = select(x == c<R>(0), -infinity<R>(), y);
    return select(x >= c<R>(0), y, not_a_number<R>());
}

template <class R>
CURVKERN_HD R log1p(R x) {
    R u = c<R>(1) + x;
    R y = log(u) + (x - (u - c<R>(1))) / u;
    y = select(u == c<R>(0), -infinity<R>(), y);
    return select(x == infinity<R>(), x, y);
}

// ---- log to twice the precision -------------------------------------------------------------

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
CURVKERN_HD Pair<R> log_from_atanh(Pair<R> s, R exponent) {
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

// log(numerator / denominator) to 2^-60 (2^-31), where the quotient is a normal number: the
// fold of the quotient scales the numerator to the size of the denominator, log = 2 atanh of
// difference over sum, and what rounding left of that quotient is carried along. The pair comes
// unnormalised: lo may reach 2^-45 (2^-20) exponents.
template <class R>
CURVKERN_HD Pair<R> log_quotient(Pair<R> numerator, R denominator) {
    using F = Float<R>;
    R q = numerator.hi / denominator;
    Bits<R> biased = (bits(q) + (F::one - F::sqrt_half)) >> F::significand_bits;
    R e =
        from_bits<R>(biased | bits(c<R>(F::integer_magic))) - c<R>(F::integer_magic + F::bias);
    R scale = from_bits<R>((2 * F::bias - biased) << F::significand_bits);
    Pair<R> below = fast_two_sum(numerator.hi * scale - denominator, numerator.lo * scale);
    Pair<R> above = fast_two_sum(denominator + denominator, below.hi);
    above.lo = above.lo + below.lo;
    Pair<R> s = div(below, above);
    R z = s.hi * s.hi;
    Pair<R> y = fast_two_sum(s.hi + s.hi, s.hi * atanh_tail(z));
    y.lo = y.lo + c<R>(2) * (s.lo + s.lo * z);
    // the leading part of ln 2 times the exponent is exact
    const double l1 = is_double<R> ? 0x1.62e42fefa38p-1 : 0x1.62e4p-1;
    const double l2 = is_double<R> ? 0x1.ef35793c7673p-45 : 0x1.7f7d1cp-20;
    Pair<R> whole = fast_two_sum(e * c<R>(l1), y.hi);
    return {whole.hi, whole.lo + (y.lo + e * c<R>(l2))};
}

// log(2^extra numerator / denominator), both positive and finite; no overflow on the way.
template <class R>
CURVKERN_HD Pair<R> log_ratio(Pair<R> numerator, R denominator, R extra) {
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
CURVKERN_HD Pair<R> log_pair(Pair<R> x) {  // x > 0, finite and normal
    Folded<R> part = fold(x.hi);
    R lo = fold_rest(x, part.significand);
    Pair<R> below = fast_two_sum(part.significand - c<R>(1), lo);
    Pair<R> above = two_sum(part.significand, c<R>(1));
    above.lo = above.lo + lo;
    return log_from_atanh(div(below, above), part.exponent);
}

// ---- gamma ----------------------------------------------------------------------------------

// log Gamma(w) - [(w - 1/2) log w - w + log(2 pi)/2] = 1/(12 w) - 1/(360 w^3) + .., Stirling's
// series (DLMF 5.11.1), w >= 11 (5)
template <class R>
CURVKERN_HD R stirling_tail(R w) {
    constexpr double t[] = {1.0 / 12,   -1.0 / 360,      1.0 / 1260, -1.0 / 1680,
                            1.0 / 1188, -691.0 / 360360, 1.0 / 156};
    R inverse = c<R>(1) / w;
    return inverse * horner(inverse * inverse, t);
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

// log Gamma(v + 1), v >= 0, as a pair. Shift up by a product, then Stirling.
template <class R>
CURVKERN_SHARED Pair<R> lgamma1p_pair(R v) {
    constexpr int shift = is_double<R> ? 15 : 7;
    auto large = v > c<R>(shift);
    R base = select(large, c<R>(0), v);
    Pair<R> product = two_sum(base, c<R>(1));
    for (int j = 2; j <= shift; ++j) product = mul(product, two_sum(base, c<R>(j)));
    Pair<R> w = two_sum(v, select(large, c<R>(1), c<R>(shift + 1)));
    Pair<R> log_w = log_pair(w);
    Pair<R> y = mul(add(w, c<R>(-0.5)), log_w);
    y = add(y, negate(w));
    const double lo = is_double<R> ? -3.8782941580672414e-17 : 1.563417713631158e-08;
    y = add(y, Pair<R>{c<R>(half_log_2pi), c<R>(lo)});
    y = add(y, stirling_tail(w.hi));
    Pair<R> shifted = add(y, negate(log_pair(product)));
    return {select(large, y.hi, shifted.hi), select(large, y.lo, shifted.lo)};
}

template <class R>
CURVKERN_HD R lgamma(R x) {  // x > 0
    // Gamma(x) = Gamma(x + 1) / x
    Pair<R> y = add(lgamma1p_pair(x), negate(log_pair(Pair<R>{x, c<R>(0)})));
    return select(x == infinity<R>(), x, y.hi + y.lo);
}

// ---- trigonometry -------------------------------------------------------------------------

template <class R>
struct CosSin {
    R cos, sin;
};

// cos(pi v) and sin(pi v) for |v| < 2^20, to a few ulp of 1.
template <class R>
CURVKERN_HD CosSin<R> cos_sin_pi(R v) {
    using F = Float<R>;
    R n = (v + c<R>(F::round_magic)) - c<R>(F::round_magic);
    R half = c<R>(0.5) * n;
    R odd = half - ((half + c<R>(F::round_magic)) - c<R>(F::round_magic));  // 0 or +-1/2
    R sign = c<R>(1) - c<R>(8) * odd * odd;
    R angle = (v - n) * c<R>(pi), square = angle * angle;
    constexpr double even[] = {1.0,
                               -1.0 / 2,
                               1.0 / 24,
                               -1.0 / 720,
                               1.0 / 40320,
                               -1.0 / 3628800,
                               1.0 / 479001600,
                               -1.0 / 87178291200,
                               1.0 / 20922789888000,
                               -1.0 / 6402373705728000,
                               1.0 / 2432902008176640000};
    constexpr double odd_terms[] = {1.0,
                                    -1.0 / 6,
                                    1.0 / 120,
                                    -1.0 / 5040,
                                    1.0 / 362880,
                                    -1.0 / 39916800,
                                    1.0 / 6227020800,
                                    -1.0 / 1307674368000,
                                    1.0 / 355687428096000,
                                    -1.0 / 121645100408832000};
    return {sign * horner(square, even), sign * (angle * horner(square, odd_terms))};
}

}  // namespace isa
}  // namespace curvkern
