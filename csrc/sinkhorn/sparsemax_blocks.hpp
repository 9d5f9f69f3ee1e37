// Blocks of two float64 registers: loading entries of either dtype, comparing them, moving
// those that are wanted together.
#pragma once

#include <cstdint>

#include "core/twin.hpp"

namespace curvkern::sparsemax {
CURVKERN_PER_ISA {

using Block = Twin<VectorDouble>;
inline constexpr int step = Lanes<Block>::width;
inline constexpr double infinite = __builtin_huge_val();

typedef float HalfFloat __attribute__((vector_size(register_bytes / 2)));

// One register at a time: GCC 12 copies a Twin as a whole through the stack.
CURVKERN_HD Block load(const double* source) {
    Block y;
    __builtin_memcpy(&y.a, source, sizeof(y.a));
    __builtin_memcpy(&y.b, source + step / 2, sizeof(y.b));
    return y;
}

CURVKERN_HD Block load(const float* source) {
    HalfFloat a, b;
    __builtin_memcpy(&a, source, sizeof(a));
    __builtin_memcpy(&b, source + step / 2, sizeof(b));
    return {__builtin_convertvector(a, VectorDouble), __builtin_convertvector(b, VectorDouble)};
}

CURVKERN_HD void store(double* target, Block y) {
    __builtin_memcpy(target, &y.a, sizeof(y.a));
    __builtin_memcpy(target + step / 2, &y.b, sizeof(y.b));
}

CURVKERN_HD void store(float* target, Block y) {
    const HalfFloat a = __builtin_convertvector(y.a, HalfFloat);
    const HalfFloat b = __builtin_convertvector(y.b, HalfFloat);
    __builtin_memcpy(target, &a, sizeof(a));
    __builtin_memcpy(target + step / 2, &b, sizeof(b));
}

// One bit for each entry of a register that satisfies a condition.
template <class M>
CURVKERN_HD unsigned lanes(M mask) {
#if defined(__AVX512F__)
    if constexpr (sizeof(mask[0]) == 8) return _mm512_movepi64_mask((__m512i)mask);
    return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX2__)
    if constexpr (sizeof(mask[0]) == 8) {
        return static_cast<unsigned>(_mm256_movemask_pd((__m256d)mask));
    }
    return static_cast<unsigned>(_mm256_movemask_ps((__m256)mask));
#elif defined(__SSE2__)
    if constexpr (sizeof(mask[0]) == 8)
        return static_cast<unsigned>(_mm_movemask_pd((__m128d)mask));
    return static_cast<unsigned>(_mm_movemask_ps((__m128)mask));
#else
    unsigned bits = 0;
    for (std::size_t i = 0; i < sizeof(mask) / sizeof(mask[0]); ++i) {
        bits |= static_cast<unsigned>(mask[i] != 0) << i;
    }
    return bits;
#endif
}

// The same for a block.
template <class M>
CURVKERN_HD unsigned lanes(Twin<M> mask) {
    return lanes(mask.a) | lanes(mask.b) << (step / 2);
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// Byte i of entry m: where the i-th set bit of m is, in units of 32 bits.
template <int Lanes, int Words>
struct Gather {
    std::uint64_t of[1 << Lanes];

    constexpr Gather() : of{} {
        for (unsigned m = 0; m < 1u << Lanes; ++m) {
            int place = 0;
            for (unsigned lane = 0; lane < Lanes; ++lane) {
                for (unsigned word = 0; (m >> lane & 1) != 0 && word < Words; ++word) {
                    of[m] |= std::uint64_t{lane * Words + word} << 8 * place++;
                }
            }
        }
    }

    CURVKERN_HD __m256i operator[](unsigned m) const {
        return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(of[m])));
    }
};
inline constexpr Gather<8, 1> gather_floats;
inline constexpr Gather<4, 2> gather_doubles;
#endif

// Moves the entries of a block whose bit is set to `end`, which lies before the block or at it,
// and returns the new end. Writes no further than the end of the block.
CURVKERN_HD double* keep(const double* source, unsigned set, double* end) {
#if defined(__AVX512F__)
    const Block z = load(source);
    const unsigned a = set & 0xffu, b = set >> 8;
    _mm512_storeu_pd(end, _mm512_maskz_compress_pd(static_cast<__mmask8>(a), (__m512d)z.a));
    end += __builtin_popcount(a);
    _mm512_storeu_pd(end, _mm512_maskz_compress_pd(static_cast<__mmask8>(b), (__m512d)z.b));
    return end + __builtin_popcount(b);
#elif defined(__AVX2__)
    const Block z = load(source);
    const unsigned a = set & 0xfu, b = set >> 4;
    const __m256 first = _mm256_permutevar8x32_ps((__m256)z.a, gather_doubles[a]);
    const __m256 second = _mm256_permutevar8x32_ps((__m256)z.b, gather_doubles[b]);
    _mm256_storeu_pd(end, (__m256d)first);
    end += __builtin_popcount(a);
    _mm256_storeu_pd(end, (__m256d)second);
    return end + __builtin_popcount(b);
#else
    for (; set != 0; set &= set - 1) *end++ = source[__builtin_ctz(set)];
    return end;
#endif
}

CURVKERN_HD float* keep(const float* source, unsigned set, float* end) {
#if defined(__AVX512F__)
    const __m512 z = _mm512_loadu_ps(source);
    _mm512_storeu_ps(end, _mm512_maskz_compress_ps(static_cast<__mmask16>(set), z));
    return end + __builtin_popcount(set);
#elif defined(__AVX2__)
    const __m256 z = _mm256_loadu_ps(source);
    _mm256_storeu_ps(end, _mm256_permutevar8x32_ps(z, gather_floats[set]));
    return end + __builtin_popcount(set);
#else
    for (; set != 0; set &= set - 1) *end++ = source[__builtin_ctz(set)];
    return end;
#endif
}

// Does a block reach above the floor? In the dtype of the row, before anything is converted.
CURVKERN_HD bool reaches(const double* source, double floor) {
    const Block z = load(source), at = c<Block>(floor);
    return lanes((z.a > at.a) | (z.b > at.b)) != 0;
}

CURVKERN_HD bool reaches(const float* source, float floor) {
    VectorFloat z;  // as many entries as a block
    __builtin_memcpy(&z, source, sizeof(z));
    return lanes(z > c<VectorFloat>(floor)) != 0;
}

CURVKERN_HD double total(Block x) {
    const VectorDouble y = x.a + x.b;
    double sum = y[0] + y[1];
    for (int lane = 2; lane < step / 2; lane += 2) sum += y[lane] + y[lane + 1];
    return sum;
}

}  // namespace isa
}  // namespace curvkern::sparsemax
