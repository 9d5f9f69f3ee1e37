// Depthwise convolutions whose planes of the output are 7 x 7, in 512-bit registers: 3 x 3 and
// 5 x 5 filters of float32, "same" padding, stride 1 (from 7 x 7) and 2 (from 14 x 14). These
// are the last and widest layers of the usual networks. Compiled once per instruction set.
//
// A row of 7 would leave half of a register empty. So rows follow each other with as many zero
// columns between them as a tap reaches beyond the image: with a pitch of 8 (9 for 5 x 5 with
// stride 1) a plane is four registers, and a tap sees it moved by so many lanes, zeros
// included, which one instruction takes from two registers. For stride 2 the four phases of the
// image, rows and columns that are even or odd, are such planes.
#pragma once

#if defined(__AVX512F__)

#include "sparseconv/activation.hpp"
#include "sparseconv/depthwise.hpp"

namespace curvkern::sparseconv {
CURVKERN_PER_ISA {

template <int K, int T>
inline constexpr int pitch_of_seven = T == 1 ? 7 + K / 2 : 8;
inline constexpr int plane_registers = 4;

// Lanes of register r that hold pixels, and how many pixels come before them.
constexpr unsigned lanes_of_seven(int pitch, int r) {
    unsigned mask = 0;
    for (int l = 0; l < 16; ++l) {
        const int at = 16 * r + l;
        if (at / pitch < 7 && at % pitch < 7) mask |= 1U << l;
    }
    return mask;
}
constexpr int count_of_seven(int pitch, int r) {
    return __builtin_popcount(lanes_of_seven(pitch, r));
}
constexpr int before_seven(int pitch, int r) {
    return r == 0 ? 0 : before_seven(pitch, r - 1) + count_of_seven(pitch, r - 1);
}

// Register r of a plane, moved by `lanes`: lane l is that of 16 r + l + lanes.
template <int lanes, int r>
CURVKERN_HD VectorFloat moved(const VectorFloat* plane) {
    constexpr int at = 16 * (r + 8) + lanes, low = at / 16 - 8;
    VectorFloat a{}, b{};
    if constexpr (low >= 0 && low < plane_registers) a = plane[low];
    if constexpr (at % 16 == 0) {
        return a;
    } else {
        if constexpr (low + 1 >= 0 && low + 1 < plane_registers) b = plane[low + 1];
        return (VectorFloat)_mm512_alignr_epi32((__m512i)b, (__m512i)a, at % 16);
    }
}

// What tap t sees, register r.
template <int K, int T, int t, int r>
CURVKERN_HD VectorFloat seen_of_seven(const VectorFloat* planes) {
    constexpr int down = t / K - K / 2, across = t % K - K / 2;
    constexpr int odd_row = T == 2 ? down & 1 : 0, odd_column = T == 2 ? across & 1 : 0;
    constexpr int lanes =
        pitch_of_seven<K, T> * ((down - odd_row) / T) + (across - odd_column) / T;
    return moved<lanes, r>(planes + (odd_row * 2 + odd_column) * plane_registers);
}

// Taps by columns of the filter, as in column(): rows of a plane alone give the same bits.
template <int K, int T, int n = 0>
CURVKERN_HD void taps_of_seven(VectorFloat (&z)[plane_registers], const VectorFloat* planes,
                               const float* weight) {
    constexpr int t = n % K * K + n / K;
    const VectorFloat tap = spread(weight + t);
    z[0] += tap * seen_of_seven<K, T, t, 0>(planes);
    z[1] += tap * seen_of_seven<K, T, t, 1>(planes);
    z[2] += tap * seen_of_seven<K, T, t, 2>(planes);
    z[3] += tap * seen_of_seven<K, T, t, 3>(planes);
    if constexpr (n + 1 < K * K) taps_of_seven<K, T, n + 1>(z, planes, weight);
}

template <int pitch>
CURVKERN_HD void expand_seven(const float* x, VectorFloat* plane) {
    CURVKERN_UNROLL
    for (int r = 0; r < plane_registers; ++r) {
        plane[r] = (VectorFloat)_mm512_maskz_expand_ps(
            static_cast<__mmask16>(lanes_of_seven(pitch, r)),
            (__m512)load_part(x + before_seven(pitch, r), count_of_seven(pitch, r)));
    }
}

// The plane of x, by phases where the stride is 2.
template <int K, int T>
CURVKERN_HD void load_seven(const float* x, VectorFloat* planes) {
    if constexpr (T == 1) return expand_seven<pitch_of_seven<K, T>>(x, planes);
    // Lanes 14 and 15 of a row are zero.
    const __m512i evens =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odds = _mm512_add_epi32(evens, _mm512_set1_epi32(1));
    CURVKERN_UNROLL
    for (int r = 0; r < plane_registers * 2; ++r) {
        const int odd = r % 2;
        const float* row = x + (2 * r - odd) * 14;  // 0, 1, 4, 5, ..
        const auto a = (__m512)load_part(row, 14);
        const auto b = (__m512)load_part(row + 28, r < 6 ? 14 : 0);
        VectorFloat* to = planes + odd * 2 * plane_registers + r / 2;
        to[0] = (VectorFloat)_mm512_permutex2var_ps(a, evens, b);
        to[plane_registers] = (VectorFloat)_mm512_permutex2var_ps(a, odds, b);
    }
}

template <int K, int T>
CURVKERN_HD bool makes_seven(const Depthwise& d) {
    return d.begin == 0 && d.end == 7 && d.out_height == 7 && d.out_width == 7 &&
           d.height == 7 * T && d.width == 7 * T && d.left == K / 2 && d.top == K / 2;
}

// Called: inlined beside the loops of other sizes, GCC kept its planes in memory, at seven
// times the time.
template <int K, int T>
CURVKERN_SHARED void seven(const Depthwise& d, const float* x, const float* weight,
                           VectorFloat bias, float* y) {
    constexpr int pitch = pitch_of_seven<K, T>;
    VectorFloat planes[T * T * plane_registers], z[plane_registers];
    load_seven<K, T>(x, planes);
    CURVKERN_UNROLL
    for (int r = 0; r < plane_registers; ++r) z[r] = bias;
    taps_of_seven<K, T>(z, planes, weight);
    if (d.activation != Activation::none) activate(z, d.activation);
    CURVKERN_UNROLL
    for (int r = 0; r < plane_registers; ++r) {
        const __m512 pixels = _mm512_maskz_compress_ps(
            static_cast<__mmask16>(lanes_of_seven(pitch, r)), (__m512)z[r]);
        store_part(y + before_seven(pitch, r), (VectorFloat)pixels, count_of_seven(pitch, r));
    }
}

}  // namespace isa
}  // namespace curvkern::sparseconv

#endif
