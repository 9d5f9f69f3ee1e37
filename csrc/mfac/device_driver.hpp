// Which kernels a pass over a window runs on a queue, and in which order. Nothing waits for
// the device.
#pragma once

#include <algorithm>

#include "core/span.hpp"
#include "mfac/device.hpp"
#include "mfac/device_combine.hpp"
#include "mfac/device_products.hpp"

namespace curvkern::mfac::device {

// A part of the slots: they travel with the launch, which no copy from the host's memory could
// do without waiting for it.
struct WriteSlots {
    static constexpr int threads_at_most = usual_threads, blocks_at_once = 1, most = 480;
    std::int64_t* to;
    std::int64_t count;
    std::int64_t slot[most];

    CURVKERN_HD void operator()(Block& block, std::int64_t) const {
        block.each([&](int thread) {
            for (std::int64_t i = thread; i < count; i += block.threads()) to[i] = slot[i];
        });
    }
};

// The window as the device sees it, its slots in the workspace.
template <class Queue>
Window on_device(Queue& queue, Window window, double* workspace) {
    auto* to = reinterpret_cast<std::int64_t*>(workspace);
    for (std::int64_t first = 0; first < window.count; first += WriteSlots::most) {
        WriteSlots some;
        some.to = to + first;
        some.count = std::min<std::int64_t>(WriteSlots::most, window.count - first);
        std::copy_n(window.slot + first, some.count, some.slot);
        queue.run(some, 1, usual_threads);
    }
    window.slot = to;
    return window;
}

// run.operator()<S, Bytes>() with the widest loads that all rows of a window are aligned to and
// have a whole number of
template <class Run>
void with_packs(const Window& window, Run run) {
    const auto address = reinterpret_cast<std::uintptr_t>(window.data);
    const std::int64_t both = (window.d | window.stride) * element_size(window.storage);
    const std::uintptr_t start = address | static_cast<std::uintptr_t>(both);
    const bool is_aligned = start % widest == 0;
    switch (window.storage) {
        case Storage::float64:
            return is_aligned ? run.template operator()<double, widest>()
                              : run.template operator()<double, 8>();
        case Storage::float32:
            return is_aligned ? run.template operator()<float, widest>()
                              : run.template operator()<float, 4>();
        case Storage::bfloat16:
            return is_aligned       ? run.template operator()<Brain, widest>()
                   : start % 4 == 0 ? run.template operator()<Brain, 4>()
                                    : run.template operator()<Brain, 2>();
    }
}

// run.operator()<K>() with K at least `wanted`, or else as many as there are in one pass
template <int Most, class Run>
void with_count(std::int64_t wanted, Run run) {
    if (wanted <= Most / 2) {
        if constexpr (Most > 1) return with_count<Most / 2>(wanted, run);
    }
    run.template operator()<Most>();
}

inline std::int64_t workspace_size(std::int64_t count, std::int64_t d, std::int64_t k) {
    const std::int64_t together = std::min<std::int64_t>(k, most_vectors);
    return checked_multiply(count, together * plan_products(count, d).parts + 1);
}

template <class Queue>
void products(const Place& place, Window window, const Vectors& v, const Vectors* incoming,
              std::int64_t into, double* out, double* workspace) {
    Queue queue(place, "mfac_products");
    const std::int64_t count = window.count, k = v.k + (incoming != nullptr ? 1 : 0);
    if (count == 0 || k == 0) return;
    const ProductsPlan plan = plan_products(count, window.d);
    const Vectors first_row = incoming != nullptr ? *incoming : Vectors{};
    double* partial = workspace + count;
    window = on_device(queue, window, workspace);
    for (std::int64_t first = 0; first < k; first += most_vectors) {
        with_packs(window, [&]<class S, int Bytes>() {
            with_count<most_vectors>(k - first, [&]<int K>() {
                queue.run(
                    MultiplyRows<S, Bytes, K>{window, v, first_row, into, first, plan, partial},
                    plan.groups * plan.parts, plan.threads(), K * plan.tile);
            });
        });
        const std::int64_t outputs = std::min<std::int64_t>(k - first, most_vectors) * count;
        queue.run(AddParts{partial, out + first * count, outputs, plan.parts},
                  divided(outputs, usual_warps), usual_threads);
    }
}

template <class Queue>
void combine(const Place& place, Window window, const double* coefficient, double alpha,
             const Vectors* v, const Vectors& out, double* workspace) {
    Queue queue(place, "mfac_combine");
    if (out.k == 0 || window.d == 0) return;
    const Vectors given = v != nullptr ? *v : Vectors{};
    window = on_device(queue, window, workspace);
    for (std::int64_t first = 0; first < out.k; first += most_combinations) {
        with_packs(window, [&]<class S, int Bytes>() {
            with_count<most_combinations>(out.k - first, [&]<int K>() {
                using Kernel = CombineRows<S, Bytes, K>;
                const CombinePlan plan = plan_combine(window.count, window.d, Kernel::panel);
                queue.run(Kernel{window, coefficient, alpha, given, out, first, plan},
                          plan.blocks, usual_threads, Kernel::shared_size(window.count));
            });
        });
    }
}

template <class Queue>
constexpr Calls calls_on{products<Queue>, combine<Queue>, workspace_size};

}  // namespace curvkern::mfac::device
