// Rows of a first convolution. Compiled once per instruction set; everything but
// first_kernels() has internal linkage.
#include "sparseconv/activation.hpp"
#include "sparseconv/first.hpp"
#include "sparseconv/padded_rows.hpp"

namespace curvkern::sparseconv {
namespace {

// Registers of pixels and filters by which a tile is summed: it fills the register file.
#if defined(__AVX512F__)
constexpr int most_pixels = 3, filters_at_once = 8;
#elif defined(__AVX2__)
constexpr int most_pixels = 3, filters_at_once = 4;
#else
constexpr int most_pixels = 2, filters_at_once = 4;
#endif
static_assert(most_filters_at_once % filters_at_once == 0);

// Packed: for every so many filters their biases and their weights, tap after tap; then offsets
// of taps in the buffer.
template <class S>
CURVKERN_HD std::int64_t group_size(std::int64_t taps) {
    return (taps + 1) * filters_at_once;
}

template <class S>
void pack(const FirstConv& f, const FirstBands& bands, void* packed) {
    const std::int64_t taps = f.channels * f.kernel_height * f.kernel_width;
    const S* weight = static_cast<const S*>(f.weight);
    auto* to = static_cast<Wide<S>*>(packed);
    std::int64_t first = 0;
    for (; first < f.filters; first += filters_at_once) {
        for (std::int64_t t = -1; t < taps; ++t) {
            for (std::int64_t o = first; o < first + filters_at_once; ++o) {
                *to++ = o >= f.filters      ? 0
                        : t >= 0            ? widened(weight[o * taps + t])
                        : f.bias == nullptr ? 0
                                            : widened(static_cast<const S*>(f.bias)[o]);
            }
        }
    }
    std::int64_t* offset = reinterpret_cast<std::int64_t*>(to);
    for (std::int64_t c = 0; c < f.channels; ++c) {
        for (std::int64_t u = 0; u < f.kernel_height; ++u) {
            for (std::int64_t v = 0; v < f.kernel_width; ++v) {
                *offset++ = (c * bands.buffered_rows + u) * bands.row_size +
                            v % f.stride * bands.columns + v / f.stride;
            }
        }
    }
}

// A register of pixels: where it is in the buffer and in a plane of the output.
struct Pixels {
    std::int64_t from, to, count;
};

template <class S, int V>
CURVKERN_HD void tile(const FirstConv& f, const Pixels* pixels, const Wide<S>* group,
                      std::int64_t taps, const std::int64_t* offset, const Wide<S>* buffer,
                      std::int64_t filters, S* y) {
    using R = Register<S>;
    const Wide<S>* from[V];
    R z[filters_at_once * V];
    CURVKERN_UNROLL
    for (int v = 0; v < V; ++v) from[v] = buffer + pixels[v].from;
    CURVKERN_UNROLL
    for (int o = 0; o < filters_at_once; ++o) {
        CURVKERN_UNROLL
        for (int v = 0; v < V; ++v) z[o * V + v] = spread(group + o);
    }
    for (std::int64_t t = 0; t < taps; ++t) {
        group += filters_at_once;
        R x[V];
        CURVKERN_UNROLL
        for (int v = 0; v < V; ++v) x[v] = load(from[v] + offset[t]);
        CURVKERN_UNROLL
        for (int o = 0; o < filters_at_once; ++o) {
            const R weight = spread(group + o);
            CURVKERN_UNROLL
            for (int v = 0; v < V; ++v) z[o * V + v] += weight * x[v];
        }
    }
    if (f.activation != Activation::none) activate(z, f.activation);
    CURVKERN_UNROLL
    for (int o = 0; o < filters_at_once; ++o) {
        if (o >= filters) break;
        CURVKERN_UNROLL
        for (int v = 0; v < V; ++v) {
            store(y + o * f.y_plane + pixels[v].to, z[o * V + v], pixels[v].count);
        }
    }
}

template <class S, int V>
CURVKERN_HD void some_tile(int count, const FirstConv& f, const Pixels* pixels,
                           const Wide<S>* group, std::int64_t taps, const std::int64_t* offset,
                           const Wide<S>* buffer, std::int64_t filters, S* y) {
    if constexpr (V > 1) {
        if (count < V) {
            return some_tile<S, V - 1>(count, f, pixels, group, taps, offset, buffer, filters,
                                       y);
        }
    }
    tile<S, V>(f, pixels, group, taps, offset, buffer, filters, y);
}

// `count` rows, the first of them at y, from the buffer.
template <class S>
CURVKERN_HD void band(const FirstConv& f, const FirstBands& bands, const void* packed,
                      std::int64_t count, const Wide<S>* buffer, S* y) {
    constexpr std::int64_t lanes = lanes_of<S>;
    const std::int64_t taps = f.channels * f.kernel_height * f.kernel_width;
    const auto* weight = static_cast<const Wide<S>*>(packed);
    const std::int64_t groups = (f.filters + filters_at_once - 1) / filters_at_once;
    const auto* offset =
        reinterpret_cast<const std::int64_t*>(weight + groups * group_size<S>(taps));
    std::int64_t row = 0, column = 0;
    while (row < count) {
        Pixels pixels[most_pixels];
        int some = 0;
        for (; some < most_pixels && row < count; ++some) {
            const std::int64_t left = f.out_width - column;
            pixels[some] = {row * f.stride * bands.row_size + column,
                            row * f.out_width + column, left < lanes ? left : lanes};
            column += lanes;
            if (column >= f.out_width) column = 0, ++row;
        }
        for (std::int64_t g = 0; g < groups; ++g) {
            some_tile<S, most_pixels>(some, f, pixels, weight + g * group_size<S>(taps), taps,
                                      offset, buffer, f.filters - g * filters_at_once,
                                      y + g * filters_at_once * f.y_plane);
        }
    }
}

template <class S>
void rows(const FirstConv& f, const FirstBands& bands, const void* packed, std::int64_t image,
          std::int64_t begin, std::int64_t end, void* buffer) {
    const S* x = static_cast<const S*>(f.x) + image * f.channels * f.x_plane;
    S* y = static_cast<S*>(f.y) + image * f.filters * f.y_plane;
    auto* kept = static_cast<Wide<S>*>(buffer);
    const PaddedRow shape{f.width, f.left, f.stride, bands.columns};
    for (std::int64_t first = begin; first < end; first += bands.rows) {
        const std::int64_t count = end - first < bands.rows ? end - first : bands.rows;
        for (std::int64_t c = 0; c < f.channels; ++c) {
            for (std::int64_t i = 0; i < (count - 1) * f.stride + f.kernel_height; ++i) {
                const std::int64_t row = first * f.stride + i - f.top;
                const S* from = row >= 0 && row < f.height
                                    ? x + c * f.x_plane + (row - f.x_row) * f.width
                                    : nullptr;
                copy_row(shape, from, kept + (c * bands.buffered_rows + i) * bands.row_size);
            }
        }
        band<S>(f, bands, packed, count, kept, y + (first - f.y_row) * f.out_width);
    }
}

template <class S>
void fill(FirstKernels& k, int storage) {
    k.pack[storage] = pack<S>;
    k.rows[storage] = rows<S>;
}

}  // namespace

namespace CURVKERN_ISA_NAMESPACE {
const FirstKernels& first_kernels() {
    static const FirstKernels table = [] {
        FirstKernels k{};
        fill<double>(k, 0);
        fill<float>(k, 1);
        fill<Brain>(k, 2);
        return k;
    }();
    return table;
}
}  // namespace CURVKERN_ISA_NAMESPACE

}  // namespace curvkern::sparseconv
