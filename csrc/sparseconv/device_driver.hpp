// Which kernels an operation runs on a queue. Nothing waits for the device.
#pragma once

#include "core/span.hpp"
#include "sparseconv/device.hpp"
#include "sparseconv/device_correlate.hpp"
#include "sparseconv/device_depthwise.hpp"
#include "sparseconv/device_first.hpp"
#include "sparseconv/device_product.hpp"
#include "sparseconv/device_weight_gradient.hpp"

namespace curvkern::sparseconv::device {

// run.operator()<N>() with the pixels of a load: four of 4 or 2 bytes, two of 8, where images
// and their rows allow it
template <class S, class Run>
void with_pixels(std::int64_t pixels, std::initializer_list<const void*> images, Run run) {
    constexpr int most = sizeof(S) == 8 ? 2 : 4;
    bool is_aligned = pixels % most == 0;
    for (const void* image : images) {
        is_aligned =
            is_aligned && reinterpret_cast<std::uintptr_t>(image) % (most * sizeof(S)) == 0;
    }
    return is_aligned ? run.template operator()<most>() : run.template operator()<1>();
}

// run.operator()<Rows>() with at least as many rows, or else with `Most`
template <int Most, class Run>
void with_rows(std::int64_t height, Run run) {
    if constexpr (Most > 1) {
        if (height <= Most / 2) return with_rows<Most / 2>(height, run);
    }
    run.template operator()<Most>();
}

template <class Queue>
void multiply(const Place& place, const Product& p) {
    Queue queue(place, "sparse_conv1x1");
    const std::int64_t total = p.batch * p.pixels;
    const auto start = [&]<class Kernel, int N>(std::int64_t slots) {
        const std::int64_t subwarps = slots * divided(total, p.lanes * N);
        const int threads = threads_for(subwarps * p.lanes);
        const Tiling<N> tiling(p, slots, threads);
        queue.run(Kernel{p, tiling}, tiling.blocks(), threads);
    };
    with_storage(p.storage, [&]<class S>() {
        with_pixels<S>(p.pixels, {p.x, p.out, p.residual}, [&]<int N>() {
            if (p.matrix.height * p.matrix.width == 1) {
                return start.template operator()<MultiplyRows<S, N>, N>(p.matrix.rows);
            }
            with_rows<8>(p.matrix.height, [&]<int Rows>() {
                using Kernel = MultiplyBlocks<S, N, Rows>;
                start.template operator()<Kernel, N>(Kernel::slots(p));
            });
        });
    });
}

template <class Queue>
void transpose(const Place& place, const Transposition& t) {
    Queue queue(place, "sparse_conv1x1_input_grad");
    with_storage(t.storage, [&]<class S>() {
        const std::int64_t size = t.count * t.height * t.width;
        queue.run(Transpose<S>{t}, divided(size, usual_threads), usual_threads);
    });
}

inline constexpr int most_correlated = 4;  // rows at once

inline std::int64_t correlated_rows(const Correlation& c) {
    std::int64_t rows = 1;
    while (rows < c.matrix.height && rows < most_correlated) rows *= 2;
    return rows;
}

inline std::int64_t correlation_workspace(const Correlation& c) {
    const std::int64_t parts = plan_correlation(c, correlated_rows(c)).parts;
    const std::int64_t size = c.matrix.count * c.matrix.height * c.matrix.width;
    return parts > 1 ? checked_multiply(parts, size) : 0;
}

template <class Queue>
void correlate(const Place& place, const Correlation& c) {
    Queue queue(place, "sparse_conv1x1_sddmm");
    with_storage(c.storage, [&]<class S>() {
        const CorrelationPlan plan = plan_correlation(c, correlated_rows(c));
        with_pixels<S>(c.pixels, {c.gy, c.x}, [&]<int N>() {
            with_rows<most_correlated>(c.matrix.height, [&]<int Rows>() {
                const Correlate<S, N, Rows> kernel{c, plan};
                const int threads = threads_for(kernel.warps() * warp_size);
                queue.run(kernel, divided(kernel.warps(), threads / warp_size), threads);
            });
        });
        if (plan.parts <= 1) return;
        const std::int64_t size = c.matrix.count * c.matrix.height * c.matrix.width;
        queue.run(AddParts<S>{c.workspace, static_cast<S*>(c.values), size, plan.parts},
                  divided(size, usual_threads), usual_threads);
    });
}

// run.operator()<K, Stride>() for filters that there is a kernel for, else <0, 1>
template <class Run>
void with_filter(const Window& w, Run run) {
    if (w.kernel_height == w.kernel_width && w.dilation == 1) {
        if (w.kernel_height == 3 && w.stride == 1) return run.template operator()<3, 1>();
        if (w.kernel_height == 3 && w.stride == 2) return run.template operator()<3, 2>();
        if (w.kernel_height == 5 && w.stride == 1) return run.template operator()<5, 1>();
        if (w.kernel_height == 5 && w.stride == 2) return run.template operator()<5, 2>();
    }
    run.template operator()<0, 1>();
}

template <class Queue>
void filter_planes(Queue& queue, const Convolution& c, bool flipped) {
    with_storage(c.storage, [&]<class S>() {
        with_filter(c.window, [&]<int K, int Stride>() {
            using Kernel = Depthwise<S, K, Stride>;
            const int threads = threads_for(Kernel::threads(c));
            queue.run(Kernel{c, flipped}, divided(Kernel::threads(c), threads), threads);
        });
    });
}

template <class Queue>
void depthwise(const Place& place, const Convolution& c) {
    Queue queue(place, "depthwise_conv2d");
    filter_planes(queue, c, false);
}

template <class Queue>
void input_gradient(const Place& place, const InputGradient& g) {
    Queue queue(place, "depthwise_conv2d_input_grad");
    const Window& w = g.window;
    if (w.stride == 1) {
        const std::int64_t down = (w.kernel_height - 1) * w.dilation - w.top;
        const std::int64_t right = (w.kernel_width - 1) * w.dilation - w.left;
        const Window back{w.out_height,   w.out_width, w.height,   w.width, w.kernel_height,
                          w.kernel_width, 1,           w.dilation, right,   down};
        return filter_planes(queue,
                             {g.storage, back, g.gy, g.weight, nullptr, g.gx, g.batch,
                              g.channels, g.channels, Activation::none},
                             true);
    }
    with_storage(g.storage, [&]<class S>() {
        const std::int64_t size = g.batch * g.channels * w.height * w.width;
        const int threads = threads_for(size);
        queue.run(DepthwiseBack<S>{g}, divided(size, threads), threads);
    });
}

// run.operator()<K>() for filters that there is a kernel for, else <0>
template <class Run>
void with_taps(const Window& w, Run run) {
    if (w.kernel_height == w.kernel_width && w.kernel_height == 3) {
        return run.template operator()<3>();
    }
    if (w.kernel_height == w.kernel_width && w.kernel_height == 5) {
        return run.template operator()<5>();
    }
    run.template operator()<0>();
}

inline std::int64_t weight_workspace(const WeightGradient& g) {
    std::int64_t parts = 0;
    with_taps(g.window, [&]<int K>() {
        parts = plan_weights(g, DepthwiseWeights<float, K>::taps).parts;
    });
    const Window& w = g.window;
    return checked_multiply(parts, g.channels * w.kernel_height * w.kernel_width);
}

template <class Queue>
void weight_gradient(const Place& place, const WeightGradient& g) {
    Queue queue(place, "depthwise_conv2d_weight_grad");
    with_storage(g.storage, [&]<class S>() {
        with_taps(g.window, [&]<int K>() {
            using Kernel = DepthwiseWeights<S, K>;
            const WeightPlan plan = plan_weights(g, Kernel::taps);
            queue.run(Kernel{g, plan}, g.channels * plan.chunks * plan.parts, plan.threads());
            const std::int64_t size =
                g.channels * g.window.kernel_height * g.window.kernel_width;
            queue.run(AddParts<S>{g.workspace, static_cast<S*>(g.gw), size, plan.parts},
                      divided(size, usual_threads), usual_threads);
        });
    });
}

template <class Queue>
void first(const Place& place, const Convolution& c) {
    Queue queue(place, "first_conv2d");
    with_storage(c.storage, [&]<class S>() {
        const First<S> kernel(c);
        const std::int64_t size = c.batch * c.window.out_height * c.window.out_width;
        const int threads = threads_for(size * kernel.groups);
        queue.run(kernel, divided(size, threads) * kernel.groups, threads,
                  kernel.shared_size());
    });
}

template <class Queue>
constexpr Calls calls_on{multiply<Queue>,  transpose<Queue>,      correlate<Queue>,
                         depthwise<Queue>, input_gradient<Queue>, weight_gradient<Queue>,
                         first<Queue>,     correlation_workspace, weight_workspace};

}  // namespace curvkern::sparseconv::device
