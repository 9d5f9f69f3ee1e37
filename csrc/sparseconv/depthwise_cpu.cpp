// The planes of a depthwise convolution. Compiled once per instruction set; everything but
// depthwise_kernels() has internal linkage.
#include "sparseconv/activation.hpp"
#include "sparseconv/depthwise.hpp"
#include "sparseconv/depthwise_bands.hpp"
#include "sparseconv/depthwise_direct.hpp"
#include "sparseconv/depthwise_interleaved.hpp"

namespace curvkern::sparseconv {
namespace {

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

// rows(count, bias, taps, buffer, first row of the output) for each band of a plane.
template <class S, class Rows>
CURVKERN_HD void filter_bands(const Depthwise& d, const Bands& bands, std::int64_t image,
                              std::int64_t filter, void* tap, void* buffer, Rows rows) {
    using R = Register<S>;
    const std::int64_t taps = d.kernel_height * d.kernel_width;
    const std::int64_t filters = d.channels * d.multiplier;
    const S* weight = static_cast<const S*>(d.weight) + filter * taps;
    S* y = static_cast<S*>(d.y) + (image * filters + filter) * d.y_plane;
    for (std::int64_t i = 0; i < taps; ++i) static_cast<R*>(tap)[i] = spread(weight + i);
    const R bias = d.bias == nullptr ? R{} : spread(static_cast<const S*>(d.bias) + filter);
    auto* kept = static_cast<Wide<S>*>(buffer);
    for_bands<S>(d, bands, image * d.channels + filter / d.multiplier, kept,
                 [&](std::int64_t first, std::int64_t count) {
                     rows(count, bias, static_cast<const R*>(tap), kept,
                          y + (first - d.y_row) * d.out_width);
                 });
}

template <class S, int K, int T>
void small(const Depthwise& d, const Bands& bands, std::int64_t image, std::int64_t filter,
           void* tap, void* buffer) {
    filter_bands<S>(
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
    filter_bands<S>(d, bands, image, filter, tap, buffer,
                    [&](std::int64_t count, Register<S> bias, const Register<S>* taps,
                        const Wide<S>* kept, S* y) {
                        for (std::int64_t i = 0; i < count; ++i) {
                            any_row<S>(d, bands, bias, taps,
                                       kept + i * d.stride * bands.row_size,
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
    k.interleaved[storage][0][0] = interleaved<S, 3, 1>;
    k.interleaved[storage][0][1] = interleaved<S, 3, 2>;
    k.interleaved[storage][1][0] = interleaved<S, 5, 1>;
    k.interleaved[storage][1][1] = interleaved<S, 5, 2>;
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
