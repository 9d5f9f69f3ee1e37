// What the Sinkhorn family offers to its driver: one transport problem as plain pointers, and a
// table of kernels per instruction set.
//
// The plan is P_ij = a_i b_j 2^(phi_i + psi_j - slope C_ij): potentials are kept in units of
// eps / log2(e), phi = f log2(e) / eps, and slope = scale log2(e) / eps. Weights are kept
// normalised, a = mass_a * weight_a, so that sums stay near 1 whatever the masses are.
#pragma once

#include <cstdint>

#include "core/isa.hpp"

namespace curvkern::sinkhorn {

enum class Cost { dense64, dense32, sqeuclidean, euclidean, l1, count };
enum class Arithmetic { float64, float32, count };
inline constexpr int cost_count = static_cast<int>(Cost::count);
inline constexpr int arithmetic_count = static_cast<int>(Arithmetic::count);

inline constexpr std::int64_t alignment = 16;  // elements: whole vectors of every width
inline constexpr int rows_at_once = 4;
inline constexpr double log2_e = 1.4426950408889634, ln_2 = 0.6931471805599453;

inline constexpr std::int64_t padded(std::int64_t n) {
    return (n + alignment - 1) / alignment * alignment;
}

// One side of the problem. Arrays have padded(size) elements; those behind the end are zero.
struct Side {
    std::int64_t size;
    const double* weight;    // normalised: they sum to 1
    double* potential;       // phi or psi
    double* next;            // the updated potential
    double* base;            // the potential in the entries, see Problem::store
    double* factor;          // of columns: weight 2^(potential - base)
    float* factor32;         // the same; null where float32 arithmetic is not used
    double* residual;        // by a check: |marginal / weight - target|
    float *high, *low;       // potential in units of the cost as high + low, for float32
    double mass, log2_mass;  // the sum of the weights
    double damping;          // rho / (rho + eps); 1: hard marginal
    double inverse_rho;      // eps / rho; 0: hard marginal
};

struct Problem {
    Side a, b;
    int dims;
    const void* cost;                   // dense: (n, m), float64 or float32
    const double *x, *y_transposed;     // points: (n, dims) and (dims, padded(m))
    const float *x32, *y_transposed32;  // the same, for float32 arithmetic
    double slope;
    // Entries of all rows, padded(n) rows of padded(m), that stay from sweep to sweep: as long
    // as the potentials are near those they were made with, a sweep reads them in place of the
    // costs. Null where there is no room.
    void* store;
    bool stored;    // they are there, with the potentials a.base and b.base
    void* entries;  // without a store, by slot: the rows at work, rows_at_once * padded(m)
    void* sums;     // by slot: column sums after, and before, the update: 2 * padded(m)
    int slots;
};

// Rows [begin, end): updates a.next and adds to the column sums of the slot, which it clears
// first where told. A check also fills a.residual and the column sums before the update.
using Rows = void (*)(const Problem& p, std::int64_t begin, std::int64_t end, int slot,
                      bool clear, bool check);
// Columns [begin, end), begin a multiple of the alignment: b.next, and b.residual by a check.
using Columns = void (*)(const Problem& p, std::int64_t begin, std::int64_t end, bool check);

// What a pass over the plan computes besides its sums; see plan.hpp.
struct Products {
    int count;        // of columns of v and u
    const double* v;  // (count, padded(m)), or null
    const double* u;  // (count, padded(n)), or null
    double* pv;       // (count, padded(n)): P v
    double* ptu;      // by slot (count, padded(m)): the slot's share of P' u
    double* totals;   // (2, n): each row's sum P C and sum P log2(P / ab); or null
};
using PlanRows = void (*)(const Problem& p, const Products& products, std::int64_t begin,
                          std::int64_t end, int slot, bool clear);

// out (n, dims) = sum_j P_ij (u_i + w_j) dC_ij/dx_i for rows [begin, end), C without its scale;
// w has padded(m) elements
using GradientRows = void (*)(const Problem& p, const double* u, const double* w, double* out,
                              std::int64_t begin, std::int64_t end, int slot);

// The least and the largest finite cost of rows [begin, end).
using Range = void (*)(const Problem& p, std::int64_t begin, std::int64_t end, double* out);

// log2 sum_i weight_i 2^(-factor potential_i)
using LogSum = double (*)(const Side& side, const double* potential, double factor);

// high + low = potential / slope for both sides, on a grid that makes their sums exact.
using Split = void (*)(const Problem& p);

// The largest |potential - base|; fills `factor` (and `factor32`, where it is) if there is one.
using Drift = double (*)(const Side& side);

struct Kernels {
    Rows rows[cost_count][arithmetic_count];
    Columns columns[cost_count][arithmetic_count];
    PlanRows plan[cost_count];
    GradientRows gradient[cost_count];
    Range range[cost_count];
    LogSum log_sum;
    Split split;
    Drift drift;
};

#define CURVKERN_DECLARE(isa) \
    namespace isa {           \
    const Kernels& kernels(); \
    }
CURVKERN_FOR_EACH_ISA(CURVKERN_DECLARE)
#undef CURVKERN_DECLARE

}  // namespace curvkern::sinkhorn
