// Gradients of depthwise convolutions y = w * x (depthwise.hpp) for gy = dL/dy.
//
//     gx[n, c, i, j] = sum over o of channel c, u, v: w[o, u, v] gy[n, o, (i + top - u d) / s,
//                      (j + left - v d) / s], where both divide
//     gw[o, u, v] = sum over n, i, j: gy[n, o, i, j] x[n, c, i s + u d - top, j s + v d - left]
//
// gx with stride 1 and one filter a channel is the convolution of gy with turned filters. Else
// its pixels are s x s classes, by the remainders of i + top and j + left: each sees the same
// taps at whole steps of gy, and the columns of a row are interleaved where all are known.
//
// gw sums registers of pixels, some rows in the precision that is computed in and these in
// float64; then images in order. How images are cut depends on sizes alone, so that bits depend
// on no number of threads.
#pragma once

#include "sparseconv/depthwise.hpp"

namespace curvkern::sparseconv {

// Where gy lies in the buffer of a band of gx, and the taps of each class.
struct TransposedBands {
    std::int64_t rows;           // of gx in a band
    std::int64_t columns;        // of a row in the buffer
    std::int64_t buffered_rows;  // of a filter
    std::int64_t first, last;    // (j + left) / s of the first pixel, and one past the last
    std::int64_t lead;           // columns of the buffer before the first
};
struct Term {
    std::int64_t
        offset;  // in the buffer, from the row and column (i + top) / s, (j + left) / s
    std::int64_t source;  // among the weights of a channel
};

struct DepthwiseGradients {
    // y of `d` is gy, x is gx, which is written. `terms` of class r s + c, rows r and columns
    // c, are those from start[r s + c] on; `tap` has room for as many registers, `line` for
    // two rows of gx, and the buffer begins with zeros.
    void (*input[3])(const Depthwise& d, const TransposedBands& bands, const Term* terms,
                     const std::int64_t* start, std::int64_t image, std::int64_t channel,
                     void* tap, void* line, void* buffer);
    // y of `d` is gy. Adds to the sums of a filter over images [first, last), float64, one for
    // each tap.
    using Weight = void (*)(const Depthwise& d, const Bands& bands, std::int64_t first,
                            std::int64_t last, std::int64_t filter, double* sums, void* buffer);
    Weight any[3], small[3][2][2];  // as in DepthwiseKernels
    void (*narrow[3])(const double* sums, std::int64_t count, void* out);
};

#define CURVKERN_DECLARE(isa)                        \
    namespace isa {                                  \
    const DepthwiseGradients& depthwise_gradients(); \
    }
CURVKERN_FOR_EACH_ISA(CURVKERN_DECLARE)
#undef CURVKERN_DECLARE

// d.y is gy, d.x is written.
std::int64_t depthwise_input_scratch(const Depthwise& d);
bool depthwise_input_grad(const Depthwise& d, void* scratch, std::int64_t scratch_bytes,
                          InterruptCheck interrupted);
// d.y is gy, d.weight is written.
std::int64_t depthwise_weight_scratch(const Depthwise& d);
bool depthwise_weight_grad(const Depthwise& d, void* scratch, std::int64_t scratch_bytes,
                           InterruptCheck interrupted);

}  // namespace curvkern::sparseconv
