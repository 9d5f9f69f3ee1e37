// The derivative of depthwise convolutions in their filters: for each channel and tap the sum
// over images and outputs of gy x.
//
// A block takes a channel and a part of its outputs, a thread every so many of them, with all
// taps of a 3 x 3 or 5 x 5 filter in registers, nine of others. It reads gy and x once from
// memory and is bound by that. Threads are added in float64 and in their order, parts likewise.
#pragma once

#include "sparseconv/device_depthwise.hpp"

namespace curvkern::sparseconv::device {
CURVKERN_PER_ISA {

struct WeightPlan {
    std::int64_t chunks;          // of taps
    std::int64_t parts, outputs;  // of a part

    int threads() const { return outputs < usual_threads ? 2 * warp_size : usual_threads; }
};

inline WeightPlan plan_weights(const WeightGradient& g, std::int64_t taps_at_once) {
    constexpr std::int64_t enough = 2048, least = 1024, most = 1 << 18;
    const Window& w = g.window;
    const std::int64_t total = g.batch * w.out_height * w.out_width;
    WeightPlan plan{};
    plan.chunks = divided(w.kernel_height * w.kernel_width, taps_at_once);
    const std::int64_t blocks = std::max<std::int64_t>(g.channels * plan.chunks, 1);
    const std::int64_t wanted = std::max(
        std::min(divided(enough, blocks), divided(total, least)), divided(total, most));
    plan.outputs = divided(total, std::max<std::int64_t>(wanted, 1));
    plan.parts = divided(total, std::max<std::int64_t>(plan.outputs, 1));
    return plan;
}

// Filters of K x K, or any where K is 0.
template <class S, int K>
struct DepthwiseWeights {
    using A = Sum<S>;
    static constexpr int taps = K > 0 ? K * K : 9;
    static constexpr int threads_at_most = usual_threads;
    static constexpr int blocks_at_once = K == 5 ? 2 : 3;

    WeightGradient g;
    WeightPlan plan;

    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        const Quotient of_part = divide(id, plan.parts);
        const Quotient of_chunk = divide(of_part.value, plan.chunks);
        const std::int64_t channel = of_chunk.value, tap = of_chunk.rest * taps;
        Block::Own<Few<taps>> sums(block);
        block.alone([&](int thread) {
            add(channel, tap, of_part.rest, thread, block.threads(), sums(thread));
        });
        const Few<taps> total = block.sum(sums);
        block.alone([&](int thread) {
            if (thread != 0) return;
            const std::int64_t all = g.window.kernel_height * g.window.kernel_width;
            double* to = g.workspace + (of_part.rest * g.channels + channel) * all + tap;
            CURVKERN_IN_REGISTERS
            for (int t = 0; t < taps; ++t) {
                if (tap + t < all) to[t] = total[t];
            }
        });
    }

  private:
    CURVKERN_HD void add(std::int64_t channel, std::int64_t tap, std::int64_t part, int thread,
                         int threads, Few<taps>& sums) const {
        const Window& w = g.window;
        const std::int64_t kernel_width = K > 0 ? K : w.kernel_width;
        const std::int64_t end =
            smaller((part + 1) * plan.outputs, g.batch * w.out_height * w.out_width);
        Sums<A, taps> z;
        for (std::int64_t n = part * plan.outputs + thread; n < end; n += threads) {
            const Quotient of_column = divide(n, w.out_width);
            const Quotient of_row = divide(of_column.value, w.out_height);
            const std::int64_t plane = of_row.value * g.channels + channel;
            const std::int64_t i = of_row.rest, j = of_column.rest;
            const S* x = static_cast<const S*>(g.x) + plane * w.height * w.width;
            const A y = widened(
                static_cast<const S*>(g.gy)[(plane * w.out_height + i) * w.out_width + j]);
            CURVKERN_IN_REGISTERS
            for (int t = 0; t < taps; ++t) {
                const Quotient at = K > 0 ? Quotient{t / (K > 0 ? K : 1), t % (K > 0 ? K : 1)}
                                          : divide(tap + t, kernel_width);
                z[t] = y * pixel(x, w, i * w.stride + at.value * w.dilation - w.top,
                                 j * w.stride + at.rest * w.dilation - w.left) +
                       z[t];
            }
        }
        CURVKERN_IN_REGISTERS
        for (int t = 0; t < taps; ++t) sums[t] = z[t];
    }
};

}  // namespace isa
}  // namespace curvkern::sparseconv::device
