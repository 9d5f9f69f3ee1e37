#include "mfac/passes.hpp"

#include <algorithm>
#include <atomic>

#include "mfac/numbers.hpp"

namespace curvkern::mfac {
namespace {

// Rows go past a tile of one vector in float64, which stays in the first cache, four at a time.
constexpr std::int64_t tile = 4096;

// Windows up to this size lie in a cache, where fetching ahead costs more than it saves.
constexpr std::int64_t cached = std::int64_t{32} << 20;

// The rows i .. i + 3 of the window from a column on, beyond the last one that again, and the
// four that are read next: the following ones, or the first ones from column `then` on.
struct Four {
    const void* row[2 * rows];
    int valid;
    Four(const Window& window, std::int64_t i, std::int64_t column, std::int64_t then) {
        const bool is_last = i + rows >= window.count;
        const bool is_cached =
            window.count * window.stride * element_size(window.storage) <= cached;
        valid = static_cast<int>(std::min<std::int64_t>(rows, window.count - i));
        for (int at = 0; at < rows; ++at) {
            const std::int64_t now = i + std::min(at, valid - 1);
            const std::int64_t next =
                std::min<std::int64_t>(is_last ? at : i + rows + at, window.count - 1);
            row[at] = element(window, now, column);
            row[rows + at] =
                is_cached ? row[at] : element(window, next, is_last ? then : column);
        }
    }
};

}  // namespace

const Kernels& table() {
    return CURVKERN_SELECT_ISA(, ::kernels());
}

void finish_sums(const Vectors* v, double alpha, const Vectors& out, std::int64_t d,
                 std::int64_t j, std::int64_t width, std::int64_t stride, double* sum) {
    const int from = v == nullptr ? 0 : index(*v);
    const auto finish = table().finish[from][index(out)];
    for (std::int64_t r = 0; r < out.k; ++r, sum += stride) {
        finish(sum, alpha, v == nullptr ? nullptr : element(*v, d, r, j), width,
               element(out, d, r, j));
    }
}

void RightSides::widen(std::int64_t j, std::int64_t width, std::int64_t stride,
                       double* to) const {
    const Kernels& kernels = table();
    if (incoming != nullptr) {
        char* row = element(window, into, j);
        kernels.widen[index(*incoming)](element(*incoming, window.d, 0, j), to, width);
        kernels.narrow[index(window.storage)](to, row, width);
        kernels.widen[index(window.storage)](row, to, width);
        to += stride;
    }
    for (std::int64_t r = 0; r < v.k; ++r, to += stride) {
        kernels.widen[index(v)](element(v, window.d, r, j), to, width);
    }
}

bool products(const Window& window, const Vectors& v, const Vectors* incoming,
              std::int64_t into, double* out, InterruptCheck interrupted) {
    const RightSides right{window, v, incoming, into};
    const std::int64_t d = window.d, count = window.count, k = right.count();
    if (k > few) return products_of_many(right, out, interrupted);
    const auto dot = table().dot[index(window.storage)];
    const std::int64_t step = tile / std::max<std::int64_t>(k, 1);
    return sum_blocks(
        window, k, out, interrupted, [&](std::int64_t begin, std::int64_t end, double* sums) {
            Numbers vector(tile);
            double rest[rows - 1][few] = {};
            for (std::int64_t j = begin; j < end; j += step) {
                const std::int64_t width = std::min(step, end - j);
                right.widen(j, width, step, vector.data());
                for (std::int64_t i = 0; i < count; i += rows) {
                    const Four four(window, i, j, j + step < d ? j + step : j);
                    double* target[rows];
                    for (int at = 0; at < rows; ++at) {
                        target[at] = at < four.valid ? sums + (i + at) * k : rest[at - 1];
                    }
                    dot(four.row, width, vector.data(), step, k, target);
                }
            }
        });
}

bool combine(const Window& window, const double* coefficient, double alpha, const Vectors* v,
             const Vectors& out, InterruptCheck interrupted) {
    if (out.k > few) return combine_many(window, coefficient, alpha, v, out, interrupted);
    const std::int64_t d = window.d, count = window.count, size = block_size(d);
    const std::int64_t blocks = (d + size - 1) / size;
    const std::int64_t step = tile / std::max<std::int64_t>(out.k, 1);
    const Kernels& kernels = table();
    const int storage = index(window.storage);
    const auto run = [&](std::int64_t block) {
        Numbers sum(tile);
        const std::int64_t begin = block * size, end = std::min(d, begin + size);
        for (std::int64_t j = begin + (end - begin - 1) / step * step; j >= begin; j -= step) {
            const std::int64_t width = std::min(step, end - j);
            std::fill_n(sum.data(), tile, 0.0);
            for (std::int64_t i = 0; i < count; i += rows) {
                const Four four(window, i, j, j >= step ? j - step : j);
                for (std::int64_t r = 0; r < out.k; ++r) {
                    double c[rows] = {};
                    std::copy_n(coefficient + r * count + i, four.valid, c);
                    kernels.add[storage](four.row, width, c, sum.data() + r * step);
                }
            }
            finish_sums(v, alpha, out, d, j, width, step, sum.data());
        }
    };
    return parallel_chunks(blocks, 1, interrupted, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t block = begin; block < end; ++block) run(blocks - 1 - block);
    });
}

bool is_finite(const Vectors& v, std::int64_t d, Storage storage) {
    if (v.k == 0) return true;
    const Kernels& kernels = table();
    std::atomic<bool> finite{true};
    const std::int64_t size = block_size(d);
    parallel_chunks(
        d, size, [] { return false; },
        [&](std::int64_t begin, std::int64_t end) {
            double wide[unit], zero[unit] = {};
            for (std::int64_t j = begin; j < end; j += unit) {
                const std::int64_t width = std::min(unit, end - j);
                kernels.widen[index(v)](element(v, d, 0, j), wide, width);
                if (index(storage) > index(v)) {
                    double rounded[unit];
                    kernels.narrow[index(storage)](wide, rounded, width);
                    kernels.widen[index(storage)](rounded, wide, width);
                }
                if (!(kernels.inner(wide, zero, width) == 0)) finite = false;
            }
        });
    return finite;
}

}  // namespace curvkern::mfac
