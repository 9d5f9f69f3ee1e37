// Transport problems on a GPU, or with the same kernels on the host: what bindings call.
#pragma once

#include <cstdint>

#include "core/queue.hpp"
#include "sinkhorn/device_plan.hpp"
#include "sinkhorn/newton.hpp"
#include "sinkhorn/options.hpp"

namespace curvkern::sinkhorn::device {

struct Results {
    double *f, *g;   // (batch, n), (batch, m)
    double* info;    // (batch, 3): error, iterations, converged (0 or 1)
    double* errors;  // (batch,) by the last check
};

// float64 numbers that a call needs, `count` columns of v or u being asked for; 0: a solve.
inline std::int64_t workspace_size(Batch shape, std::int64_t count) {
    const std::int64_t used = lay_out(shape, nullptr);
    if (count == 0) return used;
    const std::int64_t sums =
        checked_multiply(checked_multiply(shape.parts, shape.m), columns_at_once);
    return used + checked_multiply(shape.batch, 2 * shape.n + sums);
}

// Newton steps, for one problem after the other.
struct NewtonResults {
    double *f, *g;  // (batch, n), (batch, m): start and result
    double* info;   // (batch, 3): error, iterations, converged (0 or 1)
    double* trace;  // (batch, trace_size) on the host: the error after each iteration
    std::int64_t trace_size;
};

template <class Queue>
bool solve_newton(const Place&, Batch, const newton::NewtonOptions&, bool (*interrupted)(),
                  const NewtonResults&, double* workspace);
template <class Queue>
std::int64_t newton_workspace_size(std::int64_t n, std::int64_t m);

struct Calls {
    // False when a hook ended it.
    bool (*solve)(const Place&, Batch, const Options&, const Hooks&, const Results&,
                  double* workspace);
    void (*products)(const Place&, Batch, Products, double* workspace);
    void (*gradient)(const Place&, Batch, const Gradient&, double* workspace);
    // False when it was interrupted.
    bool (*newton)(const Place&, Batch, const newton::NewtonOptions&, bool (*interrupted)(),
                   const NewtonResults&, double* workspace);
    std::int64_t (*newton_workspace)(std::int64_t n, std::int64_t m);
};

const Calls& host_calls();
const Calls& cuda_calls();

}  // namespace curvkern::sinkhorn::device
