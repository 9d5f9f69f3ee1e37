// Tiles of columns, as panels of what a block of registers takes: see columns.hpp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "mfac/columns.hpp"
#include "mfac/numbers.hpp"
#include "mfac/passes.hpp"

namespace curvkern::mfac {

// Columns of a tile, of which a panel fits the first cache; numbers of a tile that the second
// holds; columns of a panel at most.
inline constexpr std::int64_t steps = 128, buffer = 131072;
inline constexpr int most_columns = 32;

inline std::int64_t divided(std::int64_t a, std::int64_t b) {
    return (a + b - 1) / b;
}

// Pointers to `count` rows of a window, from a column on.
inline void point(const Window& window, std::int64_t first, std::int64_t count,
                  std::int64_t column, const void** row) {
    for (std::int64_t i = 0; i < count; ++i) row[i] = element(window, first + i, column);
}

// The tiles of K = G G' above the diagonal, from panels of rows, for columns from `first` on.
class Gram {
  public:
    Gram(const Window& window, std::int64_t first, std::int64_t columns)
        : window_(window),
          first_(first),
          columns_(columns),
          panels_(divided(window.count, kernels_.columns)) {}

    std::int64_t panels() const { return panels_; }
    std::int64_t tile_size() const { return panels_ * kernels_.columns * steps; }
    std::int64_t tiles() const { return divided(columns_, steps); }

    // Panel p of a tile of columns, into the place of the tile in a buffer.
    void pack(std::int64_t tile, std::int64_t p, double* to) const {
        const std::int64_t first = p * kernels_.columns;
        const std::int64_t count =
            std::min<std::int64_t>(kernels_.columns, window_.count - first);
        const void* row[most_columns];
        point(window_, first, count, first_ + tile * steps, row);
        kernels_.pack_rows[static_cast<int>(window_.storage)](row, count, width(tile),
                                                              to + first * steps);
    }

    // Adds columns p of K, down to the diagonal.
    void multiply(std::int64_t tile, std::int64_t p, const double* packed, double* out) const {
        const std::int64_t wide = kernels_.columns, m = window_.count;
        const std::int64_t end = std::min(m, (p + 1) * wide);
        for (std::int64_t i = 0; i < end; i += kernels_.rows) {
            kernels_.multiply(width(tile), packed + i / wide * wide * steps + i % wide, wide,
                              packed + p * wide * steps, out + i * m + p * wide, m,
                              std::min<std::int64_t>(kernels_.rows, m - i),
                              std::min(wide, m - p * wide));
        }
    }

  private:
    std::int64_t width(std::int64_t tile) const {
        return std::min(steps, columns_ - tile * steps);
    }

    const ColumnKernels& kernels_ = column_table();
    const Window& window_;
    std::int64_t first_, columns_, panels_;
};

// |R g_j|^2 for the columns g_j of a window, from panels of columns.
class Squares {
  public:
    struct Scratch {
        explicit Scratch(const Squares& work)
            : packed(work.window_.count * work.tile_),
              sums(work.tile_),
              row(static_cast<std::size_t>(work.window_.count)) {}
        Numbers packed, sums;
        std::vector<const void*> row;
    };

    Squares(const Window& window, const double* root)
        : window_(window), panels_(divided(window.count, kernels_.rows)) {
        const std::int64_t m = window.count, high = kernels_.rows, wide = kernels_.columns;
        tile_ = std::clamp<std::int64_t>(buffer / (std::max<std::int64_t>(m, 1) * wide), 1, 8) *
                wide;
        roots_.resize(start(panels_));
        for (std::int64_t i = 0; i < m; ++i) {
            double* to = roots_.data() + start(i / high) + i % high;
            for (std::int64_t k = 0; k <= i; ++k) to[k * high] = root[i * m + k];
        }
    }

    std::int64_t tile() const { return tile_; }

    // The squares of a tile of columns, into `sums`.
    void compute(std::int64_t first, std::int64_t size, Scratch& scratch) const {
        const std::int64_t m = window_.count, wide = kernels_.columns;
        point(window_, 0, m, first, scratch.row.data());
        kernels_.pack_columns[static_cast<int>(window_.storage)](scratch.row.data(), m, size,
                                                                 scratch.packed.data());
        std::fill_n(scratch.sums.data(), tile_, 0.0);
        for (std::int64_t p = 0; p < panels_; ++p) {
            for (std::int64_t c = 0; c < size; c += wide) {
                kernels_.squares(std::min<std::int64_t>(m, (p + 1) * kernels_.rows),
                                 roots_.data() + start(p), scratch.packed.data() + c * m,
                                 scratch.sums.data() + c);
            }
        }
    }

  private:
    // Panel p has rows p `rows` .. of the root, as many steps as its last one is long.
    std::int64_t start(std::int64_t p) const {
        return std::int64_t{kernels_.rows} * kernels_.rows * p * (p + 1) / 2;
    }

    const ColumnKernels& kernels_ = column_table();
    const Window& window_;
    std::int64_t panels_, tile_;
    Numbers roots_;
};

}  // namespace curvkern::mfac
