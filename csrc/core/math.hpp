// Branch-free elementary functions for host and device: exp, expm1, log, log1p; lgamma stands
// in gamma.hpp.
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

// (e^r - 1 - r) / r^2, |r| <= 0.35
template <class R>
CURVKERN_HD R expm1_curvature(R r) {
    if constexpr (is_double<R>) {
        constexpr double t[] = {1.0 / 2,        1.0 / 6,         1.0 / 24,
                                1.0 / 120,      1.0 / 720,       1.0 / 5040,
                                1.0 / 40320,    1.0 / 362880,    1.0 / 3628800,
                                1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};
        return horner(r, t);
    } else {
        constexpr double t[] = {1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040};
        return horner(r, t);
    }
}

// (e^r - 1) / r
template <class R>
CURVKERN_HD R expm1_quotient(R r) {
    return expm1_curvature(r) * r + c<R>(1);
}

// e^x for x where the result is normal: no clamp, no subnormal step.
template <class R>
CURVKERN_ELEMENTARY R exp_normal(R x) {
    Reduced<R> red = reduce_by_ln2(x);
    R r = red.remainder;
    R y = c<R>(1) + r * expm1_quotient(r);
    return from_bits<R>(bits(y) + (red.n << Float<R>::significand_bits));
}

// e^(hi + lo) under the same condition, |lo| far below |hi| or 1.
template <class R>
CURVKERN_ELEMENTARY R exp_normal(Pair<R> x) {
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
CURVKERN_ELEMENTARY R exp(R x) {
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
CURVKERN_ELEMENTARY R expm1(R x) {
    using F = Float<R>;
    const double low = is_double<R> ? -40.0 : -18.0;
    R clamped = select(x < c<R>(low), c<R>(low), x);
    clamped = select(clamped > c<R>(F::exp_high), c<R>(F::exp_high), clamped);
    Reduced<R> red = reduce_by_ln2(clamped);
    R r = red.remainder;
    R tail = r + (r * r) * expm1_curvature(r);  // r itself unrounded: it may cancel below
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
CURVKERN_ELEMENTARY Folded<R> fold(R x) {  // x > 0 and finite
    using F = Float<R>;
    auto tiny = x < c<R>(F::smallest_normal);
    Folded<R> part = fold_normal(select(tiny, x * c<R>(F::subnormal_scale), x));
    part.exponent = part.exponent - select(tiny, c<R>(F::subnormal_shift), c<R>(0));
    return part;
}

// (2 atanh(s) - 2 s) / s with z = s^2
template <class R>
CURVKERN_ELEMENTARY R atanh_tail(R z) {
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
CURVKERN_ELEMENTARY R log_positive(R x) {
    using F = Float<R>;
    Folded<R> part = fold(x);
    R f = part.significand - c<R>(1);
    R s = f * inverse(c<R>(2) + f);
    // log(1+f) = f - f^2/2 + s (f^2/2 + tail): the leading term is exact.
    R half_square = c<R>(0.5) * f * f;
    R correction = s * (half_square + atanh_tail(s * s));
    R e = part.exponent;
    return e * c<R>(F::ln2_hi) + (f - (half_square - (correction + e * c<R>(F::ln2_lo))));
}

// log x + hi + lo from the parts of x, with an absolute error near ulp(1/4) whatever its size.
// hi has no bits below those of ln2_hi.
template <class R>
CURVKERN_ELEMENTARY Pair<R> log_folded(Folded<R> part, double hi, double lo) {
    using F = Float<R>;
    R f = part.significand - c<R>(1);
    R s = f * inverse(c<R>(2) + f);
    R half_square = c<R>(0.5) * f * f;
    R correction = s * (half_square + atanh_tail(s * s));
    R e = part.exponent;
    Pair<R> y = two_sum(e * c<R>(F::ln2_hi) + c<R>(hi), f);
    correction = correction + (e * c<R>(F::ln2_lo) + c<R>(lo));
    return fast_two_sum(y.hi, y.lo - (half_square - correction));
}

// log(2^extra x) for x > 0 and finite
template <class R>
CURVKERN_ELEMENTARY Pair<R> log_split(R x, R extra) {
    Folded<R> part = fold(x);
    part.exponent = part.exponent + extra;
    return log_folded(part, 0.0, 0.0);
}

template <class R>
CURVKERN_ELEMENTARY R log(R x) {
    R y = log_positive(x);
    y = select(x == infinity<R>(), x, y);
    y = select(x == c<R>(0), -infinity<R>(), y);
    return select(x >= c<R>(0), y, not_a_number<R>());
}

template <class R>
CURVKERN_ELEMENTARY R log1p(R x) {
    R u = c<R>(1) + x;
    R y = log(u) + (x - (u - c<R>(1))) / u;
    y = select(u == c<R>(0), -infinity<R>(), y);
    return select(x == infinity<R>(), x, y);
}

// ---- trigonometry -------------------------------------------------------------------------

template <class R>
struct CosSin {
    R cos, sin;
};

// cos(pi v) and sin(pi v) for |v| < 2^20, to a few ulp of 1.
template <class R>
CURVKERN_ELEMENTARY CosSin<R> cos_sin_pi(R v) {
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
