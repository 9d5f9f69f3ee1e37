#include <algorithm>
#include <cmath>
#include <vector>

#include "mfac/columns.hpp"

namespace curvkern::mfac {
namespace {

// Rows that are eliminated together: whole panels and blocks of registers, whatever those are.
constexpr std::int64_t together = 48;

// M[begin .. end) -= U[0 .. begin)[., begin .. end)' M[0 .. begin) for columns from `column`
// on, panel by panel. `left` are the panels of U from column `begin` on.
void eliminate(const ColumnKernels& kernels, const double* left, const double* right,
               std::int64_t begin, std::int64_t end, double* m, std::int64_t stride,
               std::int64_t column, std::int64_t last) {
    const std::int64_t wide = kernels.columns;
    std::vector<double> sum(static_cast<std::size_t>(together * wide));
    for (; column < last; column += wide, right += begin * wide) {
        std::fill(sum.begin(), sum.end(), 0.0);
        for (std::int64_t r = 0; r < end - begin; r += kernels.rows) {
            kernels.multiply(begin, left + r / wide * wide * begin + r % wide, wide, right,
                             sum.data() + r * wide, wide, kernels.rows, wide);
        }
        const std::int64_t valid = std::min(wide, last - column);
        for (std::int64_t r = 0; r < end - begin; ++r) {
            double* row = m + (begin + r) * stride + column;
            for (std::int64_t j = 0; j < valid; ++j) {
                row[j] -= sum[static_cast<std::size_t>(r * wide + j)];
            }
        }
    }
}

}  // namespace

void factorize(double* a, std::int64_t stride, std::int64_t m, double least, double* root,
               bool is_padded) {
    const ColumnKernels& columns = column_table();
    const std::int64_t size = is_padded ? stride : m, root_stride = size;
    const auto pack = [&](const double* matrix, std::int64_t step, std::int64_t count,
                          std::int64_t width) {
        const std::int64_t panels = (width + columns.columns - 1) / columns.columns;
        std::vector<double> packed(static_cast<std::size_t>(panels * columns.columns * count));
        std::vector<const void*> row(static_cast<std::size_t>(count));
        for (std::int64_t k = 0; k < count; ++k) {
            row[static_cast<std::size_t>(k)] = matrix + k * step;
        }
        columns.pack_columns[static_cast<int>(Storage::float64)](row.data(), count, width,
                                                                 packed.data());
        return packed;
    };
    if (root != nullptr) {
        std::fill_n(root, m * root_stride, 0.0);
        for (std::int64_t k = 0; k < m; ++k) root[k * root_stride + k] = 1;
    }
    for (std::int64_t begin = 0; begin < m; begin += together) {
        const std::int64_t end = std::min(m, begin + together);
        if (begin > 0) {
            const std::vector<double> upper = pack(a + begin, stride, begin, m - begin);
            eliminate(columns, upper.data(), upper.data(), begin, end, a, stride, begin, m);
            if (root != nullptr) {
                const std::vector<double> lower = pack(root, root_stride, begin, begin);
                eliminate(columns, upper.data(), lower.data(), begin, end, root, root_stride, 0,
                          begin);
            }
        }
        for (std::int64_t k = begin; k < end; ++k) {
            double& pivot = a[k * stride + k];
            pivot = std::sqrt(std::max(pivot, least));
            const std::int64_t lead = std::min(size, k / 8 * 8 + 8);
            const std::int64_t root_size = root == nullptr ? 0 : is_padded ? lead : k + 1;
            columns.reduce(a, stride, root, root_stride, k, end, size, root_size);
        }
    }
}

}  // namespace curvkern::mfac
