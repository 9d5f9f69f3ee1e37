// Depthwise convolutions on channel-major activations: one filter, or several, for each
// channel.
//
//     y[n, o, i, j] = act(b[o] + sum_{u, v} w[o, u, v] x[n, o / m, i s + u d - top, j s + v d -
//     left])
//
// (Elsen et al., CVPR 2020, section 3; x is zero outside.) A band of rows is copied to an
// aligned buffer with its padding, columns that are s apart next to each other: the loop then
// has neither edges nor strides. Four output rows share what they load. With AVX-512, 3 x 3 and
// 5 x 5 filters of float32 read the image itself (depthwise_direct.hpp, and depthwise_seven.hpp
// for outputs of 7 x 7).
#pragma once

#include "core/parallel.hpp"
#include "sparseconv/sparseconv.hpp"

namespace curvkern::sparseconv {

struct Depthwise {
    const void *x, *weight, *bias;  // bias may be null
    void* y;
    std::int64_t images, channels, multiplier;  // m filters a channel
    std::int64_t height, width, out_height, out_width;
    std::int64_t kernel_height, kernel_width, stride, dilation, left, top;
    Storage storage;
    Activation activation;
    // x begins with row x_row of the image, y with row y_row of the output; channels are so
    // many elements apart, images as many times that as they have channels. Rows [begin, end)
    // of the output are computed, from rows of the image that x must hold.
    std::int64_t x_row, x_plane, y_row, y_plane, begin, end;
};

// How a plane is cut into bands; in elements of the buffer.
struct Bands {
    std::int64_t rows;           // of the output in a band
    std::int64_t columns;        // of one phase of the stride in the buffer
    std::int64_t row_size;       // of all phases
    std::int64_t buffered_rows;  // of the input
};
Bands bands_of(const Depthwise& d);

// What small filters see of a plane, zeros included.
struct PaddedPlane {
    std::int64_t rows, columns;
};
inline PaddedPlane padded_plane(const Depthwise& d) {
    return {(d.out_height - 1) * d.stride + d.kernel_height,
            (d.out_width - 1) * d.stride + d.kernel_width};
}

// The plane of a filter; `tap` has room for the filter, a register each.
using PlaneKernel = void (*)(const Depthwise& d, const Bands& bands, std::int64_t image,
                             std::int64_t filter, void* tap, void* buffer);
struct DepthwiseKernels {
    // by storage; any kernel, 3 x 3 and 5 x 5 with strides 1 and 2 and no dilation
    PlaneKernel any[3], small[3][2][2];
    // likewise, the planes of a filter of images that lie interleaved
    void (*interleaved[3][2][2])(const Depthwise& d, std::int64_t filter, void* buffer);
};

// Whether there are kernels for just these filters.
inline bool is_small(const Depthwise& d) {
    const bool square = d.kernel_height == d.kernel_width;
    return square && (d.kernel_width == 3 || d.kernel_width == 5) && d.stride <= 2 &&
           d.dilation == 1;
}

// Of such a table, the kernel for a convolution.
template <class Kernels>
auto kernel_of(const Kernels& kernels, const Depthwise& d) {
    const auto storage = static_cast<int>(d.storage);
    if (is_small(d)) return kernels.small[storage][d.kernel_width == 5][d.stride - 1];
    return kernels.any[storage];
}

#define CURVKERN_DECLARE(isa)                    \
    namespace isa {                              \
    const DepthwiseKernels& depthwise_kernels(); \
    }
CURVKERN_FOR_EACH_ISA(CURVKERN_DECLARE)
#undef CURVKERN_DECLARE

// Planes [first, last) of all images, by the calling thread. `memory` is aligned, and zero
// before the first call; afterwards it is ready for others of the same sizes.
std::int64_t plane_scratch(const Depthwise& d);
void depthwise_planes(const Depthwise& d, std::int64_t first, std::int64_t last, void* memory);

// All planes of images that lie interleaved, the values of a pixel side by side: x as
// (channels, height, width, images), and y likewise. By the calling thread; of small filters.
std::int64_t interleaved_scratch(const Depthwise& d);
void depthwise_interleaved(const Depthwise& d, void* memory);

std::int64_t depthwise_scratch(const Depthwise& d);
bool depthwise(const Depthwise& d, void* scratch, std::int64_t scratch_bytes,
               InterruptCheck interrupted);

}  // namespace curvkern::sparseconv
