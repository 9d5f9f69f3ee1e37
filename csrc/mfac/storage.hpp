// Elements of a window, whatever they are stored as, as registers and numbers of float64.
// Included by sources that are compiled once per instruction set.
#pragma once

#include "core/element.hpp"
#include "core/simd.hpp"
#include "mfac/mfac.hpp"

namespace curvkern::mfac {
CURVKERN_PER_ISA {

using V = VectorDouble;
inline constexpr int width = Lanes<V>::width;

typedef float Floats __attribute__((vector_size(sizeof(V) / 2)));
typedef std::uint32_t Words __attribute__((vector_size(sizeof(V) / 2)));
typedef std::uint16_t Halves __attribute__((vector_size(sizeof(V) / 4)));

template <class T>
CURVKERN_HD T load_as(const void* source) {
    T y;
    __builtin_memcpy(&y, source, sizeof(T));
    return y;
}

CURVKERN_HD V load(const double* source) {
    return load_as<V>(source);
}
CURVKERN_HD V load(const float* source) {
    return __builtin_convertvector(load_as<Floats>(source), V);
}
CURVKERN_HD V load(const Brain* source) {
#if defined(__AVX512F__)
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
    const __m256i words = _mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16);
    return (V)_mm512_cvtps_pd(_mm256_castsi256_ps(words));
#elif defined(__AVX2__)
    const __m128i halves = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(source));
    const __m128i words = _mm_slli_epi32(_mm_cvtepu16_epi32(halves), 16);
    return (V)_mm256_cvtps_pd(_mm_castsi128_ps(words));
#else
    const Words words = __builtin_convertvector(load_as<Halves>(source), Words) << 16;
    return __builtin_convertvector(__builtin_bit_cast(Floats, words), V);
#endif
}
CURVKERN_HD void store(double* target, V y) {
    __builtin_memcpy(target, &y, sizeof(V));
}

CURVKERN_HD void fetch(const Lines& lines, std::int64_t step) {
    if (step % 2 == 0 && step < 2 * lines.count)
        __builtin_prefetch(lines.from + 32 * step, 0, 2);
}

// Half of the lanes on the other half, again and again: a third of the operations that lane
// after lane takes.
CURVKERN_HD double total(V y) {
    CURVKERN_UNROLL
    for (int half = width / 2; half > 0; half /= 2) {
        Bits<V> other;
        for (int lane = 0; lane < width; ++lane) other[lane] = lane ^ half;
        y += __builtin_shuffle(y, other);
    }
    return y[0];
}

}  // namespace isa
}  // namespace curvkern::mfac
