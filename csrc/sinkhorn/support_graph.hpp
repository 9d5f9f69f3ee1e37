// The nonzeros of a sparse transport plan, column by column, and the Newton step they define.
//
// The semi-dual of quadratically regularised transport, D(f) = a.f - sum_j conj_j(f - C_j), is
// piecewise quadratic: while the support S_j of no column changes,
//
//     gamma D''(f) = -L,   L = sum_j (diag 1_{S_j} - 1_{S_j} 1_{S_j}^T / |S_j|),
//
// the Laplacian of the graph whose cliques are the columns. A product with L takes one pass
// over the nonzeros.
#pragma once

#include <cstdint>
#include <vector>

#include "core/parallel.hpp"

namespace curvkern::sparsemax {

struct SupportGraph {
    std::int64_t rows = 0;
    std::vector<std::int64_t> start{0};  // of each column in `row` and `value`, and the end
    std::vector<std::int64_t> row;
    std::vector<double> value;

    void append(const SupportGraph& next);

    // y = (L + damping) x
    void multiply(const double* x, double damping, double* y) const;

    // Solves (L + damping) step = residual by conjugate gradients, preconditioned by the
    // diagonal, to a residual `tolerance` times smaller; returns the number of iterations, or
    // -1 where it was interrupted.
    std::int64_t solve(const double* residual, double damping, double tolerance,
                       std::int64_t max_iter, InterruptCheck interrupted, double* step) const;
};

}  // namespace curvkern::sparsemax
