// Sampled products (SDDMM): v_ij = sum over images and pixels of gy_i x_j, where a matrix has
// blocks. The source is named in device_product.hpp.
//
// A warp takes up to `Rows` rows of a row of blocks, eight of its columns, and a part of all
// pixels: Rows + 8 loads for 8 Rows multiply-adds of each pixel. Tiles of eight are all alike,
// however many columns rows have; parts are made where tiles are too few for the card, or a
// thread's float32 sum would have more than some thousand terms. A part's sums are added lane
// by lane in float64, parts in their order: no atomics, and the same bits from run to run.
//
// Prediction, on an H100: L1 brings single rows 9 loads of 4 clocks for 8 multiply-adds of 1,
// so 2/9 of the arithmetic, 12 TFLOP/s, and 4 x 1 blocks 2/3. Each sum ends with 10 shuffles:
// where it has 392 pixels (7 x 7, batch 8), in loads of one, they cost as much as its 13 loads.
#pragma once

#include "sparseconv/device_element.hpp"

namespace curvkern::sparseconv::device {
CURVKERN_PER_ISA {

struct CorrelationPlan {
    std::int64_t chunks;         // of a row of blocks
    std::int64_t parts, pixels;  // of a part: a multiple of 4
};

inline CorrelationPlan plan_correlation(const Correlation& c, std::int64_t rows) {
    constexpr std::int64_t enough_warps = 8192, least = 1024, most = 65536;
    CorrelationPlan plan{};
    plan.chunks = divided(c.matrix.height, rows);
    const std::int64_t total = c.batch * c.pixels;
    const std::int64_t warps = std::max<std::int64_t>(c.tiles * plan.chunks, 1);
    const std::int64_t wanted = std::max(
        std::min(divided(enough_warps, warps), divided(total, least)), divided(total, most));
    plan.pixels = divided(divided(total, std::max<std::int64_t>(wanted, 1)), 4) * 4;
    plan.parts = total == 0 ? 1 : divided(total, plan.pixels);  // one writes zeros
    return plan;
}

template <class S, int N, int Rows>
struct Correlate {
    using A = Sum<S>;
    static constexpr int columns = entries_of_tile;
    static constexpr int threads_at_most = usual_threads;
    static constexpr int blocks_at_once = Rows * N == 1 ? 3 : Rows * sizeof(A) == 32 ? 1 : 2;

    Correlation c;
    CorrelationPlan plan;

    std::int64_t warps() const { return c.tiles * plan.chunks * plan.parts; }

    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        Block::Own<Few<Rows * columns>> sums(block);
        block.alone([&](int thread) {
            const Task task = of(id, block.threads(), thread);
            if (task.is_inside) add(task, thread % warp_size, sums(thread));
        });
        block.template add_lanes<warp_size>(sums);
        block.alone([&](int thread) {
            const Task task = of(id, block.threads(), thread);
            if (!task.is_inside) return;
            CURVKERN_IN_REGISTERS
            for (int s = 0; s < Rows * columns; ++s) {
                if (thread % warp_size != s % warp_size) continue;
                const std::int64_t q = task.from + s / columns, e = task.first + s % columns;
                if (q < c.matrix.height && e < task.entries) write(task, q, e, sums(thread)[s]);
            }
        });
    }

  private:
    // Columns first .. of block row `row`, its rows from .. from + Rows - 1, and part `part`.
    struct Task {
        std::int64_t row, begin, entries, first, from, part;
        bool is_inside;
    };

    CURVKERN_HD Task of(std::int64_t id, int threads, int thread) const {
        const std::int64_t w = id * (threads / warp_size) + thread / warp_size;
        if (w >= c.tiles * plan.chunks * plan.parts) return {0, 0, 0, 0, 0, 0, false};
        const Quotient chunk = divide(w, plan.chunks), tile = divide(chunk.value, c.tiles);
        const std::int64_t row = c.row[tile.rest], begin = c.matrix.crow[row];
        const std::int64_t entries = (c.matrix.crow[row + 1] - begin) * c.matrix.width;
        return {row, begin, entries, c.first[tile.rest], chunk.rest * Rows, tile.value, true};
    }

    CURVKERN_HD void add(const Task& task, int lane, Few<Rows * columns>& sums) const {
        std::int64_t channel[columns];
        CURVKERN_IN_REGISTERS
        for (int e = 0; e < columns; ++e) {  // beyond the last one that again
            const Quotient at =
                divide(smaller(task.first + e, task.entries - 1), c.matrix.width);
            channel[e] =
                (c.matrix.col[task.begin + at.value] * c.matrix.width + at.rest) * c.pixels;
        }
        const std::int64_t rows = c.matrix.rows * c.matrix.height;
        const std::int64_t row = task.row * c.matrix.height + task.from;
        const std::int64_t last = c.matrix.height - 1 - task.from;
        Sums<A, Rows * columns> z;
        const std::int64_t end = smaller((task.part + 1) * plan.pixels, c.batch * c.pixels);
        for (std::int64_t n = task.part * plan.pixels + lane * N; n < end; n += warp_size * N) {
            const Quotient at = divide(n, c.pixels);
            const S* gy =
                static_cast<const S*>(c.gy) + (at.value * rows + row) * c.pixels + at.rest;
            const S* x = static_cast<const S*>(c.x) + at.value * c.columns * c.pixels + at.rest;
            Pack<S, N> g[Rows];
            CURVKERN_IN_REGISTERS
            for (int q = 0; q < Rows; ++q) {
                g[q] = load_pack<N>(gy + smaller(q, last) * c.pixels);
            }
            Pack<S, N> h[columns];
            CURVKERN_IN_REGISTERS
            for (int e = 0; e < columns; ++e) h[e] = load_pack<N>(x + channel[e]);
            CURVKERN_IN_REGISTERS
            for (int s = 0; s < Rows * columns; ++s) {
                CURVKERN_IN_REGISTERS
                for (int i = 0; i < N; ++i) {
                    z[s] = widened(g[s / columns].value[i]) * widened(h[s % columns].value[i]) +
                           z[s];
                }
            }
        }
        CURVKERN_IN_REGISTERS
        for (int s = 0; s < Rows * columns; ++s) sums[s] = z[s];
    }

    CURVKERN_HD void write(const Task& task, std::int64_t q, std::int64_t e,
                           double total) const {
        const Quotient at = divide(e, c.matrix.width);
        const std::int64_t size = c.matrix.height * c.matrix.width;
        const std::int64_t to = (task.begin + at.value) * size + q * c.matrix.width + at.rest;
        if (plan.parts > 1) {
            c.workspace[task.part * c.matrix.count * size + to] = total;
        } else {
            round_to(total, static_cast<S*>(c.values) + to);
        }
    }
};

}  // namespace isa
}  // namespace curvkern::sparseconv::device
