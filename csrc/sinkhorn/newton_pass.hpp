// One read of the cost matrix, one exponential per entry: what a Newton step needs to know of
// the plan. Compiled once per instruction set.
//
// In units of eps, with the weights inside: F_i = f_i / eps + log a_i, G_j = g_j / eps + log
// b_j, and the plan is P_ij = exp(F_i + G_j - C_ij / eps).
//
// Each row is brought to its own optimum given G. With penalty rho on the row marginal and
// lambda = rho / (rho + eps) (1 for a hard marginal) that is the soft c-transform
//     f_i / eps = -lambda log sum_j exp(G_j - C_ij / eps),
// computed relative to the F_i handed in, so that a good guess needs no search for the largest
// exponent. The column sums of the plan with these rows are then the only thing left to
// correct.
//
// Rows are cut into blocks; every block writes its own partial column sums and its own part of
// the sparse plan, which makes the result independent of the threads.
#pragma once

#include <cstdint>

#include "core/isa.hpp"

namespace curvkern::newton {

struct Sweep {
    std::int64_t m;
    const void* cost;  // (n, m) of the kernel's type; +inf: no mass there
    double inverse_eps;
    double lowest;        // exponents below count as none
    double lambda;        // rho / (rho + eps)
    bool fixed_rows;      // leave F as it is
    const double* a;      // (n,) weights; rows of weight 0 are skipped
    const double* log_a;  // (n,)
    const double* G;      // (m,) times log2(e)
    double* F;            // (n,) in: a guess; out: the optimum given G
    double* row_mass;     // (n,) row sums of the plan at the optimum
};

// The largest entries of a block of rows, in row order.
struct Gathered {
    double threshold;            // keeps P_ij > threshold * min(row mass, column_scale_j);
                                 // out: the one it was raised to
    const double* column_scale;  // (m,)
    std::int64_t
        capacity;  // entries, at least m; a full block raises its threshold and thins out
    std::int32_t* column;   // (capacity,)
    double* value;          // (capacity,)
    std::int64_t* row_end;  // (rows of the block,)
};

// Whole groups of the widest registers; what lies beyond m is scratch.
inline constexpr std::int64_t padded_columns(std::int64_t m) {
    return (m + 15) / 16 * 16;
}

// columns (padded_columns(m),): partial column sums, overwritten; scratch: one and a half times
// that. gathered may be null.
using SweepBlock = void (*)(const Sweep& sweep, std::int64_t begin, std::int64_t end,
                            double* columns, double* scratch, Gathered* gathered);

struct PassKernels {
    SweepBlock f32, f64;
};

#define CURVKERN_DECLARE(isa)          \
    namespace isa {                    \
    const PassKernels& pass_kernels(); \
    }
CURVKERN_FOR_EACH_ISA(CURVKERN_DECLARE)
#undef CURVKERN_DECLARE

}  // namespace curvkern::newton
