// Passes over the costs as a queue runs them, and what is left of a problem before the first
// and after the last: which kernel serves which shape. Defined in device_passes.hpp, and
// compiled where that is included alone: kernels that hold entries in registers take long.
#pragma once

#include <algorithm>

#include "sinkhorn/device_kernels.hpp"

namespace curvkern::sinkhorn::device {

// run.operator()<Costs>() for the costs of a batch
template <class Run>
void with_costs(Cost kind, Run run) {
    switch (kind) {
        case Cost::dense64:
            return run.template operator()<DenseCosts<double>>();
        case Cost::dense32:
            return run.template operator()<DenseCosts<float>>();
        case Cost::sqeuclidean:
            return run.template operator()<PointCosts<Cost::sqeuclidean>>();
        case Cost::euclidean:
            return run.template operator()<PointCosts<Cost::euclidean>>();
        case Cost::l1:
            return run.template operator()<PointCosts<Cost::l1>>();
        case Cost::count:
            return;
    }
}

template <class Run>
void with_points(Cost kind, Run run) {
    with_costs(kind, [&]<class Costs>() {
        if constexpr (requires(const Costs& costs) { costs.slope(0, 0, 0, 0.0); }) {
            run.template operator()<Costs>();
        }
    });
}

// Threads of a block that takes whole rows, or panels of columns: a warp has at least so many
// columns a thread.
inline int threads_for(std::int64_t columns, int each = 4, int most = usual_threads) {
    const std::int64_t warps = ceil_divide(columns, std::int64_t{each} * warp_size);
    return static_cast<int>(std::clamp<std::int64_t>(warps * warp_size, warp_size, most));
}

// Weights normalised, potentials to start from, the wanted eps.
template <class Queue>
void start(Queue& queue, const Batch& p);

// p.range, of a matrix of costs.
template <class Queue>
void find_range(Queue& queue, const Batch& p);

// Rows, and the partial sums of columns that finish_columns takes.
template <class Queue>
void sweep(Queue& queue, const Batch& p, Mode mode);

template <class Queue>
void finish_columns(Queue& queue, const Batch& p, Mode mode);

// Both marginals at the potentials as they are, but for the constant that hard ones leave open.
template <class Queue>
void check(Queue& queue, const Batch& p, bool last, std::int64_t iteration, double tol,
           double* errors);

// Potentials of points without mass; the results.
template <class Queue>
void complete(Queue& queue, const Batch& p, double* f, double* g, double* info);

}  // namespace curvkern::sinkhorn::device
