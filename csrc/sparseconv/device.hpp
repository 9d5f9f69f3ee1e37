// Sparse 1 x 1, depthwise and first convolutions on a GPU, or with the same kernels on the
// host: what bindings call. Images are (batch, channels, pixels), all memory lies on the
// device.
//
// E. Elsen, M. Dukhan, T. Gale, K. Simonyan, "Fast Sparse ConvNets", CVPR 2020; the kernels
// take their ideas from T. Gale, M. Zaharia, C. Young, E. Elsen, "Sparse GPU Kernels for Deep
// Learning", SC 2020.
#pragma once

#include <cstdint>

#include "core/queue.hpp"
#include "sparseconv/sparseconv.hpp"

namespace curvkern::sparseconv::device {

// Where a matrix of rows * height rows has blocks of height x width values. Columns begin at a
// multiple of 32 bytes.
struct Blocks {
    const std::int64_t* crow;   // (rows + 1)
    const std::int32_t* col;    // (count), in blocks
    const std::int32_t* order;  // (rows): the longest first
    std::int64_t rows, count;
    std::int64_t height, width;
};

// out = act(W x + bias + residual)
struct Product {
    Storage storage;
    Blocks matrix;
    const void* values;    // (count, height, width), from a multiple of 32 bytes on
    const void* x;         // (batch, columns, pixels)
    const void* bias;      // (rows * height), or null
    const void* residual;  // as out, or null
    void* out;             // (batch, rows * height, pixels)
    std::int64_t batch, columns, pixels;
    Activation activation;
    std::int64_t lanes;  // threads that share a row and a tile of pixels: 1, 2, 4 .. 32
};

// out[i] = the block values[source[i]], transposed
struct Transposition {
    Storage storage;
    const void* values;          // (count, height, width)
    const std::int64_t* source;  // (count)
    void* out;                   // (count, width, height)
    std::int64_t count, height, width;
};

// values = sum over batch and pixels of gy x', where the matrix has blocks. Tile t takes up to
// entries_of_tile columns of block row row[t], from its number first[t] on; a block has
// `width`.
struct Correlation {
    Storage storage;
    Blocks matrix;
    const std::int32_t* row;    // (tiles)
    const std::int64_t* first;  // (tiles)
    std::int64_t tiles;
    const void* gy;  // (batch, rows * height, pixels)
    const void* x;   // (batch, columns, pixels)
    void* values;    // (count, height, width)
    std::int64_t batch, columns, pixels;
    double* workspace;
};
inline constexpr int entries_of_tile = 8;

// How outputs (i, j) lie on images: tap (u, v) of output (i, j) is at row i stride + u dilation
// - top and column j stride + v dilation - left; what lies outside is zero.
struct Window {
    std::int64_t height, width, out_height, out_width;
    std::int64_t kernel_height, kernel_width;
    std::int64_t stride, dilation, left, top;
};

// A convolution with act(.. + bias): of each channel with its own filter, or (First) of all.
struct Convolution {
    Storage storage;
    Window window;
    const void* x;       // (batch, channels, height, width)
    const void* weight;  // (filters, 1 or channels, kernel_height, kernel_width)
    const void* bias;    // (filters), or null
    void* out;           // (batch, filters, out_height, out_width)
    std::int64_t batch, channels, filters;
    Activation activation;
};

// The derivatives of a depthwise one: in x from gy and weight, in weight from gy and x.
struct InputGradient {
    Storage storage;
    Window window;
    const void* gy;
    const void* weight;
    void* gx;
    std::int64_t batch, channels;
};
struct WeightGradient {
    Storage storage;
    Window window;
    const void* gy;
    const void* x;
    void* gw;
    std::int64_t batch, channels;
    double* workspace;
};

struct Calls {
    void (*multiply)(const Place&, const Product&);
    void (*transpose)(const Place&, const Transposition&);
    void (*correlate)(const Place&, const Correlation&);
    void (*depthwise)(const Place&, const Convolution&);
    void (*input_gradient)(const Place&, const InputGradient&);
    void (*weight_gradient)(const Place&, const WeightGradient&);
    void (*first)(const Place&, const Convolution&);
    // float64 numbers that they need
    std::int64_t (*correlation_workspace)(const Correlation&);
    std::int64_t (*weight_workspace)(const WeightGradient&);
};

const Calls& host_calls();
const Calls& cuda_calls();

}  // namespace curvkern::sparseconv::device
