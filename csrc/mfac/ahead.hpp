// Fetching what is read next while there is something to compute.
#pragma once

#include <algorithm>
#include <cstdint>

#include "mfac/mfac.hpp"

namespace curvkern::mfac {

// The lines of columns j .. of rows, a few for each call of what computes: each row begins a
// page that no hardware prefetcher has seen.
class Ahead {
  public:
    // Nothing of columns beyond d.
    Ahead(std::int64_t j, std::int64_t columns, std::int64_t d, std::int64_t calls)
        : begin_(j),
          columns_(std::max<std::int64_t>(0, std::min(columns, d - j))),
          d_(d),
          calls_(calls) {}

    void add(const Window& window) {
        add({static_cast<const char*>(window.data), window.count, window.slot, window.stride,
             element_size(window.storage)});
    }
    void add(const Vectors& v) {
        add({static_cast<const char*>(v.data), v.k, nullptr, d_, v.is_float32 ? 4 : 8});
    }

    // The lines for one of the calls among which they are shared out.
    Lines next() {
        if (at_ == size_) return {};
        const Rows& rows = rows_[at_];
        const std::int64_t row = rows.slot != nullptr ? rows.slot[row_] : row_;
        const std::int64_t lines = (columns_ * rows.element + line - 1) / line;
        const Lines found{rows.data + row * rows.stride * rows.element + done_ * line,
                          std::min(share_, lines - done_)};
        done_ += found.count;
        if (done_ == lines) {
            done_ = 0;
            if (++row_ == rows.count) {
                row_ = 0;
                ++at_;
            }
        }
        return found;
    }

  private:
    static constexpr std::int64_t line = 64;

    struct Rows {
        const char* data;
        std::int64_t count;
        const std::int64_t* slot;  // null: 0, 1, ..
        std::int64_t stride, element;
    };

    void add(Rows rows) {
        if (rows.count == 0 || columns_ == 0) return;
        rows.data += begin_ * rows.element;
        rows_[size_++] = rows;
        // Shares that end with a row: a call has lines of one.
        const std::int64_t lines = (columns_ * rows.element + line - 1) / line;
        rows_in_all_ += rows.count;
        const std::int64_t pieces = std::max<std::int64_t>(1, calls_ / rows_in_all_);
        share_ = std::max(share_, (lines + pieces - 1) / pieces);
    }

    std::int64_t begin_, columns_, d_, calls_;
    Rows rows_[3];
    int size_ = 0, at_ = 0;
    std::int64_t row_ = 0, done_ = 0, rows_in_all_ = 0, share_ = 0;
};

}  // namespace curvkern::mfac
