// Squeeze and excitation before a product: channels times weights that depend on their means.
//
//     Y = W (s x),  s = sigma(E act(S mean(x) + b) + c)
//
// (J. Hu, L. Shen, G. Sun, "Squeeze-and-Excitation Networks", CVPR 2018.) W diag(s) is formed
// in place of s x: it has as many entries as W has nonzeros, a hundredth of those of x. Means
// are summed in a fixed order: the bits depend neither on threads nor on the instruction set.
#pragma once

#include <vector>

#include "sparseconv/plan.hpp"

namespace curvkern::sparseconv {

struct Gate {
    const float *squeeze, *squeeze_bias;  // (inner, channels) and (inner), which may be null
    const float *excite, *excite_bias;    // (channels, inner) and (channels), likewise
    std::int64_t channels, inner;
    Activation activation;
    bool hard;  // sigma(z) = min(max(z + 3, 0), 6) / 6 and not 1 / (1 + e^-z)
};

// The column of W of each value in the order of a plan.
std::vector<std::int32_t> columns_of(const Plan& plan);

float mean_of(const float* x, std::int64_t n);
// `scale` (channels) from the means; `inner` has room for gate.inner.
void excite(const Gate& gate, const float* mean, float* inner, float* scale);

}  // namespace curvkern::sparseconv
