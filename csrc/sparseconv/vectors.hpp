// Registers of float64 and float32, loaded from and stored to rows whose last register is a
// part, never beyond their end. bfloat16 is computed in float32. Compiled once per instruction
// set.
#pragma once

#include "core/math.hpp"
#include "hutchinson/storage.hpp"

namespace curvkern::sparseconv {
CURVKERN_PER_ISA {

template <class S>
struct Computed {
    using R = VectorFloat;
    using T = float;
};
template <>
struct Computed<double> {
    using R = VectorDouble;
    using T = double;
};
template <class S>
using Register = typename Computed<S>::R;
template <class S>
using Wide = typename Computed<S>::T;
template <class S>
inline constexpr int lanes_of = Lanes<Register<S>>::width;

// x in all lanes, as one load: GCC adds to a zero where R{} + x is written, as that turns -0 to
// 0.
CURVKERN_HD VectorDouble spread(const double* x) {
#if defined(__AVX512F__)
    return (VectorDouble)_mm512_set1_pd(*x);
#elif defined(__AVX2__)
    return (VectorDouble)_mm256_set1_pd(*x);
#elif defined(__x86_64__)
    return (VectorDouble)_mm_set1_pd(*x);
#else
    return VectorDouble{} + *x;
#endif
}
CURVKERN_HD VectorFloat spread(const float* x) {
#if defined(__AVX512F__)
    return (VectorFloat)_mm512_set1_ps(*x);
#elif defined(__AVX2__)
    return (VectorFloat)_mm256_set1_ps(*x);
#elif defined(__x86_64__)
    return (VectorFloat)_mm_set1_ps(*x);
#else
    return VectorFloat{} + *x;
#endif
}
CURVKERN_HD VectorFloat spread(const Brain* x) {
    return VectorFloat{} + widened(*x);
}

template <class S>
CURVKERN_HD S narrowed(Wide<S> x) {
    S y;
    hutchinson::store(&y, Register<S>{} + x, 1);
    return y;
}

// A whole register from any address.
template <class S>
CURVKERN_HD Register<S> load(const S* from) {
    return hutchinson::load<Register<S>>(from);
}
template <class S>
CURVKERN_HD void store(S* to, Register<S> y) {
    hutchinson::store(to, y);
}

// The first `count` lanes, fewer than all; the others are zero.
template <class S>
CURVKERN_HD Register<S> load_part(const S* from, std::int64_t count) {
    return hutchinson::load<Register<S>>(from, count);
}
template <class S>
CURVKERN_HD void store_part(S* to, Register<S> y, std::int64_t count) {
    hutchinson::store(to, y, count);
}
#if defined(__AVX512F__)
CURVKERN_HD __mmask16 first_lanes(std::int64_t count) {
    return static_cast<__mmask16>((1U << count) - 1);
}
CURVKERN_HD VectorFloat load_part(const float* from, std::int64_t count) {
    return (VectorFloat)_mm512_maskz_loadu_ps(first_lanes(count), from);
}
CURVKERN_HD VectorDouble load_part(const double* from, std::int64_t count) {
    return (VectorDouble)_mm512_maskz_loadu_pd(static_cast<__mmask8>(first_lanes(count)), from);
}
CURVKERN_HD void store_part(float* to, VectorFloat y, std::int64_t count) {
    _mm512_mask_storeu_ps(to, first_lanes(count), (__m512)y);
}
CURVKERN_HD void store_part(double* to, VectorDouble y, std::int64_t count) {
    _mm512_mask_storeu_pd(to, static_cast<__mmask8>(first_lanes(count)), (__m512d)y);
}
#elif defined(__AVX2__)
CURVKERN_HD __m256i first_lanes(std::int64_t count) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane);
}
CURVKERN_HD VectorFloat load_part(const float* from, std::int64_t count) {
    return (VectorFloat)_mm256_maskload_ps(from, first_lanes(count));
}
CURVKERN_HD void store_part(float* to, VectorFloat y, std::int64_t count) {
    _mm256_maskstore_ps(to, first_lanes(count), (__m256)y);
}
#endif

// visit(i, whole) for the registers that `count` elements fill, the last perhaps in part.
template <class S, class Visit>
CURVKERN_HD void for_lanes(std::int64_t count, Visit visit) {
    constexpr std::int64_t width = lanes_of<S>;
    std::int64_t i = 0;
    for (; i + width <= count; i += width) visit(i, width);
    if (i < count) visit(i, count - i);
}
template <class S>
CURVKERN_HD Register<S> load(const S* from, std::int64_t count) {
    return count == lanes_of<S> ? load(from) : load_part(from, count);
}
template <class S>
CURVKERN_HD void store(S* to, Register<S> y, std::int64_t count) {
    if (count == lanes_of<S>) {
        store(to, y);
    } else {
        store_part(to, y, count);
    }
}

}  // namespace isa
}  // namespace curvkern::sparseconv
