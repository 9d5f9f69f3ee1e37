// The order in which the nonzeros of a matrix are walked, and where in memory each value is.
#pragma once

#include <cstdint>
#include <vector>

#include "sparseconv/sparseconv.hpp"

namespace curvkern::sparseconv {

// A matrix of rows x columns with stored blocks of block_rows x block_columns values, in
// compressed rows of blocks.
struct Matrix {
    const std::int64_t* start;
    const std::int64_t* column;
    std::int64_t rows, columns, block_rows, block_columns;

    std::int64_t row_blocks() const { return rows / block_rows; }
    std::int64_t blocks() const { return start[row_blocks()]; }
    std::int64_t block_size() const { return block_rows * block_columns; }
};

struct Layout {
    bool transposed;  // walk W' instead
    bool by_blocks;   // rows of a block share loads
    int vectors;      // registers in a strip, which is how far channels are apart
    int parts;        // of rows, of about as many nonzeros each, for threads to share
};

// Of L1, for activations. What is packed at a time takes at most a quarter more, which
// chunk_bytes are enough for.
std::int64_t working_bytes();

class Plan {
  public:
    // Throws std::length_error where there are 2^32 values or more.
    Plan(const Matrix& matrix, const Layout& layout);

    std::int64_t rows() const { return rows_; }
    std::int64_t columns() const { return columns_; }
    std::int64_t pitch() const { return pitch_; }        // in bytes
    std::int64_t channels() const { return channels_; }  // in a chunk
    std::int64_t chunks() const { return chunks_; }
    int vectors() const { return vectors_; }
    int height() const { return height_; }
    int parts() const { return parts_; }
    std::int64_t entries() const { return static_cast<std::int64_t>(channel_.size()); }
    // Where the value at each place of the walk is stored.
    const std::vector<std::uint32_t>& source() const { return source_; }
    // `value` begins with that of the first place; element_bytes is the size of one.
    Piece piece(std::int64_t part, std::int64_t chunk, const void* value,
                std::int64_t element_bytes) const;
    std::int64_t first_value(std::int64_t part, std::int64_t chunk) const;

  private:
    struct Place {
        std::int64_t run, row, entry;
    };
    const Place& place(std::int64_t part, std::int64_t chunk) const {
        return place_[static_cast<std::size_t>(part * chunks_ + chunk)];
    }

    std::int64_t rows_, columns_, pitch_, channels_, chunks_;
    int vectors_, height_, parts_;
    std::vector<Run> run_;
    std::vector<std::int32_t> row_;
    std::vector<std::uint16_t> channel_;
    std::vector<std::uint32_t> source_;
    std::vector<Place> place_;  // where each piece begins, and the end
};

// Throws std::invalid_argument, in words that begin with the argument's name, where `start` and
// `column` are no compressed rows of such a matrix.
void check(const Matrix& matrix, std::int64_t starts, std::int64_t stored);

}  // namespace curvkern::sparseconv
