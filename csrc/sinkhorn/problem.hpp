// A batch of problems laid out in a workspace that the caller owns.
#pragma once

#include <cstdint>
#include <vector>

#include "sinkhorn/sinkhorn.hpp"

namespace curvkern::sinkhorn {

// Shapes and raw pointers of a batch, as they come from Python. Costs are either a matrix
// (cost: (batch, n, m)) or points (x: (batch, n, dims), y: (batch, m, dims)).
struct Batch {
    Cost kind;
    std::int64_t batch, n, m;
    int dims = 0;
    bool narrow = false;  // points are float32
    const void *cost = nullptr, *x = nullptr, *y = nullptr;
    const double *a, *b, *eps, *rho;  // (batch, n), (batch, m), (batch,), (batch, 2)
    double scale = 1;

    bool has_points() const { return kind >= Cost::sqeuclidean; }
    bool has_float32() const { return kind == Cost::dense32 || (has_points() && narrow); }
};

// How the rows of one problem are shared out: chunks of `rows` rows, `slots` of them at a time.
// It depends on the shape alone, so results do not depend on the number of threads.
struct Shares {
    std::int64_t rows, chunks;
    int slots;
    Shares(std::int64_t n, std::int64_t m);
};

// float64 numbers that the workspace of a batch needs.
std::int64_t workspace_size(const Batch& batch);

// float64 numbers that the entries of one problem take, 0 where they are not stored.
std::int64_t store_size(const Batch& batch);

// Problem number `index` of the batch, in its part of the workspace: weights normalised,
// points in the layout of the kernels, potentials zero.
Problem make_problem(const Batch& batch, std::int64_t index, double* workspace);

// Sets slope, damping and inverse_rho for this eps.
void set_eps(Problem& problem, const Batch& batch, std::int64_t index, double eps);

}  // namespace curvkern::sinkhorn
