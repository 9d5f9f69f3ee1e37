// Rows of an image copied to an aligned buffer with their padding, columns that are a stride
// apart next to each other. Compiled once per instruction set.
#pragma once

#include "sparseconv/vectors.hpp"

namespace curvkern::sparseconv {
CURVKERN_PER_ISA {

// Column j of phase p, 0 <= j < columns, is pixel p + j stride - left of a row of `width`.
struct PaddedRow {
    std::int64_t width, left, stride, columns;
};

// Elements of a row two apart: x[0], x[2], .. to `even`, x[1], x[3], .. to `odd`; returns how
// many of each it has seen to.
template <class S>
CURVKERN_HD std::int64_t split(const S*, std::int64_t, Wide<S>*, Wide<S>*) {
    return 0;
}
#if defined(__AVX512F__)
CURVKERN_HD std::int64_t split(const float* x, std::int64_t pairs, float* even, float* odd) {
    const __m512i evens =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odds = _mm512_add_epi32(evens, _mm512_set1_epi32(1));
    std::int64_t j = 0;
    for (; j < pairs; j += 16) {
        const std::int64_t left = 2 * (pairs - j);
        const __m512 low = (__m512)load(x + 2 * j, left < 16 ? left : 16);
        const __m512 high = left <= 16
                                ? _mm512_setzero_ps()
                                : (__m512)load(x + 2 * j + 16, left < 32 ? left - 16 : 16);
        const std::int64_t some = pairs - j < 16 ? pairs - j : 16;
        store(even + j, (VectorFloat)_mm512_permutex2var_ps(low, evens, high), some);
        store(odd + j, (VectorFloat)_mm512_permutex2var_ps(low, odds, high), some);
    }
    return pairs;
}
#elif defined(__AVX2__)
CURVKERN_HD std::int64_t split(const float* x, std::int64_t pairs, float* even, float* odd) {
    std::int64_t j = 0;
    for (; j + 8 <= pairs; j += 8) {
        const auto low = (__m256)load(x + 2 * j), high = (__m256)load(x + 2 * j + 8);
        // By halves of registers: pixels 0 2 8 10 4 6 12 14, and one on.
        const __m256 evens = _mm256_shuffle_ps(low, high, 0x88);
        const __m256 odds = _mm256_shuffle_ps(low, high, 0xdd);
        store(even + j, (VectorFloat)_mm256_permute4x64_pd((__m256d)evens, 0xd8));
        store(odd + j, (VectorFloat)_mm256_permute4x64_pd((__m256d)odds, 0xd8));
    }
    return j;
}
#endif

// A row, one phase of the stride after the other, or zeros where it is null. The padding left
// and right of it is not written.
template <class S>
CURVKERN_HD void copy_row(const PaddedRow& shape, const S* from, Wide<S>* to) {
    const std::int64_t stride = shape.stride, columns = shape.columns;
    std::int64_t first[2], last[2], done = 0;
    const auto ends = [&](std::int64_t phase, std::int64_t& begin, std::int64_t& end) {
        begin = shape.left > phase ? (shape.left - phase + stride - 1) / stride : 0;
        end = shape.width + shape.left - phase;
        end = end > 0 ? (end + stride - 1) / stride : 0;
        begin = begin < columns ? begin : columns;
        end = end < columns ? end : columns;
    };
    if (stride == 2 && from != nullptr) {
        // Pairs of pixels from the first on; the even pixels are of the phase of `left`.
        const std::int64_t even = shape.left % 2, odd = 1 - even;
        ends(even, first[0], last[0]);
        ends(odd, first[1], last[1]);
        const std::int64_t a = last[0] - first[0], b = last[1] - first[1];
        if (a >= 0 && b >= 0) {
            done = split(from, a < b ? a : b, to + even * columns + first[0],
                         to + odd * columns + first[1]);
        }
    }
    for (std::int64_t phase = 0; phase < stride; ++phase, to += columns) {
        std::int64_t begin, end;
        ends(phase, begin, end);
        if (from == nullptr) {
            for (std::int64_t j = begin; j < end; ++j) to[j] = 0;
            continue;
        }
        const S* source = from + phase - shape.left;
        if (stride == 1) {
            for_lanes<S>(end - begin, [&](std::int64_t j, std::int64_t some) {
                store(to + begin + j, load(source + begin + j, some), some);
            });
        } else {
            for (std::int64_t j = begin + done; j < end; ++j) {
                to[j] = widened(source[stride * j]);
            }
        }
    }
}

}  // namespace isa
}  // namespace curvkern::sparseconv
