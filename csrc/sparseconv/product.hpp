// Whole products and gradients: strips, parts of rows and chunks of channels on all threads.
#pragma once

#include "core/parallel.hpp"
#include "sparseconv/plan.hpp"

namespace curvkern::sparseconv {

// y (batch, rows, pixels) = act(W x + bias + residual), x of (batch, columns, pixels).
struct Product {
    const Plan* plan;
    const void* value;  // in the order of the plan: float64 or float32
    const void *x, *bias, *residual;
    void* y;
    std::int64_t batch, pixels;
    Storage storage;
    Activation activation;
    // Channels are so many elements apart, images as many times that as they have channels.
    std::int64_t x_plane, y_plane, residual_plane;
    bool serial = false;  // on the calling thread alone
};

// Bytes that a product on so many threads works in.
std::int64_t product_scratch(const Plan& plan, std::int64_t batch, std::int64_t pixels,
                             Storage storage);
std::int64_t serial_scratch(const Plan& plan);
// False when interrupted.
bool multiply(const Product& product, void* scratch, std::int64_t scratch_bytes,
              InterruptCheck interrupted);

// values (in their own order) = (sum over batch and pixels of g x') at the nonzeros of the
// plan, whose height is 1; g is (batch, rows, pixels).
struct Correlation {
    const Plan* plan;
    const void *g, *x;
    void* values;
    std::int64_t batch, pixels;
    Storage storage;
};
std::int64_t correlation_scratch(const Plan& plan, Storage storage);
bool correlate(const Correlation& correlation, void* scratch, std::int64_t scratch_bytes,
               InterruptCheck interrupted);

}  // namespace curvkern::sparseconv
