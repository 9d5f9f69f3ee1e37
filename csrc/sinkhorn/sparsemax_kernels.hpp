// What the projection onto the simplex offers to the binding layer: a table per instruction
// set.
#pragma once

#include <cstdint>

#include "core/isa.hpp"

namespace curvkern::sparsemax {

// p (rows, n), tau and support (rows,) from z (rows, n) and mass (rows,). p is the scratch,
// too.
template <class T>
using Project = void (*)(const T* z, const double* mass, std::int64_t k, T* p, double* tau,
                         double* support, std::int64_t rows, std::int64_t n);

// out = v (grad - mean of grad over v), v the entries with p > 0, row by row: the Jacobian of
// the projection, which is symmetric, times grad.
template <class T>
using Jacobian = void (*)(const T* p, const T* grad, T* out, std::int64_t rows, std::int64_t n);

// What one column of a sparse plan leaves: its nonzeros in the order of their rows.
struct Column {
    double tau, square;  // the threshold, and the sum of the squared entries
    std::int64_t count;
    const std::int64_t* row;
    const double* value;
};

// Projects f - cost[j] onto the simplex of size mass[j], k nonzeros, for columns [begin, end)
// of cost (m, n), and shows each to `visit`. scratch: 3 n doubles, rows: n integers.
using Visit = void (*)(void* context, std::int64_t j, const Column& column);
using Columns = void (*)(const double* cost, const double* f, const double* mass,
                         std::int64_t k, std::int64_t begin, std::int64_t end, std::int64_t n,
                         double* scratch, std::int64_t* rows, Visit visit, void* context);

struct Kernels {
    Project<double> project_f64;
    Project<float> project_f32;
    Jacobian<double> jacobian_f64;
    Jacobian<float> jacobian_f32;
    Columns columns;
};

#define CURVKERN_DECLARE(isa) \
    namespace isa {           \
    const Kernels& kernels(); \
    }
CURVKERN_FOR_EACH_ISA(CURVKERN_DECLARE)
#undef CURVKERN_DECLARE

}  // namespace curvkern::sparsemax
