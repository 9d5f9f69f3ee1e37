// Depthwise convolutions of channel-major images, and their derivative in the image.
//
// A thread has one column of four output rows, so that the lanes of a warp load neighbours and
// a row that it has loaded serves up to three outputs. It is bound by memory: x is read once,
// what lies around a tile from the caches, and y written once. Prediction for 3 x 3 with stride
// 1 on an H100: 8 bytes an output, two outputs a clock and multiprocessor at 3.35 TB/s, for
// which L1 brings 18 loads for four outputs in half of the time.
//
// By their registers 4 blocks of 8 warps are on a multiprocessor, 2 for 5 x 5, whose 25 taps
// stay there; with stride 2, in float32 and bfloat16, 8 to 32 bytes of a thread do not (ptxas,
// sm_75 to sm_90).
//
// Outside of the image there are zeros, which are multiplied as torch does.
#pragma once

#include "sparseconv/device_element.hpp"

namespace curvkern::sparseconv::device {
CURVKERN_PER_ISA {

inline constexpr int rows_down = 4;  // of a thread

template <class S>
CURVKERN_HD Sum<S> pixel(const S* plane, const Window& w, std::int64_t y, std::int64_t x) {
    const bool is_inside = y >= 0 && y < w.height && x >= 0 && x < w.width;
    return is_inside ? widened(plane[y * w.width + x]) : Sum<S>(0);
}

// Square filters of K x K with this stride, K = 0 any; `flipped` ones turned by half a turn.
template <class S, int K, int Stride>
struct Depthwise {
    using A = Sum<S>;
    static constexpr int threads_at_most = usual_threads;
    static constexpr int blocks_at_once = K == 5           ? (sizeof(A) == 8 ? 1 : 2)
                                          : sizeof(S) == 4 ? 4
                                                           : 3;

    Convolution c;
    bool flipped;

    static std::int64_t threads(const Convolution& c) {
        return c.batch * c.filters * divided(c.window.out_height, rows_down) *
               c.window.out_width;
    }

    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        const Window& w = c.window;
        const std::int64_t groups = (w.out_height + rows_down - 1) / rows_down;
        block.alone([&](int thread) {
            const Quotient of_column = divide(id * block.threads() + thread, w.out_width);
            const Quotient of_row = divide(of_column.value, groups);
            const std::int64_t plane = of_row.value, j = of_column.rest;
            const std::int64_t i = of_row.rest * rows_down;
            if (plane >= c.batch * c.filters) return;
            const std::int64_t filter = divide(plane, c.filters).rest;
            Sums<A, rows_down> z;
            add(static_cast<const S*>(c.x) + plane * w.height * w.width,
                static_cast<const S*>(c.weight) + filter * w.kernel_height * w.kernel_width, i,
                j, z);
            const auto* bias = static_cast<const S*>(c.bias);
            const A offset = bias == nullptr ? A(0) : widened(bias[filter]);
            S* out = static_cast<S*>(c.out) + (plane * w.out_height + i) * w.out_width + j;
            CURVKERN_IN_REGISTERS
            for (int r = 0; r < rows_down; ++r) {
                if (i + r >= w.out_height) continue;
                finish<1>(&z.value[r], offset, static_cast<const S*>(nullptr),
                          out + r * w.out_width, c.activation);
            }
        });
    }

  private:
    CURVKERN_HD void add(const S* plane, const S* weight, std::int64_t i, std::int64_t j,
                         Sums<A, rows_down>& z) const {
        const Window& w = c.window;
        if constexpr (K > 0) {
            A tap[K * K];
            CURVKERN_IN_REGISTERS
            for (int t = 0; t < K * K; ++t)
                tap[t] = widened(weight[flipped ? K * K - 1 - t : t]);
            CURVKERN_IN_REGISTERS
            for (int q = 0; q < (rows_down - 1) * Stride + K; ++q) {
                CURVKERN_IN_REGISTERS
                for (int v = 0; v < K; ++v) {
                    const A x =
                        pixel(plane, w, i * Stride - w.top + q, j * Stride - w.left + v);
                    CURVKERN_IN_REGISTERS
                    for (int r = 0; r < rows_down; ++r) {
                        const int u = q - r * Stride;
                        if (u >= 0 && u < K) z[r] = tap[u * K + v] * x + z[r];
                    }
                }
            }
        } else {
            const std::int64_t taps = w.kernel_height * w.kernel_width;
            for (std::int64_t u = 0; u < w.kernel_height; ++u) {
                for (std::int64_t v = 0; v < w.kernel_width; ++v) {
                    const std::int64_t t = u * w.kernel_width + v;
                    const A tap = widened(weight[flipped ? taps - 1 - t : t]);
                    const std::int64_t x = j * w.stride + v * w.dilation - w.left;
                    CURVKERN_IN_REGISTERS
                    for (int r = 0; r < rows_down; ++r) {
                        const std::int64_t y = (i + r) * w.stride + u * w.dilation - w.top;
                        z[r] = tap * pixel(plane, w, y, x) + z[r];
                    }
                }
            }
        }
    }
};

// The derivative in x where the stride is more than 1: each x looks for the outputs that it was
// part of, tap by tap. With stride 1 it is a convolution with flipped filters.
template <class S>
struct DepthwiseBack {
    using A = Sum<S>;
    static constexpr int threads_at_most = usual_threads, blocks_at_once = 4;

    InputGradient c;

    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        const Window& w = c.window;
        block.alone([&](int thread) {
            const std::int64_t at = id * block.threads() + thread;
            const Quotient of_column = divide(at, w.width);
            const Quotient of_row = divide(of_column.value, w.height);
            const std::int64_t plane = of_row.value;
            if (plane >= c.batch * c.channels) return;
            const std::int64_t channel = divide(plane, c.channels).rest;
            const S* gy = static_cast<const S*>(c.gy) + plane * w.out_height * w.out_width;
            const S* weight =
                static_cast<const S*>(c.weight) + channel * w.kernel_height * w.kernel_width;
            A z = 0;
            for (std::int64_t u = 0; u < w.kernel_height; ++u) {
                const std::int64_t i =
                    output(of_row.rest + w.top - u * w.dilation, w.out_height);
                if (i < 0) continue;
                for (std::int64_t v = 0; v < w.kernel_width; ++v) {
                    const std::int64_t j =
                        output(of_column.rest + w.left - v * w.dilation, w.out_width);
                    if (j < 0) continue;
                    z = widened(weight[u * w.kernel_width + v]) *
                            widened(gy[i * w.out_width + j]) +
                        z;
                }
            }
            round_to(z, static_cast<S*>(c.gx) + at);
        });
    }

  private:
    // Which output begins so many rows or columns down the padded image; -1 where none does.
    CURVKERN_HD std::int64_t output(std::int64_t start, std::int64_t count) const {
        if (start < 0) return -1;
        const Quotient at = divide(start, c.window.stride);
        return at.rest == 0 && at.value < count ? at.value : -1;
    }
};

}  // namespace isa
}  // namespace curvkern::sparseconv::device
