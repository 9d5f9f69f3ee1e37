// What takes all columns of a window: the Gram matrix K = G G' and the diagonal of the inverse
// Fisher matrix. For F = lambda I + G'G / n and A = n lambda I + K = U'U, with R = U'^-1,
//
//     F^-1 = (I - W'W) / lambda,   W = R G,   [F^-1]_jj = (1 - |w_j|^2) / lambda
//
// (Woodbury; Frantar, Kurtic, Alistarh 2021, compute the same by a recursion over the rows that
// reads two matrices as large as G for each of them.) Either is m^2 d multiply-adds over two,
// and reads G once: 2 m d elements are the fewest bytes. R is inverted once, m^3 / 6, which
// turns a solve with d right-hand sides into products that wait for nothing.
//
// All sums are float64. Tiles of columns are copied to float64 in the order in which a block of
// registers takes them; nothing as large as G is made. Tiles, and the chunks of them that
// threads take, depend on the sizes alone and are added in their order.
#pragma once

#include <cstdint>

#include "core/isa.hpp"
#include "core/parallel.hpp"
#include "mfac/mfac.hpp"

namespace curvkern::mfac {

// out: (count, count). False when interrupted, here and below.
bool gram(const Window& window, double* out, InterruptCheck interrupted);

// out[j] = sum_i (sum_k root[i count + k] g_k[j])^2 for a lower triangular root.
bool whitened_squares(const Window& window, const double* root, double* out,
                      InterruptCheck interrupted);

// The diagonal of the inverse of F = damping I + G'G / norm, of which only blocks of `block`
// consecutive columns on the diagonal are kept: [F_b^-1]_jj = |R e_j|^2 with R = U'^-1,
// U'U = F_b, or for blocks with more columns than there are rows as above. m block d / 2
// multiply-adds and one read of G.
bool block_diagonal(const Window& window, std::int64_t block, double damping, double norm,
                    double* out, InterruptCheck interrupted);

// a (m, m), of which the upper triangle counts, becomes the factor U of a = U'U. Where a root
// is wanted it becomes U'^-1, (m, m): what U'^-1 does to a it does to the identity. No pivot's
// square falls below `least`, the smallest eigenvalue that a can have. Rows of both have
// `stride` elements if `is_padded`, and are worked on to their ends, which stay zero; else the
// root has m.
void factorize(double* a, std::int64_t stride, std::int64_t m, double least, double* root,
               bool is_padded = false);

// Panels are matrices (length, columns) in float64, one step's `columns` numbers after the
// other, filled with zeros. The register block is (rows, columns).
struct ColumnKernels {
    int rows, columns;
    // One panel of `size` steps from at most `columns` rows of a window: to[k columns + r]
    void (*pack_rows[3])(const void* const* row, std::int64_t count, std::int64_t size,
                         double* to);
    // Panels of `count` steps from the rows themselves: to[(p count + k) columns + c] holds
    // column p columns + c of row k
    void (*pack_columns[3])(const void* const* row, std::int64_t count, std::int64_t size,
                            double* to);
    // out[r stride + c] += sum_k a[k a_stride + r] b[k columns + c] for r < r_end, c < c_end
    void (*multiply)(std::int64_t size, const double* a, std::int64_t a_stride, const double* b,
                     double* out, std::int64_t stride, std::int64_t r_end, std::int64_t c_end);
    // The same with rows of b and out at one stride, term after term instead of sum after sum,
    // as a row at a time would do it; a_stride is `rows`
    void (*add_rows)(std::int64_t size, const double* a, const double* b, double* out,
                     std::int64_t stride, std::int64_t r_end, std::int64_t c_end, Lines ahead);
    // out[c] += sum_r (sum_k a[k rows + r] b[k columns + c])^2
    void (*squares)(std::int64_t size, const double* a, const double* b, double* out);
    // Row k of a and of the root, divided by the pivot and taken from the rows up to `end` so
    // often that their column k is zero
    void (*reduce)(double* a, std::int64_t stride, double* root, std::int64_t root_stride,
                   std::int64_t k, std::int64_t end, std::int64_t size, std::int64_t root_size);
};

#define CURVKERN_DECLARE(isa)              \
    namespace isa {                        \
    const ColumnKernels& column_kernels(); \
    }
CURVKERN_FOR_EACH_ISA(CURVKERN_DECLARE)
#undef CURVKERN_DECLARE

const ColumnKernels& column_table();  // of the instruction set in use

}  // namespace curvkern::mfac
