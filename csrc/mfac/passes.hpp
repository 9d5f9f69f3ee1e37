// What the passes over a window share: where its pieces are, and how columns are cut.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "mfac/mfac.hpp"

namespace curvkern::mfac {

// Blocks of whole units are what a thread takes; there are at most most_blocks.
constexpr std::int64_t unit = 1024, most_blocks = 128;

constexpr int rows = 4;  // that are worked on together

// How many vectors go through registers together with rows as they are stored.
constexpr std::int64_t few = 2;

inline std::int64_t block_size(std::int64_t d) {
    const std::int64_t units = (d + unit - 1) / unit;
    return std::max<std::int64_t>(8, (units + most_blocks - 1) / most_blocks) * unit;
}

inline int index(Storage storage) {
    return static_cast<int>(storage);
}
inline int index(const Vectors& v) {
    return index(v.is_float32 ? Storage::float32 : Storage::float64);
}

inline char* element(const Window& window, std::int64_t i, std::int64_t column) {
    return static_cast<char*>(window.data) +
           (window.slot[i] * window.d + column) * element_size(window.storage);
}
inline char* element(const Vectors& v, std::int64_t d, std::int64_t r, std::int64_t column) {
    return static_cast<char*>(v.data) + (r * d + column) * (v.is_float32 ? 4 : 8);
}

// What a window is multiplied by: the incoming row first, if there is one, then vectors.
struct RightSides {
    const Window& window;
    const Vectors& v;
    const Vectors* incoming;
    std::int64_t into;

    std::int64_t count() const { return v.k + (incoming != nullptr ? 1 : 0); }
    // Their columns from j on in float64, `stride` apart; the incoming row is stored on the
    // way.
    void widen(std::int64_t j, std::int64_t width, std::int64_t stride, double* to) const;
};

// Calls body(begin, end, sums) for blocks of columns, with sums (count, k) of the block's own,
// and adds those in their order: out[r count + i].
template <class Body>
bool sum_blocks(const Window& window, std::int64_t k, double* out, InterruptCheck interrupted,
                Body body) {
    const std::int64_t d = window.d, count = window.count, size = block_size(d);
    const std::int64_t blocks = (d + size - 1) / size;
    std::vector<double> partial(static_cast<std::size_t>(blocks * count * k), 0.0);
    const bool finished =
        parallel_chunks(d, size, interrupted, [&](std::int64_t begin, std::int64_t end) {
            body(begin, end, partial.data() + begin / size * count * k);
        });
    for (std::int64_t r = 0; r < k; ++r) {
        for (std::int64_t i = 0; i < count; ++i) {
            double sum = 0;
            for (std::int64_t block = 0; block < blocks; ++block) {
                sum += partial[static_cast<std::size_t>((block * count + i) * k + r)];
            }
            out[r * count + i] = sum;
        }
    }
    return finished;
}

// out_r = sum_r + alpha v_r, if there is a v, over columns from j on; sums are `stride` apart.
void finish_sums(const Vectors* v, double alpha, const Vectors& out, std::int64_t d,
                 std::int64_t j, std::int64_t width, std::int64_t stride, double* sum);

// The passes for more vectors than fit beside rows in registers.
bool products_of_many(const RightSides& right, double* out, InterruptCheck interrupted);
bool combine_many(const Window& window, const double* coefficient, double alpha,
                  const Vectors* v, const Vectors& out, InterruptCheck interrupted);

}  // namespace curvkern::mfac
