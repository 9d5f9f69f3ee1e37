// Projection of a row onto the scaled simplex, at most k of its entries allowed to be positive.
//
//     p = argmin |p - z|^2  over  p >= 0, sum p = s, |p|_0 <= k
//       = max(z - tau, 0) on the k largest entries, where sum p = s fixes tau
//
// A. Martins and R. Astudillo, "From Softmax to Sparsemax", ICML 2016 (s = 1, any k); the k
// largest: A. Kyrillidis et al., "Sparse projections onto the simplex", ICML 2013. Without a
// sort: phi(t) = sum max(z - t, 0) - s is convex, decreasing and piecewise linear, so Newton's
// method from the left of its root, where all entries that can matter count, moves right and
// ends after finitely many steps (C. Michelot, 1986). tau >= max z - s, so most entries never
// take part.
//
// All is relative to the largest entry, d = z - max z, in float64 for both dtypes. The
// threshold is t + low, low the last Newton correction: where d - t cancels, it does so
// exactly, and the sum is s to rounding, however many entries share it. Errors: |p - exact| <=
// 2 eps s before the rounding to the dtype, |sum p - s| <= 4 eps s.
#pragma once

#include "core/twin.hpp"

namespace curvkern::sparsemax {
CURVKERN_PER_ISA {

// A row of k or fewer nonzeros: entries with z > cut, and the first `ties` with z = cut.
struct Threshold {
    double top;             // the largest entry
    double t = 0, low = 0;  // tau = top + t + low
    double cut = -__builtin_huge_val();
    std::int64_t ties = 0;

    CURVKERN_HD double tau() const { return top + (t + low); }
};

// sum + low, and number, of the positive parts d - t
struct Positive {
    double sum, low, count;
};

// From `at`, measured at t, to the root of the piece of phi that holds t.
CURVKERN_HD double correction(Positive at, double mass) {
    return ((at.sum - mass) + at.low) / (at.count > 0 ? at.count : 1);
}

// The largest entry decides about rows that have no threshold: NaN where one is NaN or all are
// -inf; at +inf the limit, all mass on the infinite entries.
enum class Kind { ordinary, empty, infinite, undefined };

CURVKERN_HD Kind kind_of(double top, bool has_nan, double mass) {
    if (has_nan || top == -__builtin_huge_val() || mass != mass) return Kind::undefined;
    if (mass == 0) return Kind::empty;
    return top == __builtin_huge_val() ? Kind::infinite : Kind::ordinary;
}

}  // namespace isa
}  // namespace curvkern::sparsemax
