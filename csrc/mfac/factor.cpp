#include <algorithm>
#include <cmath>

#include "mfac/mfac.hpp"

namespace curvkern::mfac {
void drop_first(const Factor& factor, double* scratch) {
    const std::int64_t rest = factor.count - 1, stride = factor.stride;
    const Kernels& kernels = table();
    std::copy_n(factor.data + 1, rest, scratch);
    for (std::int64_t k = 0; k < rest; ++k) {
        // row k + 1 of the old factor becomes row k, a place to the left
        double* from = factor.data + (k + 1) * stride + k + 1;
        double* to = factor.data + k * stride + k;
        const double pivot = std::hypot(*from, scratch[k]);
        const double cosine = pivot / *from, sine = scratch[k] / *from;
        to[0] = pivot;
        kernels.rotate(cosine, sine, from + 1, scratch + k + 1, to + 1, rest - k - 1);
    }
}

void append(const Factor& factor, const double* column, double diagonal, double least) {
    const std::int64_t count = factor.count, stride = factor.stride;
    double* y = factor.data + count * stride;  // the row below, free as yet
    std::copy_n(column, count, y);
    solve(factor, y, true);
    const double schur = diagonal - table().inner(y, y, count);
    for (std::int64_t k = 0; k < count; ++k) factor.data[k * stride + count] = y[k];
    std::fill_n(y, count, 0.0);
    y[count] = std::sqrt(std::max(schur, least));
}

void solve(const Factor& factor, double* b, bool only_first) {
    const std::int64_t count = factor.count, stride = factor.stride;
    const Kernels& kernels = table();
    for (std::int64_t k = 0; k < count; ++k) {
        const double* row = factor.data + k * stride;
        b[k] /= row[k];
        kernels.axpy(-b[k], row + k + 1, b + k + 1, count - k - 1);
    }
    if (only_first) return;
    for (std::int64_t k = count - 1; k >= 0; --k) {
        const double* row = factor.data + k * stride;
        b[k] = (b[k] - kernels.inner(row + k + 1, b + k + 1, count - k - 1)) / row[k];
    }
}

}  // namespace curvkern::mfac
