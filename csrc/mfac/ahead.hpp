// Fetching what is read next while there is something to compute.
#pragma once

#include <algorithm>
#include <cstdint>

#include "mfac/mfac.hpp"

namespace curvkern::mfac {

// The lines of columns j .. of rows, a few at each call of fetch(), into the second cache: each
// row begins a page that no hardware prefetcher has seen.
class Ahead {
  public:
    // Nothing of columns beyond d.
    Ahead(std::int64_t j, std::int64_t columns, std::int64_t d, std::int64_t calls)
        : begin_(j),
          columns_(std::max<std::int64_t>(0, std::min(columns, d - j))),
          d_(d),
          calls_(std::max<std::int64_t>(calls, 1)) {}  // none without rows

    void add(const Window& window) {
        add(window.data, window.count, window.slot, element_size(window.storage));
    }
    void add(const Vectors& v) { add(v.data, v.k, nullptr, v.is_float32 ? 4 : 8); }

    // One of the calls among which the lines are shared out.
    void fetch() {
        for (std::int64_t left = share_; left > 0 && at_ < size_;) {
            const Rows& rows = rows_[at_];
            const std::int64_t row = rows.slot != nullptr ? rows.slot[row_] : row_;
            const char* from = rows.data + row * d_ * rows.element;
            const std::int64_t bytes = columns_ * rows.element;
            for (; left > 0 && done_ < bytes; --left, done_ += line) {
                __builtin_prefetch(from + done_, 0, 2);
            }
            if (done_ < bytes) return;
            done_ = 0;
            if (++row_ == rows.count) {
                row_ = 0;
                ++at_;
            }
        }
    }

  private:
    static constexpr std::int64_t line = 64;

    struct Rows {
        const char* data;  // column begin_ of row 0
        std::int64_t count;
        const std::int64_t* slot;  // null: 0, 1, ..
        std::int64_t element;
    };

    void add(const void* data, std::int64_t count, const std::int64_t* slot,
             std::int64_t element) {
        if (count == 0 || columns_ == 0) return;
        rows_[size_++] = {static_cast<const char*>(data) + begin_ * element, count, slot,
                          element};
        lines_ += count * (columns_ * element / line + 1);
        share_ = (lines_ + calls_ - 1) / calls_;
    }

    std::int64_t begin_, columns_, d_, calls_;
    Rows rows_[3];
    int size_ = 0, at_ = 0;
    std::int64_t row_ = 0, done_ = 0, lines_ = 0, share_ = 0;
};

}  // namespace curvkern::mfac
