// The planes of a depthwise convolution. Compiled once per instruction set; everything but
// depthwise_kernels() has internal linkage.
#include "sparseconv/activation.hpp"
#include "sparseconv/depthwise.hpp"
#include "sparseconv/depthwise_direct.hpp"

namespace curvkern::sparseconv {
namespace {

// Elements of a row two apart: x[0], x[2], .. to `even`, x[1], x[3], .. to `odd`, as many as
// fill registers; returns how many of each.
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
#endif

// A row of the input, one phase of the stride after the other, or zeros beyond the image.
// Column j of a phase is phase + j s - left of the image; what is left or right of it stays
// zero.
template <class S>
CURVKERN_HD void copy_row(const Depthwise& d, const Bands& bands, const S* plane,
                          std::int64_t row, Wide<S>* to) {
    const bool inside = row >= 0 && row < d.height;
    const S* from = plane + (inside ? row * d.width : 0);
    std::int64_t first[2], last[2], done = 0;
    const auto ends = [&](std::int64_t phase, std::int64_t& begin, std::int64_t& end) {
        begin = d.left > phase ? (d.left - phase + d.stride - 1) / d.stride : 0;
        end = d.width + d.left - phase;
        end = end > 0 ? (end + d.stride - 1) / d.stride : 0;
        begin = begin < bands.columns ? begin : bands.columns;
        end = end < bands.columns ? end : bands.columns;
    };
    if (d.stride == 2 && inside) {
        // Pairs of pixels from the first on; the even pixels are of the phase of `left`.
        const std::int64_t even = d.left % 2, odd = 1 - even;
        ends(even, first[0], last[0]);
        ends(odd, first[1], last[1]);
        const std::int64_t a = last[0] - first[0], b = last[1] - first[1];
        if (a >= 0 && b >= 0) {
            done = split(from, a < b ? a : b, to + even * bands.columns + first[0],
                         to + odd * bands.columns + first[1]);
        }
    }
    for (std::int64_t phase = 0; phase < d.stride; ++phase, to += bands.columns) {
        std::int64_t begin, end;
        ends(phase, begin, end);
        const S* source = from + phase - d.left;
        if (!inside) {
            for (std::int64_t j = begin; j < end; ++j) to[j] = 0;
        } else if (d.stride == 1) {
            for_lanes<S>(end - begin, [&](std::int64_t j, std::int64_t some) {
                store(to + begin + j, load(source + begin + j, some), some);
            });
        } else {
            for (std::int64_t j = begin + done; j < end; ++j) {
                to[j] = widened(source[d.stride * j]);
            }
        }
    }
}

template <class S, int N>
CURVKERN_HD void put(Register<S> (&z)[N], const Depthwise& d, S* out, std::int64_t some) {
    if (d.activation != Activation::none) activate(z, d.activation);
    CURVKERN_UNROLL
    for (int r = 0; r < N; ++r) store(out + r * d.out_width, z[r], some);
}

// N rows of the output, K x K taps, stride T.
template <class S, int K, int T, int N>
CURVKERN_HD void small_rows(const Depthwise& d, const Bands& bands, Register<S> bias,
                            const Register<S>* tap, const Wide<S>* buffer, S* out) {
    for_lanes<S>(d.out_width, [&](std::int64_t j, std::int64_t some) {
        Register<S> z[N];
        CURVKERN_UNROLL
        for (int r = 0; r < N; ++r) z[r] = bias;
        CURVKERN_UNROLL
        for (int i = 0; i < (N - 1) * T + K; ++i) {
            CURVKERN_UNROLL
            for (int v = 0; v < K; ++v) {
                const Register<S> x =
                    load(buffer + i * bands.row_size + v % T * bands.columns + v / T + j);
                CURVKERN_UNROLL
                for (int r = 0; r < N; ++r) {
                    const int u = i - r * T;
                    if (u >= 0 && u < K) z[r] += tap[u * K + v] * x;
                }
            }
        }
        put<S, N>(z, d, out + j, some);
    });
}

template <class S>
CURVKERN_HD void any_row(const Depthwise& d, const Bands& bands, Register<S> bias,
                         const Register<S>* tap, const Wide<S>* buffer, S* out) {
    for_lanes<S>(d.out_width, [&](std::int64_t j, std::int64_t some) {
        Register<S> z[1] = {bias};
        const Register<S>* weight = tap;
        for (std::int64_t u = 0; u < d.kernel_height; ++u) {
            const Wide<S>* row = buffer + u * d.dilation * bands.row_size + j;
            for (std::int64_t v = 0; v < d.kernel_width; ++v, ++weight) {
                const std::int64_t at = v * d.dilation;
                z[0] += *weight * load(row + at % d.stride * bands.columns + at / d.stride);
            }
        }
        put<S, 1>(z, d, out + j, some);
    });
}

template <class S, class Rows>
CURVKERN_HD void for_bands(const Depthwise& d, const Bands& bands, std::int64_t image,
                           std::int64_t filter, void* tap, void* buffer, Rows rows) {
    using R = Register<S>;
    const std::int64_t taps = d.kernel_height * d.kernel_width;
    const std::int64_t plane = image * d.channels + filter / d.multiplier;
    const std::int64_t filters = d.channels * d.multiplier;
    const S* x = static_cast<const S*>(d.x) + plane * d.x_plane - d.x_row * d.width;
    const S* weight = static_cast<const S*>(d.weight) + filter * taps;
    S* y = static_cast<S*>(d.y) + (image * filters + filter) * d.y_plane;
    auto* kept = static_cast<Wide<S>*>(buffer);
    for (std::int64_t i = 0; i < taps; ++i) static_cast<R*>(tap)[i] = spread(weight + i);
    const R bias = d.bias == nullptr ? R{} : spread(static_cast<const S*>(d.bias) + filter);
    for (std::int64_t first = d.begin; first < d.end; first += bands.rows) {
        const std::int64_t left = d.end - first;
        const std::int64_t count = left < bands.rows ? left : bands.rows;
        const std::int64_t reach = (d.kernel_height - 1) * d.dilation + 1;
        for (std::int64_t i = 0; i < (count - 1) * d.stride + reach; ++i) {
            copy_row(d, bands, x, first * d.stride + i - d.top, kept + i * bands.row_size);
        }
        rows(count, bias, static_cast<const R*>(tap), kept,
             y + (first - d.y_row) * d.out_width);
    }
}

template <class S, int K, int T>
void small(const Depthwise& d, const Bands& bands, std::int64_t image, std::int64_t filter,
           void* tap, void* buffer) {
    for_bands<S>(
        d, bands, image, filter, tap, buffer,
        [&](std::int64_t count, Register<S> bias, const Register<S>* taps, const Wide<S>* kept,
            S* y) {
            std::int64_t i = 0;
            for (; i + 4 <= count; i += 4) {
                small_rows<S, K, T, 4>(d, bands, bias, taps, kept + i * T * bands.row_size,
                                       y + i * d.out_width);
            }
            for (; i < count; ++i) {
                small_rows<S, K, T, 1>(d, bands, bias, taps, kept + i * T * bands.row_size,
                                       y + i * d.out_width);
            }
        });
}

template <class S>
void any(const Depthwise& d, const Bands& bands, std::int64_t image, std::int64_t filter,
         void* tap, void* buffer) {
    for_bands<S>(d, bands, image, filter, tap, buffer,
                 [&](std::int64_t count, Register<S> bias, const Register<S>* taps,
                     const Wide<S>* kept, S* y) {
                     for (std::int64_t i = 0; i < count; ++i) {
                         any_row<S>(d, bands, bias, taps, kept + i * d.stride * bands.row_size,
                                    y + i * d.out_width);
                     }
                 });
}

template <class S>
void fill(DepthwiseKernels& k, int storage) {
    k.any[storage] = any<S>;
    k.small[storage][0][0] = small<S, 3, 1>;
    k.small[storage][0][1] = small<S, 3, 2>;
    k.small[storage][1][0] = small<S, 5, 1>;
    k.small[storage][1][1] = small<S, 5, 2>;
}

}  // namespace

namespace CURVKERN_ISA_NAMESPACE {
const DepthwiseKernels& depthwise_kernels() {
    static const DepthwiseKernels table = [] {
        DepthwiseKernels k{};
        fill<double>(k, 0);
        fill<float>(k, 1);
        fill<Brain>(k, 2);
#if defined(__AVX512F__)
        k.small[1][0][0] = direct<3, 1>;
        k.small[1][0][1] = direct<3, 2>;
        k.small[1][1][0] = direct<5, 1>;
        k.small[1][1][1] = direct<5, 2>;
#endif
        return k;
    }();
    return table;
}
}  // namespace CURVKERN_ISA_NAMESPACE

}  // namespace curvkern::sparseconv
