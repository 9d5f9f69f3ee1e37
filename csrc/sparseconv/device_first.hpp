// Dense convolutions from few channels to many, as a network begins with.
//
// A thread has one pixel of 16 filters: a load serves 16 multiply-adds, and their weights lie
// in shared memory, where all lanes read the same ones, 16 bytes at a time. From 3 channels
// with 3 x 3 taps and 32 filters that is 27 loads for each 16 outputs; bound by writing those.
#pragma once

#include "sparseconv/device_depthwise.hpp"

namespace curvkern::sparseconv::device {
CURVKERN_PER_ISA {

template <class S>
struct First {
    using A = Sum<S>;
    static constexpr int filters = 16;         // of a thread
    static constexpr std::int64_t taps = 256;  // whose weights are at hand
    static constexpr int together = widest / static_cast<int>(sizeof(A));
    static constexpr int threads_at_most = usual_threads;
    static constexpr int blocks_at_once = sizeof(A) == 8 ? 2 : 4;

    Convolution c;
    std::int64_t groups;  // of filters

    explicit First(const Convolution& convolution)
        : c(convolution), groups(divided(convolution.filters, filters)) {}

    std::int64_t all_taps() const {
        return c.channels * c.window.kernel_height * c.window.kernel_width;
    }
    std::int64_t shared_size() const {
        return divided(std::min(all_taps(), taps) * filters * std::int64_t{sizeof(A)}, 8);
    }

    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        const Window& w = c.window;
        const std::int64_t all = c.channels * w.kernel_height * w.kernel_width;
        const std::int64_t filter = id % groups * filters;
        A* weights = reinterpret_cast<A*>(block.shared());
        const auto place = [&](int thread) {
            const std::int64_t n = id / groups * block.threads() + thread;
            const Quotient of_column = divide(n, w.out_width);
            const Quotient of_row = divide(of_column.value, w.out_height);
            return Pixel{of_row.value, of_row.rest, of_column.rest};
        };
        Block::Own<Sums<A, filters>> sums(block);
        for (std::int64_t begin = 0; begin < all; begin += taps) {
            const auto count = static_cast<int>(smaller(taps, all - begin));
            block.each([&](int thread) {
                for (int q = thread; q < count * filters; q += block.threads()) {
                    const int f = q / count, t = q % count;
                    const S* from = static_cast<const S*>(c.weight) + begin + t;
                    weights[t * filters + f] =
                        filter + f < c.filters ? widened(from[(filter + f) * all]) : A(0);
                }
            });
            block.each([&](int thread) {
                const Pixel at = place(thread);
                if (at.image < c.batch) add(weights, begin, count, at, sums(thread));
            });
        }
        block.alone([&](int thread) {
            const Pixel at = place(thread);
            if (at.image >= c.batch) return;
            const auto* bias = static_cast<const S*>(c.bias);
            CURVKERN_IN_REGISTERS
            for (int f = 0; f < filters; ++f) {
                const std::int64_t of = filter + f;
                if (of >= c.filters) continue;
                const std::int64_t to =
                    ((at.image * c.filters + of) * w.out_height + at.i) * w.out_width + at.j;
                finish<1>(&sums(thread).value[f], bias == nullptr ? A(0) : widened(bias[of]),
                          static_cast<const S*>(nullptr), static_cast<S*>(c.out) + to,
                          c.activation);
            }
        });
    }

  private:
    struct Pixel {
        std::int64_t image, i, j;
    };

    CURVKERN_HD void add(const A* weights, std::int64_t begin, int count, const Pixel& at,
                         Sums<A, filters>& z) const {
        const Window& w = c.window;
        const Quotient of_v = divide(begin, w.kernel_width);
        const Quotient of_u = divide(of_v.value, w.kernel_height);
        std::int64_t u = of_u.rest, v = of_v.rest;
        const std::int64_t size = w.height * w.width;
        const S* plane =
            static_cast<const S*>(c.x) + (at.image * c.channels + of_u.value) * size;
        for (int t = 0; t < count; ++t) {
            const A x = pixel(plane, w, at.i * w.stride + u * w.dilation - w.top,
                              at.j * w.stride + v * w.dilation - w.left);
            CURVKERN_IN_REGISTERS
            for (int f = 0; f < filters; f += together) {
                const auto tap = load_pack<together>(weights + t * filters + f);
                CURVKERN_IN_REGISTERS
                for (int e = 0; e < together; ++e) z[f + e] = tap.value[e] * x + z[f + e];
            }
            if (++v < w.kernel_width) continue;
            v = 0;
            if (++u < w.kernel_height) continue;
            u = 0;
            plane += size;
        }
    }
};

}  // namespace isa
}  // namespace curvkern::sparseconv::device
