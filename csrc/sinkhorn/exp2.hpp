// 2^t for the entries of a transport plan.
//
//   function       largest relative error (float64 / float32)   valid for
//   exp2_bounded   3e-16 / 2e-7                                  lowest <= t <= highest
//
// t = n + r with n an integer and |r| <= 1/2; 2^r by the polynomial of least relative error
// (Remez).
// The bounds keep results normal: 2^lowest is far below whatever a sum of entries resolves, and
// far above the subnormal numbers that the product with a weight might otherwise reach.
#pragma once

#include "core/math.hpp"

namespace curvkern::sinkhorn {
CURVKERN_PER_ISA {

template <class R>
struct Exponents {
    static constexpr double lowest = is_double<R> ? -900 : -100;
    static constexpr double highest = is_double<R> ? 1020 : 124;
};

// 2^r, |r| <= 1/2
template <class R>
CURVKERN_HD R exp2_polynomial(R r) {
    if constexpr (is_double<R>) {
        constexpr double t[] = {
            1.0000000000000000662,     0.69314718055994977574,   0.24022650695908767546,
            0.055504108664458815709,   0.0096181291080345922049, 0.0013333558228562905944,
            0.00015403529961146332208, 0.0000152526581161348195, 1.3215662828649157032e-6,
            1.0208537944351327475e-7,  7.0372794991545596707e-9};
        return horner(r, t);
    } else {
        constexpr double t[] = {1.0000000716594364674,  0.69314696709030672396,
                                0.24022119718415498819, 0.055507132217342410736,
                                0.0096755415291085977,  0.0013276488968641266923};
        return horner(r, t);
    }
}

template <class R>
CURVKERN_HD R scale_by_power(R y, Bits<R> n) {
    return from_bits<R>(bits(y) + (n << Float<R>::significand_bits));
}

template <class R>
CURVKERN_HD R exp2_bounded(R t) {
    const R shifted = t + c<R>(Float<R>::round_magic);
    const R r = t - (shifted - c<R>(Float<R>::round_magic));
    return scale_by_power(exp2_polynomial(r), bits(shifted));
}

// t within [lowest, highest]; NaN becomes `lowest`. One instruction a bound: the compiler makes
// two of a selection.
template <class R>
    requires(!is_twin<R>)
CURVKERN_HD R bounded(R t, R lowest, R highest) {
    const R above = select(t > lowest, t, lowest);
    return select(above < highest, above, highest);
}

#if defined(__x86_64__) && !defined(__CUDACC__)
#if defined(__AVX512F__)
#define CURVKERN_MM(name) _mm512_##name
typedef __m512d RegisterDouble;
typedef __m512 RegisterFloat;
#elif defined(__AVX2__)
#define CURVKERN_MM(name) _mm256_##name
typedef __m256d RegisterDouble;
typedef __m256 RegisterFloat;
#else
#define CURVKERN_MM(name) _mm_##name
typedef __m128d RegisterDouble;
typedef __m128 RegisterFloat;
#endif
template <>
CURVKERN_HD VectorDouble bounded(VectorDouble t, VectorDouble lowest, VectorDouble highest) {
    const RegisterDouble above = CURVKERN_MM(max_pd)((RegisterDouble)t, (RegisterDouble)lowest);
    return (VectorDouble)CURVKERN_MM(min_pd)(above, (RegisterDouble)highest);
}
template <>
CURVKERN_HD VectorFloat bounded(VectorFloat t, VectorFloat lowest, VectorFloat highest) {
    const RegisterFloat above = CURVKERN_MM(max_ps)((RegisterFloat)t, (RegisterFloat)lowest);
    return (VectorFloat)CURVKERN_MM(min_ps)(above, (RegisterFloat)highest);
}
#undef CURVKERN_MM

template <class V>
CURVKERN_HD Twin<V> bounded(Twin<V> t, Twin<V> lowest, Twin<V> highest) {
    return {bounded(t.a, lowest.a, highest.a), bounded(t.b, lowest.b, highest.b)};
}
#endif

// For any t; a result beyond the bounds is that of the bound, and NaN gives the smallest.
template <class R>
CURVKERN_HD R exp2_clamped(R t) {
    return exp2_bounded(bounded(t, c<R>(Exponents<R>::lowest), c<R>(Exponents<R>::highest)));
}

// The same up to 2^866, e^600: so large are entries only between two points without mass, and
// their products with costs and vectors must stay finite there, as in ot/_kernel.py.
template <class R>
CURVKERN_HD R exp2_entry(R t) {
    return exp2_bounded(bounded(t, c<R>(Exponents<R>::lowest), c<R>(866)));
}

template <class R>
CURVKERN_HD R log2_positive(R x) {
    return log_positive(x) * c<R>(1.4426950408889634);
}

}  // namespace isa
}  // namespace curvkern::sinkhorn
