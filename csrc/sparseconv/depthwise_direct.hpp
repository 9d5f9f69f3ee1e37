// Depthwise convolutions of float32 planes read where they are, with 512-bit registers: a load
// whose mask leaves out what is beyond the image gives its zeros and never faults, so that no
// padded copy is needed. Compiled once per instruction set.
//
// Seven rows of the output (the planes of the usual networks have 7, 14, 28, .. of them) by 16
// columns are in registers. For each column of the filter its K taps are as well: each row of
// the input is loaded once for it, and multiplied by all taps that meet it.
#pragma once

#if defined(__AVX512F__)

#include "sparseconv/activation.hpp"
#include "sparseconv/depthwise.hpp"
#include "sparseconv/depthwise_seven.hpp"

namespace curvkern::sparseconv {
CURVKERN_PER_ISA {

// What a tap sees of the columns of a row: lanes are inside the image. Stride 2 loads 32.
struct Seen {
    __mmask16 low, high;
};

CURVKERN_HD __mmask16 lanes_within(std::int64_t first, std::int64_t width) {
    // Lanes l with 0 <= first + l < width.
    const std::int64_t begin = first < 0 ? -first : 0, end = width - first;
    if (begin > 15 || end <= begin) return 0;
    const unsigned before = (1U << begin) - 1, upto = end > 15 ? 0xffffU : (1U << end) - 1;
    return static_cast<__mmask16>(upto & ~before);
}

// Pixels `from` + T l + v, masked for `from` + T l + (v rounded down to T).
template <int T, int V, bool inner>
CURVKERN_HD __m512 pixels(const float* from, Seen seen) {
    from += V / T * T;
    const __m512 low = inner ? _mm512_loadu_ps(from) : _mm512_maskz_loadu_ps(seen.low, from);
    if constexpr (T == 1) {
        return low;
    } else {
        const __m512 high =
            inner ? _mm512_loadu_ps(from + 16) : _mm512_maskz_loadu_ps(seen.high, from + 16);
        const __m512i evens =
            _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        const __m512i lanes = V % 2 ? _mm512_add_epi32(evens, _mm512_set1_epi32(1)) : evens;
        return _mm512_permutex2var_ps(low, lanes, high);
    }
}

template <int K, int T, int N, bool inner, int V = 0>
CURVKERN_HD void column(VectorFloat (&z)[N], const float* weight, const float* from,
                        std::int64_t pitch, const Seen* seen, unsigned rows) {
    VectorFloat tap[K];
    CURVKERN_UNROLL
    for (int u = 0; u < K; ++u) tap[u] = spread(weight + u * K + V);
    CURVKERN_UNROLL
    for (int i = 0; i < (N - 1) * T + K; ++i) {
        Seen part = seen[V];
        if (!inner && !(rows >> i & 1)) part = {};
        const auto x = (VectorFloat)pixels<T, V, inner>(from + i * pitch, part);
        CURVKERN_UNROLL
        for (int r = 0; r < N; ++r) {
            const int u = i - r * T;
            if (u >= 0 && u < K) z[r] += tap[u] * x;
        }
    }
    if constexpr (V + 1 < K) {
        column<K, T, N, inner, V + 1>(z, weight, from, pitch, seen, rows);
    }
}

// Rows [row, row + N) of the output.
template <int K, int T, int N>
CURVKERN_HD void direct_rows(const Depthwise& d, const float* x, const float* weight,
                             VectorFloat bias, std::int64_t row, float* y) {
    constexpr int reach = (N - 1) * T + K;
    const std::int64_t top = row * T - d.top;
    unsigned rows = 0;
    for (int i = 0; i < reach; ++i) {
        rows |= static_cast<unsigned>(top + i >= 0 && top + i < d.height) << i;
    }
    const bool whole = rows == (1U << reach) - 1;
    for_lanes<float>(d.out_width, [&](std::int64_t j, std::int64_t some) {
        VectorFloat z[N];
        CURVKERN_UNROLL
        for (int r = 0; r < N; ++r) z[r] = bias;
        const std::int64_t left = j * T - d.left;
        const float* from = x + top * d.width + left;
        if (whole && left >= 0 && left + (K - 1) / T * T + 16 * T <= d.width) {
            const Seen all[K] = {};
            column<K, T, N, true>(z, weight, from, d.width, all, rows);
        } else {
            Seen seen[K];
            CURVKERN_UNROLL
            for (int v = 0; v < K; ++v) {
                const std::int64_t first = left + v / T * T;
                seen[v] = {lanes_within(first, d.width), lanes_within(first + 16, d.width)};
            }
            column<K, T, N, false>(z, weight, from, d.width, seen, rows);
        }
        if (d.activation != Activation::none) activate(z, d.activation);
        CURVKERN_UNROLL
        for (int r = 0; r < N; ++r) store(y + (row + r) * d.out_width + j, z[r], some);
    });
}

template <int K, int T>
void direct(const Depthwise& d, const Bands&, std::int64_t image, std::int64_t filter, void*,
            void*) {
    const std::int64_t plane = image * d.channels + filter / d.multiplier;
    const std::int64_t filters = d.channels * d.multiplier;
    const float* x = static_cast<const float*>(d.x) + plane * d.x_plane - d.x_row * d.width;
    const float* weight = static_cast<const float*>(d.weight) + filter * K * K;
    float* y = static_cast<float*>(d.y) + (image * filters + filter) * d.y_plane -
               d.y_row * d.out_width;
    const VectorFloat bias =
        d.bias == nullptr ? VectorFloat{} : spread(static_cast<const float*>(d.bias) + filter);
    if (makes_seven<K, T>(d)) return seven<K, T>(d, x, weight, bias, y);
    std::int64_t row = d.begin;
    for (; row + 7 <= d.end; row += 7) direct_rows<K, T, 7>(d, x, weight, bias, row, y);
    for (; row + 3 <= d.end; row += 3) direct_rows<K, T, 3>(d, x, weight, bias, row, y);
    for (; row < d.end; ++row) direct_rows<K, T, 1>(d, x, weight, bias, row, y);
}

}  // namespace isa
}  // namespace curvkern::sparseconv

#endif
