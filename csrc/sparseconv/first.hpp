// First convolutions of a network: dense, of few channels, channel-major in and out.
//
//     y[n, o, i, j] = act(b[o] + sum_{c, u, v} w[o, c, u, v] x[n, c, i s + u - top, j s + v -
//     left])
//
// (Elsen et al., CVPR 2020, section 3; x is zero outside.) A band of rows of all channels is
// copied to an aligned buffer with its padding, columns that are s apart next to each other.
// Three registers of pixels by eight filters (four with AVX2) then stay in registers, and each
// tap loads the pixels once and broadcasts a weight for each filter. Every output is summed
// over c, u, v in this order, whatever the bands, registers and threads: its bits do not depend
// on them.
#pragma once

#include "core/parallel.hpp"
#include "sparseconv/sparseconv.hpp"

namespace curvkern::sparseconv {

inline constexpr int most_filters_at_once = 8;  // of which the last may be missing

struct FirstConv {
    const void *x, *weight, *bias;  // bias may be null
    void* y;
    std::int64_t images, channels, filters;
    std::int64_t height, width, out_height, out_width;
    std::int64_t kernel_height, kernel_width, stride, left, top;
    Storage storage;
    Activation activation;
    // x begins with row x_row of the image, y with row y_row of the output; channels are so
    // many elements apart, images as many times that as they have channels.
    std::int64_t x_row, x_plane, y_row, y_plane;
};

// How a band of the output's rows lies in the buffer, which holds one channel after the other.
struct FirstBands {
    std::int64_t rows;           // of the output
    std::int64_t columns;        // of one phase of the stride in the buffer
    std::int64_t row_size;       // of all phases
    std::int64_t buffered_rows;  // of the input, of a channel
};
FirstBands first_bands(const FirstConv& f);

struct FirstKernels {
    // Indexed by storage. Weights by groups of filters, biases and where each tap lies in the
    // buffer, as `rows` reads them.
    void (*pack[3])(const FirstConv& f, const FirstBands& bands, void* packed);
    void (*rows[3])(const FirstConv& f, const FirstBands& bands, const void* packed,
                    std::int64_t image, std::int64_t begin, std::int64_t end, void* buffer);
};

#define CURVKERN_DECLARE(isa)            \
    namespace isa {                      \
    const FirstKernels& first_kernels(); \
    }
CURVKERN_FOR_EACH_ISA(CURVKERN_DECLARE)
#undef CURVKERN_DECLARE

// Weights for all calls of first_rows(), which need not be of the same x and y. Both sizes are
// multiples of 64, both memories begin at such an address.
std::int64_t first_packed_bytes(const FirstConv& f);
void first_pack(const FirstConv& f, void* packed);
// Rows [begin, end) of the output of an image, by the calling thread. The buffer is zero before
// the first call, and afterwards ready for others of the same sizes.
std::int64_t first_buffer_bytes(const FirstConv& f);
void first_rows(const FirstConv& f, const void* packed, std::int64_t image, std::int64_t begin,
                std::int64_t end, void* buffer);

// All rows of all images, in parallel.
std::int64_t first_scratch(const FirstConv& f);
bool first_conv(const FirstConv& f, void* scratch, std::int64_t scratch_bytes,
                InterruptCheck interrupted);

}  // namespace curvkern::sparseconv
