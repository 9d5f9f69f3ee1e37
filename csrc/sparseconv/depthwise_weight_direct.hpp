// The gradient of a depthwise convolution in its weights, float32 with 512-bit registers: the
// planes are read where they are, as in depthwise_direct.hpp, those of 7 x 7 outputs as in
// depthwise_seven.hpp. Lanes in which gy has no pixel are left out of products, so that what x
// has there, infinite perhaps, meets no tap that does not see it. Compiled once per
// instruction set.
#pragma once

#if defined(__AVX512F__)

#include "sparseconv/depthwise_direct.hpp"

namespace curvkern::sparseconv {
CURVKERN_PER_ISA {

// The order is fixed: halves, then halves of them, in float64.
CURVKERN_HD double sum_lanes(VectorFloat z) {
    const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256((__m512)z));
    const __m512d high =
        _mm512_cvtps_pd(_mm256_castpd_ps(_mm512_extractf64x4_pd((__m512d)z, 1)));
    return _mm512_reduce_add_pd(_mm512_add_pd(low, high));
}

// z += g x for the taps of a row of the filter.
template <int K, int T, int V = 0>
CURVKERN_HD void correlate_row(VectorFloat* z, __m512 g, __mmask16 lanes, const float* from,
                               const Seen* seen) {
    z[V] = (VectorFloat)_mm512_mask3_fmadd_ps(g, pixels<T, V, false>(from, seen[V]),
                                              (__m512)z[V], lanes);
    if constexpr (V + 1 < K) correlate_row<K, T, V + 1>(z, g, lanes, from, seen);
}

template <int K, int T>
CURVKERN_HD void correlate_plane(const Depthwise& d, const float* x, const float* gy,
                                 std::int64_t rows_summed, double* sums) {
    for_lanes<float>(d.out_width, [&](std::int64_t j, std::int64_t some) {
        const auto lanes = static_cast<__mmask16>((1U << some) - 1);
        const std::int64_t left = j * T - d.left;
        Seen seen[K];
        CURVKERN_UNROLL
        for (int v = 0; v < K; ++v) {
            const std::int64_t first = left + v / T * T;
            seen[v] = {lanes_within(first, d.width), lanes_within(first + 16, d.width)};
        }
        for (std::int64_t begin = 0; begin < d.out_height; begin += rows_summed) {
            VectorFloat z[K * K] = {};
            const std::int64_t end =
                d.out_height - begin < rows_summed ? d.out_height : begin + rows_summed;
            for (std::int64_t i = begin; i < end; ++i) {
                const auto g = (__m512)load_part(gy + i * d.out_width + j, some);
                const std::int64_t top = i * T - d.top;
                CURVKERN_UNROLL
                for (int u = 0; u < K; ++u) {
                    if (top + u < 0 || top + u >= d.height) continue;
                    correlate_row<K, T>(z + u * K, g, lanes, x + (top + u) * d.width + left,
                                        seen);
                }
            }
            CURVKERN_UNROLL
            for (int t = 0; t < K * K; ++t) sums[t] += sum_lanes(z[t]);
        }
    });
}

template <int K, int T, int t, int r = 0>
CURVKERN_HD VectorFloat tap_of_seven(VectorFloat z, const VectorFloat* planes,
                                     const VectorFloat* g) {
    z = (VectorFloat)_mm512_mask3_fmadd_ps(
        (__m512)g[r], (__m512)seen_of_seven<K, T, t, r>(planes), (__m512)z,
        static_cast<__mmask16>(lanes_of_seven(pitch_of_seven<K, T>, r)));
    if constexpr (r + 1 < plane_registers) {
        return tap_of_seven<K, T, t, r + 1>(z, planes, g);
    } else {
        return z;
    }
}
template <int K, int T, int t = 0>
CURVKERN_HD void correlate_seven(VectorFloat* z, const VectorFloat* planes,
                                 const VectorFloat* g) {
    z[t] = tap_of_seven<K, T, t>(z[t], planes, g);
    if constexpr (t + 1 < K * K) correlate_seven<K, T, t + 1>(z, planes, g);
}

// Images [first, last).
template <int K, int T, std::int64_t registers_summed>
void direct_weight(const Depthwise& d, const Bands&, std::int64_t first, std::int64_t last,
                   std::int64_t filter, double* sums, void*) {
    const std::int64_t x_size = d.height * d.width, y_size = d.out_height * d.out_width;
    const float* x = static_cast<const float*>(d.x) + filter / d.multiplier * x_size;
    const float* gy = static_cast<const float*>(d.y) + filter * y_size;
    const std::int64_t x_step = d.channels * x_size;
    const std::int64_t y_step = d.channels * d.multiplier * y_size;
    if (!makes_seven<K, T>(d)) {
        for (std::int64_t i = first; i < last; ++i) {
            correlate_plane<K, T>(d, x + i * x_step, gy + i * y_step, registers_summed, sums);
        }
        return;
    }
    while (first < last) {
        VectorFloat z[K * K] = {};
        for (std::int64_t n = registers_summed / plane_registers; n > 0 && first < last; --n) {
            VectorFloat planes[T * T * plane_registers], g[plane_registers];
            load_seven<K, T>(x + first * x_step, planes);
            expand_seven<pitch_of_seven<K, T>>(gy + first * y_step, g);
            correlate_seven<K, T>(z, planes, g);
            ++first;
        }
        CURVKERN_UNROLL
        for (int t = 0; t < K * K; ++t) sums[t] += sum_lanes(z[t]);
    }
}

}  // namespace isa
}  // namespace curvkern::sparseconv

#endif
