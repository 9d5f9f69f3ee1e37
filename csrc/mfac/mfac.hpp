// The passes over a window of gradients, and the small algebra beside them.
//
// A window holds m gradients of length d as rows g_i of G, in float64, float32 or bfloat16;
// sums are float64 whatever the storage, without which a small damping leaves no digit
// (Frantar, Kurtic, Alistarh, "M-FAC: Efficient Matrix-Free Approximations of Second-Order
// Information", NeurIPS 2021, whose recursions lose them). An exact inverse-Hessian-vector
// product reads G twice: the coefficients G v depend on every column, and the sum of c_i g_i
// needs every column again. So 2 m d elements are the fewest bytes; for one vector or two the
// operations, two an element and a pass, hide behind them. More go through blocks of registers
// (many.cpp), bound by arithmetic.
//
// Columns are cut into blocks that depend on d alone, whose sums are added in their order: no
// result depends on the number of threads.
#pragma once

#include <cstdint>

#include "core/isa.hpp"
#include "core/parallel.hpp"

namespace curvkern::mfac {

enum class Storage { float64, float32, bfloat16 };

constexpr std::int64_t element_size(Storage storage) {
    return storage == Storage::float64 ? 8 : storage == Storage::float32 ? 4 : 2;
}

// Rows slot[0], slot[1], .. slot[count - 1] of a matrix with rows of d elements, whose starts
// are `stride` apart: more than d for some columns of a wider one.
struct Window {
    void* data;
    Storage storage;
    std::int64_t d, stride;
    const std::int64_t* slot;
    std::int64_t count;
};

// k vectors of length d, one after the other, in float64 or float32.
struct Vectors {
    void* data;
    bool is_float32;
    std::int64_t k;
};

// out[r count + i] = g_i . v_r. Where `incoming` is given it is written to row `slot[into]`
// first, rounded to the window's storage, and is itself the first vector, as it was rounded;
// its products come before those of v. All three return false when interrupted.
bool products(const Window& window, const Vectors& v, const Vectors* incoming,
              std::int64_t into, double* out, InterruptCheck interrupted);

// out_r = alpha v_r + sum_i coefficient[r count + i] g_i. One vector or two begin with the last
// columns: those are what the cache still holds of the pass before. v may be null where alpha
// is 0.
bool combine(const Window& window, const double* coefficient, double alpha, const Vectors* v,
             const Vectors& out, InterruptCheck interrupted);

// Is every element finite, also once rounded to the storage?
bool is_finite(const Vectors& v, std::int64_t d, Storage storage);

// The factor U of A = U' U, upper triangular, rows one after the other at a stride.
struct Factor {
    double* data;
    std::int64_t stride, count;
};

// Leaves out the first row and column of A: U_1' U_1 + u u' of what remains is an update, never
// a downdate, so nothing cancels (Golub, Van Loan, Matrix Computations, 6.5.4).
void drop_first(const Factor& factor, double* scratch);

// Appends a row and column to A. No pivot falls below `least`, the smallest eigenvalue that A
// can have: below it there is rounding only.
void append(const Factor& factor, const double* column, double diagonal, double least);

// b <- U'^-1 b, and then, if wanted, U^-1 of that.
void solve(const Factor& factor, double* b, bool only_first);

// Columns over which products are summed in registers. It divides every tile, so a product
// does not depend on how many vectors came along.
constexpr std::int64_t run = 512;

// Lines that a kernel fetches into the second cache on its way, one every other step, so that
// they do not wait for each other.
struct Lines {
    const char* from = nullptr;
    std::int64_t count = 0;
};

// What is compiled once per instruction set. `v` is a tile in float64.
struct Kernels {
    // out[r] += v_r . row over `size` columns, for four rows, which four follow that come next;
    // v_r at a stride
    void (*dot[3])(const void* const* row, std::int64_t size, const double* v,
                   std::int64_t stride, std::int64_t k, double* const* out);
    // The same from four rows in float64, for up to `together` vectors at a time
    int together;
    void (*dot_many)(const double* const* row, std::int64_t size, const double* v,
                     std::int64_t stride, std::int64_t k, double* const* out, Lines ahead);
    // sum += c_0 row_0 + .. c_3 row_3
    void (*add[3])(const void* const* row, std::int64_t size, const double* coefficient,
                   double* sum);
    // to float64, and back to a storage
    void (*widen[3])(const void* from, double* to, std::int64_t size);
    void (*narrow[3])(const double* from, void* to, std::int64_t size);
    // to = sum + alpha v, or the sum without v; in float64 or float32 each
    void (*finish[2][2])(const double* sum, double alpha, const void* v, std::int64_t size,
                         void* to);
    // y += a x, and x . y
    void (*axpy)(double a, const double* x, double* y, std::int64_t size);
    double (*inner)(const double* x, const double* y, std::int64_t size);
    // x, y <- (x + s y) / c, c y - s x': one row of drop_first
    void (*rotate)(double c, double s, double* x, double* y, double* to, std::int64_t size);
};

#define CURVKERN_DECLARE(isa) \
    namespace isa {           \
    const Kernels& kernels(); \
    }
CURVKERN_FOR_EACH_ISA(CURVKERN_DECLARE)
#undef CURVKERN_DECLARE

const Kernels& table();  // of the instruction set in use

}  // namespace curvkern::mfac
