// A plane of a depthwise convolution, band after band in its buffer. Compiled once per
// instruction set.
#pragma once

#include "sparseconv/depthwise.hpp"
#include "sparseconv/padded_rows.hpp"

namespace curvkern::sparseconv {
CURVKERN_PER_ISA {

// visit(first, count) with what these rows of the output see of a plane of x in the buffer.
template <class S, class Visit>
CURVKERN_HD void for_bands(const Depthwise& d, const Bands& bands, std::int64_t plane,
                           Wide<S>* buffer, Visit visit) {
    const S* x = static_cast<const S*>(d.x) + plane * d.x_plane - d.x_row * d.width;
    const PaddedRow shape{d.width, d.left, d.stride, bands.columns};
    const std::int64_t reach = (d.kernel_height - 1) * d.dilation + 1;
    for (std::int64_t first = d.begin; first < d.end; first += bands.rows) {
        const std::int64_t left = d.end - first;
        const std::int64_t count = left < bands.rows ? left : bands.rows;
        for (std::int64_t i = 0; i < (count - 1) * d.stride + reach; ++i) {
            const std::int64_t row = first * d.stride + i - d.top;
            const S* from = row >= 0 && row < d.height ? x + row * d.width : nullptr;
            copy_row(shape, from, buffer + i * bands.row_size);
        }
        visit(first, count);
    }
}

}  // namespace isa
}  // namespace curvkern::sparseconv
