// Passes over a window on a GPU, or with the same kernels on the host: what bindings call. They
// do what products() and combine() of mfac.hpp do; memory lies on the device but for the slots.
#pragma once

#include <cstdint>

#include "core/queue.hpp"
#include "mfac/mfac.hpp"

namespace curvkern::mfac::device {

struct Calls {
    void (*products)(const Place&, Window, const Vectors& v, const Vectors* incoming,
                     std::int64_t into, double* out, double* workspace);
    void (*combine)(const Place&, Window, const double* coefficient, double alpha,
                    const Vectors* v, const Vectors& out, double* workspace);
    // float64 numbers that `k` products or combinations need
    std::int64_t (*workspace)(std::int64_t count, std::int64_t d, std::int64_t k);
};

const Calls& host_calls();
const Calls& cuda_calls();

}  // namespace curvkern::mfac::device
