#include <algorithm>
#include <chrono>

#include "mfac/columns.hpp"
#include "mfac/numbers.hpp"
#include "mfac/tiles.hpp"

namespace curvkern::mfac {
namespace {

// Each thread takes chunks of columns and all of K: for few rows, whose K are small beside G.
bool gram_by_columns(const Gram& work, std::int64_t chunks, std::int64_t m, double* out,
                     InterruptCheck interrupted) {
    const std::int64_t size = divided(work.tiles(), chunks);
    Numbers partial(chunks * m * m);
    const bool finished = parallel_chunks(
        work.tiles(), size, interrupted, [&](std::int64_t begin, std::int64_t end) {
            Numbers packed(work.tile_size());
            double* sums = partial.data() + begin / size * m * m;
            for (std::int64_t tile = begin; tile < end; ++tile) {
                for (std::int64_t p = 0; p < work.panels(); ++p) {
                    work.pack(tile, p, packed.data());
                }
                for (std::int64_t p = 0; p < work.panels(); ++p) {
                    work.multiply(tile, p, packed.data(), sums);
                }
            }
        });
    for (std::int64_t at = 0; at < m * m; ++at) {
        double sum = 0;
        for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
            sum += partial.data()[chunk * m * m + at];
        }
        out[at] = sum;
    }
    return finished;
}

// Threads share the columns of K, and some tiles of G that lie in float64 for all of them.
bool gram_by_panels(const Gram& work, std::int64_t m, double* out, InterruptCheck interrupted) {
    const std::int64_t together =
        std::clamp<std::int64_t>(buffer / work.tile_size(), 1, work.tiles());
    const std::int64_t panels = work.panels();
    Numbers packed(together * work.tile_size());
    std::fill_n(out, m * m, 0.0);
    // Regions are too short to ask by themselves.
    using Clock = std::chrono::steady_clock;
    Clock::time_point asked = Clock::now();
    for (std::int64_t first = 0; first < work.tiles(); first += together) {
        if (Clock::now() - asked > std::chrono::milliseconds(50)) {
            if (interrupted()) return false;
            asked = Clock::now();
        }
        const std::int64_t count = std::min(together, work.tiles() - first);
        const auto place = [&](std::int64_t tile) {
            return packed.data() + (tile - first) * work.tile_size();
        };
        const bool finished =
            parallel_chunks(count * panels, 1, interrupted,
                            [&](std::int64_t at, std::int64_t) {
                                const std::int64_t tile = first + at / panels;
                                work.pack(tile, at % panels, place(tile));
                            }) &&
            parallel_chunks(panels, 1, interrupted, [&](std::int64_t at, std::int64_t) {
                const std::int64_t p = panels - 1 - at;  // the longest first
                for (std::int64_t tile = first; tile < first + count; ++tile) {
                    work.multiply(tile, p, place(tile), out);
                }
            });
        if (!finished) return false;
    }
    return true;
}

}  // namespace

const ColumnKernels& column_table() {
    return CURVKERN_SELECT_ISA(, ::column_kernels());
}

bool gram(const Window& window, double* out, InterruptCheck interrupted) {
    const Gram work(window, 0, window.d);
    const std::int64_t m = window.count;
    if (m == 0) return true;
    // Sums of that many chunks take a thirtieth of G at most.
    constexpr std::int64_t chunks = 16;
    const bool finished = window.d >= chunks * 64 * m
                              ? gram_by_columns(work, chunks, m, out, interrupted)
                              : gram_by_panels(work, m, out, interrupted);
    for (std::int64_t i = 0; i < m; ++i) {
        for (std::int64_t j = 0; j < i; ++j) out[i * m + j] = out[j * m + i];
    }
    return finished;
}

}  // namespace curvkern::mfac
