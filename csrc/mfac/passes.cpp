#include <algorithm>
#include <atomic>
#include <vector>

#include "mfac/mfac.hpp"

namespace curvkern::mfac {
namespace {

// A tile of a vector in float64 stays in the first cache; rows go past it four at a time.
// Blocks of whole tiles are what a thread takes; there are at most most_blocks.
constexpr std::int64_t tile = 1024, most_blocks = 128;
constexpr int rows = 4;

std::int64_t block_size(std::int64_t d) {
    const std::int64_t tiles = (d + tile - 1) / tile;
    return std::max<std::int64_t>(8, (tiles + most_blocks - 1) / most_blocks) * tile;
}

int index(Storage storage) {
    return static_cast<int>(storage);
}
int index(const Vectors& v) {
    return v.is_float32 ? index(Storage::float32) : index(Storage::float64);
}

char* element(const Window& window, std::int64_t slot, std::int64_t column) {
    return static_cast<char*>(window.data) +
           (slot * window.d + column) * element_size(window.storage);
}

char* element(const Vectors& v, std::int64_t d, std::int64_t r, std::int64_t column) {
    return static_cast<char*>(v.data) + (r * d + column) * (v.is_float32 ? 4 : 8);
}

// Windows up to this size lie in a cache, where fetching ahead costs more than it saves.
constexpr std::int64_t cached = std::int64_t{32} << 20;

// The rows i .. i + 3 of the window from a column on, beyond the last one that again, and the
// four that are read next: the following ones, or the first ones from column `then` on.
struct Four {
    const void* row[2 * rows];
    int valid;
    Four(const Window& window, std::int64_t i, std::int64_t column, std::int64_t then) {
        const bool is_last = i + rows >= window.count;
        const bool is_cached = window.count * window.d * element_size(window.storage) <= cached;
        valid = static_cast<int>(std::min<std::int64_t>(rows, window.count - i));
        for (int at = 0; at < rows; ++at) {
            const std::int64_t now = i + std::min(at, valid - 1);
            const std::int64_t next =
                std::min<std::int64_t>(is_last ? at : i + rows + at, window.count - 1);
            row[at] = element(window, window.slot[now], column);
            row[rows + at] = is_cached
                                 ? row[at]
                                 : element(window, window.slot[next], is_last ? then : column);
        }
    }
};

}  // namespace

const Kernels& table() {
    return CURVKERN_SELECT_ISA(, ::kernels());
}

bool products(const Window& window, const Vectors& v, const Vectors* incoming,
              std::int64_t into, double* out, InterruptCheck interrupted) {
    const std::int64_t d = window.d, count = window.count, size = block_size(d);
    const std::int64_t first = incoming != nullptr ? 1 : 0, k = v.k + first;
    const std::int64_t blocks = (d + size - 1) / size;
    const Kernels& kernels = table();
    const int storage = index(window.storage);
    std::vector<double> partial(static_cast<std::size_t>(blocks * count * k), 0.0);
    const bool finished =
        parallel_chunks(d, size, interrupted, [&](std::int64_t begin, std::int64_t end) {
            std::vector<double> vector(static_cast<std::size_t>(k * tile));
            double* sums = partial.data() + begin / size * count * k;
            double rest[rows - 1][64];
            for (std::int64_t j = begin; j < end; j += tile) {
                const std::int64_t width = std::min(tile, end - j);
                if (incoming != nullptr) {
                    char* row = element(window, window.slot[into], j);
                    kernels.widen[index(*incoming)](element(*incoming, d, 0, j), vector.data(),
                                                    width);
                    kernels.narrow[storage](vector.data(), row, width);
                    kernels.widen[storage](row, vector.data(), width);
                }
                for (std::int64_t r = 0; r < v.k; ++r) {
                    kernels.widen[index(v)](element(v, d, r, j),
                                            vector.data() + (r + first) * tile, width);
                }
                for (std::int64_t i = 0; i < count; i += rows) {
                    const Four four(window, i, j, j + tile < d ? j + tile : j);
                    for (std::int64_t r = 0; r < k; r += 64) {
                        double* target[rows];
                        for (int at = 0; at < rows; ++at) {
                            target[at] =
                                at < four.valid ? sums + (i + at) * k + r : rest[at - 1];
                        }
                        kernels.dot[storage](four.row, width, vector.data() + r * tile, tile,
                                             std::min<std::int64_t>(64, k - r), target);
                    }
                }
            }
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

bool combine(const Window& window, const double* coefficient, double alpha, const Vectors* v,
             const Vectors& out, InterruptCheck interrupted) {
    const std::int64_t d = window.d, count = window.count, size = block_size(d);
    const std::int64_t blocks = (d + size - 1) / size;
    const Kernels& kernels = table();
    const int storage = index(window.storage);
    const auto run = [&](std::int64_t block) {
        std::vector<double> sum(static_cast<std::size_t>(out.k * tile));
        const std::int64_t begin = block * size, end = std::min(d, begin + size);
        for (std::int64_t j = begin + (end - begin - 1) / tile * tile; j >= begin; j -= tile) {
            const std::int64_t width = std::min(tile, end - j);
            std::fill(sum.begin(), sum.end(), 0.0);
            if (v != nullptr) {
                for (std::int64_t r = 0; r < out.k; ++r) {
                    double* y = sum.data() + r * tile;
                    kernels.widen[index(*v)](element(*v, d, r, j), y, width);
                    for (std::int64_t at = 0; at < width; ++at) y[at] *= alpha;
                }
            }
            for (std::int64_t i = 0; i < count; i += rows) {
                const Four four(window, i, j, j >= tile ? j - tile : j);
                for (std::int64_t r = 0; r < out.k; ++r) {
                    double c[rows] = {};
                    std::copy_n(coefficient + r * count + i, four.valid, c);
                    kernels.add[storage](four.row, width, c, sum.data() + r * tile);
                }
            }
            for (std::int64_t r = 0; r < out.k; ++r) {
                kernels.narrow[index(out)](sum.data() + r * tile, element(out, d, r, j), width);
            }
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
            double wide[tile], rounded[tile];
            for (std::int64_t j = begin; j < end; j += tile) {
                const std::int64_t width = std::min(tile, end - j);
                double zero = 0;
                kernels.widen[index(v)](element(v, d, 0, j), wide, width);
                if (storage != Storage::float64) {
                    kernels.narrow[index(storage)](wide, rounded, width);
                    kernels.widen[index(storage)](rounded, wide, width);
                }
                for (std::int64_t at = 0; at < width; ++at) zero += wide[at] * 0.0;
                if (!(zero == 0)) finite = false;
            }
        });
    return finite;
}

}  // namespace curvkern::mfac
