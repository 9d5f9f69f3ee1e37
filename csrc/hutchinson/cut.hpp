// How a tensor is cut into tiles: by its size and the blocks of its means alone.
#pragma once

#include <algorithm>
#include <cstdint>

#include "hutchinson/hutchinson.hpp"

namespace curvkern::hutchinson {

// `parts` tiles a stride, each of at most `piece` elements. A tile holds whole blocks, or a
// part of a block that is longer than a tile. Where 16 blocks fit, tiles begin at multiples of
// 16 elements: at those of cache lines, or of the loads of a GPU.
struct Cut {
    std::int64_t stride, parts, piece;

    explicit Cut(std::int64_t block) {
        parts = (block + tile - 1) / tile;
        const std::int64_t together = 16 * block <= tile ? 16 * block : block;
        stride = parts > 1 ? block : std::max<std::int64_t>(tile / together, 1) * together;
        piece = parts > 1 ? tile : stride;
    }
    std::int64_t tiles(std::int64_t size) const { return (size + stride - 1) / stride * parts; }
    std::int64_t begin(std::int64_t at) const {
        return at / parts * stride + at % parts * piece;
    }
    // Not above begin(at) for the parts that the last block is too short for.
    std::int64_t end(std::int64_t at, std::int64_t size) const {
        return std::min({begin(at) + piece, (at / parts + 1) * stride, size});
    }
};

}  // namespace curvkern::hutchinson
