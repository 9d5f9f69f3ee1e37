// How the threads of a GPU read a window, and who takes which part of it.
//
// A pass waits for memory alone. On an H100 (132 multiprocessors, 3.35 TB/s, 64 float64
// multiply-adds and 16 conversions a clock of 1.7 GHz each) memory brings a multiprocessor 3.7
// float32 or 7.4 bfloat16 elements a clock: sums are float64 for nothing. What counts is how
// many bytes are on their way, 15 KB for each multiprocessor at a latency of 1000 clocks. The
// kernels have 32 to 64 KB, in loads of 16 bytes where all rows begin at a multiple of that.
// Where they do not (d is no multiple of 4 in float32), a thread has as many bytes under way in
// loads of 4 or 2, side by side as well; of bfloat16 with an odd d half as many.
//
// Prediction, a step of m = 128, d = 1e6 in float32 there, at 3.0 TB/s: products and
// combination 0.17 ms each, of which vectors, results and sums of parts are 2 %; five launches,
// the blocks that end last, and a product's way to the CPU's factor and back, 0.04 ms together.
//
// All cuts depend on sizes alone, and sums are added in the order of the cuts: results are the
// same from run to run and from card to card.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/block.hpp"
#include "core/element.hpp"
#include "mfac/mfac.hpp"

namespace curvkern::mfac::device {
CURVKERN_PER_ISA {

inline std::int64_t divided(std::int64_t a, std::int64_t b) {
    return (a + b - 1) / b;
}
CURVKERN_HD std::int64_t smaller(std::int64_t a, std::int64_t b) {
    return a < b ? a : b;
}

inline constexpr int usual_warps = 8, usual_threads = usual_warps * warp_size;
inline constexpr int rows_at_once = 4;  // of a warp
inline constexpr int widest = 16;       // bytes of a load

// `Bytes` of a row, which one load brings.
template <class S, int Bytes>
struct alignas(Bytes) [[gnu::may_alias]] Pack {
    static constexpr int size = Bytes / static_cast<int>(sizeof(S));
    S value[size];
};

template <class S, int Bytes>
CURVKERN_HD Pack<S, Bytes> load_pack(const S* source) {
    return *reinterpret_cast<const Pack<S, Bytes>*>(source);
}

// Rows i .. i + 3 of those that take part, beyond the last one that again. `slot` lies where
// the window does.
template <class S>
struct Rows {
    S* row[rows_at_once];
};
template <class S>
CURVKERN_HD Rows<S> rows_at(const Window& window, std::int64_t i) {
    Rows<S> y;
    CURVKERN_IN_REGISTERS
    for (int r = 0; r < rows_at_once; ++r) {
        const std::int64_t slot = window.slot[smaller(i + r, window.count - 1)];
        y.row[r] = static_cast<S*>(window.data) + slot * window.stride;
    }
    return y;
}

// Element j of vector r.
CURVKERN_HD double element(const Vectors& v, std::int64_t d, std::int64_t r, std::int64_t j) {
    return v.is_float32 ? static_cast<double>(static_cast<const float*>(v.data)[r * d + j])
                        : static_cast<const double*>(v.data)[r * d + j];
}

// Products: a block takes a group of rows, four to a warp, and a part of the columns; the
// blocks of one part come one after the other and find its vectors in the cache.
struct ProductsPlan {
    std::int64_t groups, rows;    // rows of a group
    std::int64_t parts, columns;  // columns of a part, whole tiles
    std::int64_t tile;            // columns whose vectors lie in shared memory at a time

    int threads() const { return static_cast<int>(rows / rows_at_once * warp_size); }
};

inline ProductsPlan plan_products(std::int64_t count, std::int64_t d) {
    // Enough blocks for all multiprocessors, so many times over that the last ones do not
    // count; sums of parts for a thousandth of the window's bytes at most.
    constexpr std::int64_t most_rows = usual_warps * rows_at_once, enough = 512, most = 4096;
    ProductsPlan p{};
    p.groups = std::max<std::int64_t>(divided(count, most_rows), 1);
    p.rows = std::max<std::int64_t>(divided(divided(count, p.groups), rows_at_once), 1) *
             rows_at_once;
    p.tile = 1024;
    while (p.tile > 256 && p.groups * divided(d, p.tile) < enough) p.tile /= 2;
    const std::int64_t most_parts = std::clamp<std::int64_t>(most / p.groups, 16, 1024);
    p.columns = std::max<std::int64_t>(divided(divided(d, p.tile), most_parts), 1) * p.tile;
    p.parts = divided(d, p.columns);
    return p;
}

// Combinations: a warp takes a slice of the rows and a panel of the columns, 16 bytes a thread.
// A block has `slices` of the rows, and so many panels that all its warps have one.
struct CombinePlan {
    int slices;
    std::int64_t blocks;
};

inline CombinePlan plan_combine(std::int64_t count, std::int64_t d, std::int64_t panel) {
    constexpr std::int64_t most_rows = 32, least_rows = 8, enough = 1024;
    const auto blocks = [&](int slices) { return divided(d, usual_warps / slices * panel); };
    int slices = 1;
    while (slices < usual_warps && (count > most_rows * slices ||
                                    (count > least_rows * slices && blocks(slices) < enough))) {
        slices *= 2;
    }
    return {slices, blocks(slices)};
}

}  // namespace isa
}  // namespace curvkern::mfac::device
