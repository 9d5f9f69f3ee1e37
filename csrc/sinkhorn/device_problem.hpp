// A batch of transport problems as the kernels of a GPU see it, in one workspace on the device.
//
// The plan is P_ij = a_i b_j 2^(phi_i + psi_j - slope C_ij) with phi = f log2(e) / eps, psi
// likewise and slope = scale log2(e) / eps. Weights are normalised, a_i = mass_a weight_i. All
// numbers are float64, costs alone may be stored as float32: on an H100 an entry's
// arithmetic (some 20 operations) takes less time than 4 bytes of memory do.
#pragma once

#include <cstdint>

#include "core/block.hpp"
#include "core/span.hpp"
#include "sinkhorn/sinkhorn.hpp"

namespace curvkern::sinkhorn::device {
CURVKERN_PER_ISA {

// One problem's numbers. float64 throughout, so that a tensor can hold them.
struct State {
    double slope, eps, target;  // eps at present and at the end of annealing
    double sweeps_left;         // at this eps
    double mass_a, mass_b, log2_mass_a, log2_mass_b;
    double damping_a, damping_b;          // rho / (rho + eps); 1: hard marginal
    double inverse_rho_a, inverse_rho_b;  // eps / rho; 0: hard marginal
    double error, iterations;             // by and at the last check
    double done, converged;

    CURVKERN_HD bool balanced() const { return inverse_rho_a == 0 && inverse_rho_b == 0; }
};

// What a kernel is given. Arrays have the batch as their first dimension.
struct Batch {
    Cost kind;
    std::int64_t batch, n, m;
    int dims;
    double scale;
    const void* cost;                     // (batch, n, m), or null
    const double *x, *y_transposed;       // (batch, n, dims), (batch, dims, m), or null
    const double *a, *b, *eps, *rho;      // (batch, n), (batch, m), (batch,), (batch, 2)
    const double *f, *g;                  // starts or potentials, or null
    const double* extent;                 // (batch,): bounds on the costs of points, or null
    State* state;                         // (batch,)
    double *weight_a, *phi, *residual_a;  // (batch, n)
    double *weight_b, *psi, *residual_b;  // (batch, m); residual_b: by a sweep, the last psi
    double* log2_weight_b;                // (batch, m); -inf without mass
    double* range;                        // (batch, slots, 2): least and largest cost
    double* partial;                      // (batch, parts, m) sums over some of the rows
    std::int64_t slots, rows;             // blocks a problem, rows a block
    std::int64_t parts, rows_of_part;
};

inline constexpr int most_rows = 4;  // at once in a block
inline constexpr std::int64_t least_rows = 16, most_slots = 264, most_parts = 16;
// Columns that the threads of a block can hold sums of, in registers.
inline constexpr std::int64_t most_columns = 40 * most_threads;

inline std::int64_t ceil_divide(std::int64_t a, std::int64_t b) {
    return (a + b - 1) / b;
}

// How rows are shared out: by the shape alone.
inline void share_rows(Batch& p) {
    const std::int64_t wanted = ceil_divide(p.n, most_slots);
    p.rows = ceil_divide(wanted < least_rows ? least_rows : wanted, most_rows) * most_rows;
    p.slots = ceil_divide(p.n, p.rows);
    p.parts = p.m <= most_columns || p.slots < most_parts ? p.slots : most_parts;
    p.rows_of_part = ceil_divide(p.slots, p.parts) * p.rows;
    p.parts = ceil_divide(p.n, p.rows_of_part);
}

// Places the arrays in `memory`; with null it only counts. Returns the float64 numbers used.
inline std::int64_t lay_out(Batch& p, double* memory) {
    static_assert(sizeof(State) % sizeof(double) == 0);
    share_rows(p);
    std::int64_t used = 0;
    const auto take = [&](std::int64_t each) {
        double* part = memory == nullptr ? nullptr : memory + used;
        used += checked_multiply(p.batch, each);
        return part;
    };
    p.state = reinterpret_cast<State*>(take(sizeof(State) / sizeof(double)));
    for (double** array : {&p.weight_a, &p.phi, &p.residual_a}) *array = take(p.n);
    for (double** array : {&p.weight_b, &p.psi, &p.residual_b, &p.log2_weight_b}) {
        *array = take(p.m);
    }
    p.range = take(2 * p.slots);
    p.partial = take(checked_multiply(p.parts, p.m));
    return used;
}

}  // namespace isa
}  // namespace curvkern::sinkhorn::device
