// Steps of all tensors on a GPU, or with the same kernels on the host: what bindings call. They
// do what run(), signs() and accumulate() of hutchinson.hpp do; tensors, sums and workspace lie
// on the device, pointers to them on the host.
#pragma once

#include <cstdint>

#include "core/queue.hpp"
#include "hutchinson/hutchinson.hpp"

namespace curvkern::hutchinson::device {

// What a queue does for each element: a rule's step; write its sign to p; take one more product
// into a mean and a sum of squared deviations (state), with weight 1 / count.
enum class Work { adahessian, sophia, metric, descent, signs, moments };

struct Calls {
    void (*run)(const Place&, Work, const Step&, double* workspace);
    // float64 numbers that it needs
    std::int64_t (*workspace)(const Step&);
};

const Calls& host_calls();
const Calls& cuda_calls();

}  // namespace curvkern::hutchinson::device
