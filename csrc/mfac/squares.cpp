#include <algorithm>

#include "mfac/columns.hpp"
#include "mfac/tiles.hpp"

namespace curvkern::mfac {

bool whitened_squares(const Window& window, const double* root, double* out,
                      InterruptCheck interrupted) {
    const Squares work(window, root);
    const std::int64_t d = window.d, tile = work.tile();
    const std::int64_t chunk = std::clamp<std::int64_t>(divided(d, tile) / 64, 1, 64) * tile;
    return parallel_chunks(d, chunk, interrupted, [&](std::int64_t begin, std::int64_t end) {
        Squares::Scratch scratch(work);
        for (std::int64_t j = begin; j < end; j += tile) {
            work.compute(j, std::min(tile, end - j), scratch);
            std::copy_n(scratch.sums.data(), std::min(tile, end - j), out + j);
        }
    });
}

}  // namespace curvkern::mfac
