// Planes of the gradients of a depthwise convolution. Compiled once per instruction set;
// everything but depthwise_gradients() has internal linkage.
#include "sparseconv/depthwise_bands.hpp"
#include "sparseconv/depthwise_gradients.hpp"
#include "sparseconv/depthwise_input_direct.hpp"
#include "sparseconv/depthwise_weight_direct.hpp"

namespace curvkern::sparseconv {
namespace {

// Of registers of pixels between two additions to float64.
constexpr std::int64_t registers_summed = 64;
constexpr int taps_at_once = 9;

// The order is fixed: halves, then halves of them, in float64.
template <class R>
CURVKERN_HD double sum_lanes(R z) {
    constexpr int width = Lanes<R>::width;
    Scalar<R> lane[width];
    double sum[width];
    __builtin_memcpy(lane, &z, sizeof(R));
    CURVKERN_UNROLL
    for (int l = 0; l < width; ++l) sum[l] = lane[l];
    CURVKERN_UNROLL
    for (int half = width / 2; half > 0; half /= 2) {
        CURVKERN_UNROLL
        for (int l = 0; l < half; ++l) sum[l] += sum[l + half];
    }
    return sum[0];
}

// sums += over `count` rows of gy times what each tap sees. `taps` addresses in the buffer.
template <class S, int N, class At>
CURVKERN_HD void correlate_rows(const Depthwise& d, const Bands& bands, const S* gy,
                                std::int64_t count, double* sums, At at) {
    using R = Register<S>;
    const std::int64_t row_registers = (d.out_width + lanes_of<S> - 1) / lanes_of<S>;
    const std::int64_t step =
        row_registers < registers_summed ? registers_summed / row_registers : 1;
    for (std::int64_t first = 0; first < count; first += step) {
        R z[N] = {};
        const std::int64_t end = count - first < step ? count : first + step;
        for (std::int64_t i = first; i < end; ++i) {
            const std::int64_t row = i * d.stride * bands.row_size;
            for_lanes<S>(d.out_width, [&](std::int64_t j, std::int64_t some) {
                const S* from = gy + i * d.out_width + j;
                if (some == lanes_of<S>) {
                    const R g = load(from);
                    CURVKERN_UNROLL
                    for (int t = 0; t < N; ++t) z[t] += g * load(at(t, row + j));
                } else {  // x too: infinite pixels beyond the last times zero are no numbers
                    const R g = load_part(from, some);
                    CURVKERN_UNROLL
                    for (int t = 0; t < N; ++t) z[t] += g * load_part(at(t, row + j), some);
                }
            });
        }
        CURVKERN_UNROLL
        for (int t = 0; t < N; ++t) sums[t] += sum_lanes(z[t]);
    }
}

template <class S>
CURVKERN_HD const S* slope_of(const Depthwise& d, std::int64_t image, std::int64_t filter) {
    const std::int64_t plane = image * d.channels * d.multiplier + filter;
    return static_cast<const S*>(d.y) + plane * d.out_height * d.out_width;
}

// All taps of a small filter at once where their sums are registers, else a row of them.
#if defined(__AVX512F__)
constexpr int most_summed = 25;
#else
constexpr int most_summed = 10;
#endif

template <class S, int K, int T>
void small_weight(const Depthwise& d, const Bands& bands, std::int64_t image,
                  std::int64_t filter, double* sums, void* buffer) {
    constexpr int rows = K * K <= most_summed ? K : 1;
    const S* gy = slope_of<S>(d, image, filter);
    auto* kept = static_cast<Wide<S>*>(buffer);
    for_bands<S>(d, bands, image * d.channels + filter / d.multiplier, kept,
                 [&](std::int64_t first, std::int64_t count) {
                     for (int u = 0; u < K; u += rows) {
                         const Wide<S>* from = kept + u * bands.row_size;
                         correlate_rows<S, rows * K>(
                             d, bands, gy + first * d.out_width, count, sums + u * K,
                             [&](int t, std::int64_t pixel) {
                                 const int v = t % K;
                                 return from + t / K * bands.row_size + v % T * bands.columns +
                                        v / T + pixel;
                             });
                     }
                 });
}

template <class S>
void any_weight(const Depthwise& d, const Bands& bands, std::int64_t image, std::int64_t filter,
                double* sums, void* buffer) {
    const S* gy = slope_of<S>(d, image, filter);
    const std::int64_t taps = d.kernel_height * d.kernel_width;
    auto* kept = static_cast<Wide<S>*>(buffer);
    for_bands<S>(
        d, bands, image * d.channels + filter / d.multiplier, kept,
        [&](std::int64_t first, std::int64_t count) {
            for (std::int64_t begin = 0; begin < taps; begin += taps_at_once) {
                std::int64_t offset[taps_at_once];
                for (std::int64_t t = 0; t < taps_at_once; ++t) {
                    const std::int64_t tap = begin + t < taps ? begin + t : taps - 1;
                    const std::int64_t u = tap / d.kernel_width * d.dilation;
                    const std::int64_t v = tap % d.kernel_width * d.dilation;
                    offset[t] =
                        u * bands.row_size + v % d.stride * bands.columns + v / d.stride;
                }
                double some[taps_at_once] = {};
                correlate_rows<S, taps_at_once>(
                    d, bands, gy + first * d.out_width, count, some,
                    [&](int t, std::int64_t pixel) { return kept + offset[t] + pixel; });
                const std::int64_t left = taps - begin;
                const std::int64_t used = left < taps_at_once ? left : taps_at_once;
                for (std::int64_t i = 0; i < used; ++i) sums[begin + i] += some[i];
            }
        });
}

template <auto one>
void each_image(const Depthwise& d, const Bands& bands, std::int64_t first, std::int64_t last,
                std::int64_t filter, double* sums, void* buffer) {
    for (std::int64_t i = first; i < last; ++i) one(d, bands, i, filter, sums, buffer);
}

template <class S>
void narrow(const double* sums, std::int64_t count, void* out) {
    for (std::int64_t i = 0; i < count; ++i) {
        static_cast<S*>(out)[i] = narrowed<S>(static_cast<Wide<S>>(sums[i]));
    }
}

// Two rows of `count` elements, a multiple of a register's, one after the other in turn.
template <class T>
CURVKERN_HD std::int64_t interleave(const T*, const T*, std::int64_t, T*) {
    return 0;
}
#if defined(__AVX512F__)
CURVKERN_HD std::int64_t interleave(const float* even, const float* odd, std::int64_t count,
                                    float* to) {
    const __m512i low =
        _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    for (std::int64_t i = 0; i < count; i += 16, to += 32) {
        const auto a = (__m512)load(even + i), b = (__m512)load(odd + i);
        store(to, (VectorFloat)_mm512_permutex2var_ps(a, low, b));
        store(to + 16, (VectorFloat)_mm512_permutex2var_ps(a, high, b));
    }
    return count;
}
#elif defined(__AVX2__)
CURVKERN_HD std::int64_t interleave(const float* even, const float* odd, std::int64_t count,
                                    float* to) {
    for (std::int64_t i = 0; i < count; i += 8, to += 16) {
        const auto a = (__m256)load(even + i), b = (__m256)load(odd + i);
        const __m256 low = _mm256_unpacklo_ps(a, b), high = _mm256_unpackhi_ps(a, b);
        store(to, (VectorFloat)_mm256_permute2f128_ps(low, high, 0x20));
        store(to + 8, (VectorFloat)_mm256_permute2f128_ps(low, high, 0x31));
    }
    return count;
}
#endif

// N registers of a row and class.
template <class S, int N>
CURVKERN_HD void gather(const Term* terms, std::int64_t count, const Register<S>* tap,
                        const Wide<S>* from, Register<S> (&z)[N]) {
    CURVKERN_UNROLL
    for (int r = 0; r < N; ++r) z[r] = Register<S>{};
    for (std::int64_t t = 0; t < count; ++t) {
        CURVKERN_UNROLL
        for (int r = 0; r < N; ++r) {
            z[r] += tap[t] * load(from + terms[t].offset + r * lanes_of<S>);
        }
    }
}

// Row `row` of gx, whose part of the buffer begins at `from`.
template <class S>
CURVKERN_HD void transposed_row(const Depthwise& d, const TransposedBands& bands,
                                const Term* terms, const std::int64_t* start,
                                const Register<S>* tap, const Wide<S>* from, Wide<S>* line,
                                S* gx) {
    constexpr std::int64_t lanes = lanes_of<S>;
    const std::int64_t count = bands.last - bands.first;
    const std::int64_t pitch = (count + lanes - 1) / lanes * lanes;
    for (std::int64_t c = 0; c < d.stride; ++c) {
        const std::int64_t begin = start[c], size = start[c + 1] - begin;
        std::int64_t q = 0;
        const auto put = [&](Register<S> y) {
            if (d.stride == 1) {
                store(gx + q, y, d.width - q < lanes ? d.width - q : lanes);
            } else {
                store(line + c * pitch + q, y);
            }
            q += lanes;
        };
        while (q + 4 * lanes <= pitch) {
            Register<S> z[4];
            gather<S>(terms + begin, size, tap + begin, from + q, z);
            for (int r = 0; r < 4; ++r) put(z[r]);
        }
        while (q < pitch) {
            Register<S> z[1];
            gather<S>(terms + begin, size, tap + begin, from + q, z);
            put(z[0]);
        }
    }
    if (d.stride == 1) return;
    Wide<S>* whole = line + d.stride * pitch;
    std::int64_t done = 0;
    if (d.stride == 2) done = interleave(line, line + pitch, pitch, whole);
    for (std::int64_t c = 0; c < d.stride; ++c) {
        for (std::int64_t q = done; q < count; ++q) {
            whole[q * d.stride + c] = line[c * pitch + q];
        }
    }
    whole += d.left - bands.first * d.stride;
    for_lanes<S>(d.width, [&](std::int64_t j, std::int64_t some) {
        store(gx + j, load(whole + j, some), some);
    });
}

template <class S>
void input(const Depthwise& d, const TransposedBands& bands, const Term* terms,
           const std::int64_t* start, std::int64_t image, std::int64_t channel, void* tap,
           void* line, void* buffer) {
    using R = Register<S>;
    const std::int64_t taps = d.multiplier * d.kernel_height * d.kernel_width;
    const S* weight = static_cast<const S*>(d.weight) + channel * taps;
    const S* gy = slope_of<S>(d, image, channel * d.multiplier);
    S* gx = static_cast<S*>(const_cast<void*>(d.x)) +
            (image * d.channels + channel) * d.height * d.width;
#if defined(__AVX512F__)
    if constexpr (sizeof(S) == sizeof(float)) {
        if (d.stride == 2 && d.dilation == 1 && d.multiplier == 1 &&
            (taps == 9 || taps == 25) && d.kernel_height == d.kernel_width) {
            return taps == 9 ? direct_input<3>(d, weight, gy, gx)
                             : direct_input<5>(d, weight, gy, gx);
        }
    }
#endif
    auto* kept = static_cast<Wide<S>*>(buffer);
    for (std::int64_t t = 0; t < taps; ++t) {
        static_cast<R*>(tap)[t] = spread(weight + terms[t].source);
    }
    const PaddedRow shape{d.out_width, bands.lead - bands.first, 1, bands.columns};
    const std::int64_t reach = (d.kernel_height - 1) * d.dilation;
    const std::int64_t before = (reach + d.stride - 1) / d.stride;  // rows of gy
    for (std::int64_t first = 0; first < d.height; first += bands.rows) {
        const std::int64_t count =
            d.height - first < bands.rows ? d.height - first : bands.rows;
        const std::int64_t base = (first + d.top) / d.stride - before;
        const std::int64_t end = (first + count - 1 + d.top) / d.stride + 1;
        for (std::int64_t m = 0; m < d.multiplier; ++m) {
            for (std::int64_t r = base; r < end; ++r) {
                const S* from = r >= 0 && r < d.out_height
                                    ? gy + (m * d.out_height + r) * d.out_width
                                    : nullptr;
                copy_row(shape, from,
                         kept + (m * bands.buffered_rows + r - base) * bands.columns);
            }
        }
        for (std::int64_t i = first; i < first + count; ++i) {
            const std::int64_t at = i + d.top;
            transposed_row<S>(d, bands, terms, start + at % d.stride * d.stride,
                              static_cast<const R*>(tap),
                              kept + (at / d.stride - base) * bands.columns + bands.lead,
                              static_cast<Wide<S>*>(line), gx + i * d.width);
        }
    }
}

template <class S>
void fill(DepthwiseGradients& k, int storage) {
    k.input[storage] = input<S>;
    k.any[storage] = each_image<any_weight<S>>;
    k.small[storage][0][0] = each_image<small_weight<S, 3, 1>>;
    k.small[storage][0][1] = each_image<small_weight<S, 3, 2>>;
    k.small[storage][1][0] = each_image<small_weight<S, 5, 1>>;
    k.small[storage][1][1] = each_image<small_weight<S, 5, 2>>;
    k.narrow[storage] = narrow<S>;
}

}  // namespace

namespace CURVKERN_ISA_NAMESPACE {
const DepthwiseGradients& depthwise_gradients() {
    static const DepthwiseGradients table = [] {
        DepthwiseGradients k{};
        fill<double>(k, 0);
        fill<float>(k, 1);
        fill<Brain>(k, 2);
#if defined(__AVX512F__)
        k.small[1][0][0] = direct_weight<3, 1, registers_summed>;
        k.small[1][0][1] = direct_weight<3, 2, registers_summed>;
        k.small[1][1][0] = direct_weight<5, 1, registers_summed>;
        k.small[1][1][1] = direct_weight<5, 2, registers_summed>;
#endif
        return k;
    }();
    return table;
}
}  // namespace CURVKERN_ISA_NAMESPACE

}  // namespace curvkern::sparseconv
