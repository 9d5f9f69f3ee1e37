// The gradient of a depthwise convolution of stride 2 in its input, float32 with 512-bit
// registers: gy is read where it is, with masks for its edges. Compiled once per instruction
// set.
//
// Of 32 columns of a row those with even j + left see the even columns of a filter, the others
// the odd ones: two registers, which are interleaved before they are stored.
#pragma once

#if defined(__AVX512F__)

#include "sparseconv/depthwise_direct.hpp"

namespace curvkern::sparseconv {
CURVKERN_PER_ISA {

// A row whose i + top is row + u for the rows u of the filter that are odd, or even.
template <int K, int odd>
CURVKERN_HD void spread_row(const Depthwise& d, const float* weight, const float* gy,
                            std::int64_t row, const __mmask16* seen, VectorFloat (&z)[2]) {
    CURVKERN_UNROLL
    for (int u = odd; u < K; u += 2) {
        const std::int64_t r = (row - u) / 2;
        if (row < u || r >= d.out_height) continue;
        CURVKERN_UNROLL
        for (int v = 0; v < K; ++v) {
            const float* from = gy + r * d.out_width - v / 2;
            z[v % 2] +=
                spread(weight + u * K + v) * (VectorFloat)_mm512_maskz_loadu_ps(seen[v], from);
        }
    }
}

template <int K>
CURVKERN_HD void direct_input(const Depthwise& d, const float* weight, const float* gy,
                              float* gx) {
    const __m512i low =
        _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    for (std::int64_t q = d.left / 2; 2 * q - d.left < d.width; q += 16) {
        __mmask16 seen[K];
        CURVKERN_UNROLL
        for (int v = 0; v < K; ++v) seen[v] = lanes_within(q - v / 2, d.out_width);
        const std::int64_t column = 2 * q - d.left;
        const __mmask16 first = lanes_within(column, d.width);
        const __mmask16 second = lanes_within(column + 16, d.width);
        for (std::int64_t i = 0; i < d.height; ++i) {
            const std::int64_t row = i + d.top;
            VectorFloat z[2] = {};
            if (row % 2 == 0) {
                spread_row<K, 0>(d, weight, gy + q, row, seen, z);
            } else {
                spread_row<K, 1>(d, weight, gy + q, row, seen, z);
            }
            const auto a = (__m512)z[0], b = (__m512)z[1];
            float* to = gx + i * d.width + column;
            _mm512_mask_storeu_ps(to, first, _mm512_permutex2var_ps(a, low, b));
            _mm512_mask_storeu_ps(to + 16, second, _mm512_permutex2var_ps(a, high, b));
        }
    }
}

}  // namespace isa
}  // namespace curvkern::sparseconv

#endif
