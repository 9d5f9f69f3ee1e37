// Products with the plan of given potentials, and sums over it, without storing it.
#pragma once

#include "core/parallel.hpp"
#include "sinkhorn/problem.hpp"

namespace curvkern::sinkhorn {

struct PlanArguments {
    const double *f, *g;        // (batch, n), (batch, m)
    std::int64_t count = 0;     // columns of v and u
    const double* v = nullptr;  // (batch, m, count)
    const double* u = nullptr;  // (batch, n, count)
    double* pv = nullptr;       // (batch, n, count): P v
    double* ptu = nullptr;      // (batch, m, count): P' u
    double* totals = nullptr;   // (batch, 2): sum P C, sum P log(P / ab)
};

std::int64_t plan_workspace_size(const Batch& batch, std::int64_t count);

// Both return false when interrupted.
bool plan_products(const Batch& batch, const PlanArguments& arguments,
                   InterruptCheck interrupted, double* workspace);

// out (batch, n, dims) = sum_j P_ij (u_i + w_j) dC_ij/dx_i; u (batch, n), w (batch, m)
bool points_gradient(const Batch& batch, const double* f, const double* g, const double* u,
                     const double* w, double* out, InterruptCheck interrupted,
                     double* workspace);

}  // namespace curvkern::sinkhorn
