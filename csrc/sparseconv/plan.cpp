#include "sparseconv/plan.hpp"

#include <unistd.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>

namespace curvkern::sparseconv {
namespace {

constexpr std::int64_t small_l1 = 32 << 10;

std::size_t at(std::int64_t i) {
    return static_cast<std::size_t>(i);
}

// visit(row of `height` rows, column, where the first of its values is stored) for all entries
// of W or of W'; those of a row by columns.
template <class Visit>
void for_entries(const Matrix& matrix, bool transposed, std::int64_t height, Visit visit) {
    const std::int64_t r = matrix.block_rows, c = matrix.block_columns;
    for (std::int64_t block_row = 0; block_row < matrix.row_blocks(); ++block_row) {
        for (std::int64_t n = matrix.start[block_row]; n < matrix.start[block_row + 1]; ++n) {
            const std::int64_t value = n * r * c, column = matrix.column[n];
            if (transposed) {
                for (std::int64_t j = 0; j < c; j += height) {
                    for (std::int64_t i = 0; i < r; ++i) {
                        visit((column * c + j) / height, block_row * r + i, value + i * c + j);
                    }
                }
            } else {
                for (std::int64_t i = 0; i < r; i += height) {
                    for (std::int64_t j = 0; j < c; ++j) {
                        visit((block_row * r + i) / height, column * c + j, value + i * c + j);
                    }
                }
            }
        }
    }
}

int height_of(std::int64_t block_rows) {
    return block_rows % 4 == 0 ? 4 : block_rows % 2 == 0 ? 2 : 1;
}

// How many channels are packed at a time: as few times as L1 allows, and each time about as
// many. The rest of L1 is for the streams of weights and sums. All channels at once need no
// sums, and may take a quarter more where L1 has 48 KiB: 112 to 672 channels of 14 x 14 pixels
// took 41 us in place of 47.
std::int64_t channels_of(std::int64_t columns, std::int64_t pitch) {
    const std::int64_t working = working_bytes(), most = working / pitch;
    const std::int64_t at_once = working == small_l1 ? working : working * 5 / 4;
    if (columns * pitch <= at_once) return std::max<std::int64_t>(1, columns);
    const std::int64_t chunks = std::max<std::int64_t>(1, (columns + most - 1) / most);
    return std::max<std::int64_t>(1, (columns + chunks - 1) / chunks);
}

std::string range(std::int64_t end) {
    return "[0, " + std::to_string(end) + ")";
}

}  // namespace

std::int64_t working_bytes() {
    static const std::int64_t bytes = [] {
        std::int64_t cache = 0;
#if defined(_SC_LEVEL1_DCACHE_SIZE)
        cache = sysconf(_SC_LEVEL1_DCACHE_SIZE);
#endif
        return cache >= (std::int64_t{48} << 10) ? std::int64_t{40} << 10 : small_l1;
    }();
    return bytes;
}

Plan::Plan(const Matrix& matrix, const Layout& layout)
    : rows_(layout.transposed ? matrix.columns : matrix.rows),
      columns_(layout.transposed ? matrix.rows : matrix.columns),
      pitch_(std::int64_t{layout.vectors} * table().register_bytes),
      channels_(channels_of(columns_, pitch_)),
      chunks_(std::max<std::int64_t>(1, (columns_ + channels_ - 1) / channels_)),
      vectors_(layout.vectors),
      height_(layout.by_blocks
                  ? height_of(layout.transposed ? matrix.block_columns : matrix.block_rows)
                  : 1),
      parts_(layout.parts) {
    const std::int64_t values = matrix.blocks() * matrix.block_size();
    if (values > std::numeric_limits<std::uint32_t>::max()) {
        throw std::length_error("the matrix stores 2^32 values or more");
    }
    const std::int64_t lines = rows_ / height_, cells = lines * chunks_;
    std::vector<std::int64_t> count(at(cells) + 1), total(at(lines) + 1);
    const auto cell = [&](std::int64_t line, std::int64_t column) {
        return at(line * chunks_ + column / channels_);
    };
    for_entries(matrix, layout.transposed, height_,
                [&](std::int64_t line, std::int64_t column, std::int64_t) {
                    ++count[cell(line, column)];
                    ++total[at(line) + 1];
                });
    std::partial_sum(total.begin(), total.end(), total.begin());

    // Lines of a part, then of a chunk, by how many entries they have.
    std::vector<std::int64_t> begin(at(cells));  // of a line's entries in a chunk
    std::vector<std::int32_t> order;
    std::int64_t entries = 0, first = 0;
    for (std::int64_t part = 0; part < parts_; ++part) {
        std::int64_t last = lines;
        if (part + 1 < parts_) {  // one more for each line: what it costs without entries
            const std::int64_t share = (total[at(lines)] + lines) * (part + 1) / parts_;
            last = first;
            while (last < lines && total[at(last + 1)] + last + 1 <= share) ++last;
        }
        for (std::int64_t chunk = 0; chunk < chunks_; ++chunk) {
            place_.push_back({static_cast<std::int64_t>(run_.size()),
                              static_cast<std::int64_t>(row_.size()), entries});
            const bool all = chunk == 0 || chunk + 1 == chunks_;  // rows that have none, too
            order.clear();
            for (std::int64_t line = first; line < last; ++line) {
                if (all || count[at(line * chunks_ + chunk)] > 0) {
                    order.push_back(static_cast<std::int32_t>(line));
                }
            }
            const auto entries_of = [&](std::int32_t line) {
                return count[at(std::int64_t{line} * chunks_ + chunk)];
            };
            std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
                return entries_of(a) < entries_of(b);
            });
            std::int64_t before = -1;
            for (const std::int32_t line : order) {
                const std::int64_t n = entries_of(line);
                if (n != before) run_.push_back({0, static_cast<std::int32_t>(n)});
                before = n;
                ++run_.back().rows;
                row_.push_back(line);
                begin[at(std::int64_t{line} * chunks_ + chunk)] = entries;
                entries += n;
            }
        }
        first = last;
    }
    place_.push_back({static_cast<std::int64_t>(run_.size()),
                      static_cast<std::int64_t>(row_.size()), entries});

    row_.resize(row_.size() + rows_ahead);  // any row, for those who look ahead
    channel_.resize(at(entries));
    source_.resize(at(entries * height_));
    const std::int64_t step = layout.transposed ? 1 : matrix.block_columns;
    for_entries(matrix, layout.transposed, height_,
                [&](std::int64_t line, std::int64_t column, std::int64_t value) {
                    const std::int64_t entry = begin[cell(line, column)]++;
                    channel_[at(entry)] = static_cast<std::uint16_t>(column % channels_);
                    for (std::int64_t h = 0; h < height_; ++h) {
                        source_[at(entry * height_ + h)] =
                            static_cast<std::uint32_t>(value + h * step);
                    }
                });
}

Piece Plan::piece(std::int64_t part, std::int64_t chunk, const void* value,
                  std::int64_t element_bytes) const {
    const Place& from = place(part, chunk);
    const Place& to = (&from)[1];
    return {run_.data() + from.run, to.run - from.run, row_.data() + from.row,
            channel_.data() + from.entry,
            static_cast<const char*>(value) + from.entry * height_ * element_bytes};
}

std::int64_t Plan::first_value(std::int64_t part, std::int64_t chunk) const {
    return place(part, chunk).entry * height_;
}

void check(const Matrix& matrix, std::int64_t starts, std::int64_t stored) {
    const auto refuse = [](const std::string& text) { throw std::invalid_argument(text); };
    const std::int64_t rows = matrix.row_blocks();
    const std::int64_t columns = matrix.columns / matrix.block_columns;
    if (starts != rows + 1) {
        refuse("crow must have length " + std::to_string(rows + 1) + ", got " +
               std::to_string(starts));
    }
    if (matrix.start[0] != 0) {
        refuse("crow must begin with 0, got " + std::to_string(matrix.start[0]));
    }
    for (std::int64_t i = 0; i < rows; ++i) {
        if (matrix.start[i + 1] < matrix.start[i]) {
            refuse("crow must not decrease, got " + std::to_string(matrix.start[i + 1]) +
                   " after " + std::to_string(matrix.start[i]));
        }
    }
    if (matrix.start[rows] != stored) {
        refuse("crow must end with the length of col, " + std::to_string(stored) + ", got " +
               std::to_string(matrix.start[rows]));
    }
    for (std::int64_t i = 0; i < rows; ++i) {
        std::int64_t before = -1;
        for (std::int64_t n = matrix.start[i]; n < matrix.start[i + 1]; ++n) {
            const std::int64_t column = matrix.column[n];
            if (column < 0 || column >= columns) {
                refuse("col must be in " + range(columns) + ", got " + std::to_string(column));
            }
            if (column <= before) {
                refuse("col must increase within each row, got " + std::to_string(column) +
                       " after " + std::to_string(before));
            }
            before = column;
        }
    }
}

}  // namespace curvkern::sparseconv
