#pragma once

#include "sinkhorn/device_launch.hpp"

namespace curvkern::sinkhorn::device {

// Few columns: rows at once, and columns a thread.
inline constexpr int narrow_rows = 2, narrow_columns = 8;
inline constexpr std::int64_t narrow = narrow_columns * usual_threads;

template <class Queue>
void start(Queue& queue, const Batch& p) {
    queue.run(Start{{p}}, p.batch, usual_threads);
}

template <class Queue>
void find_range(Queue& queue, const Batch& p) {
    with_costs(p.kind, [&]<class Costs>() {
        queue.run(FindRange<Costs>{{p}}, p.batch * p.slots, threads_for(p.m));
    });
}

template <class Queue>
void sweep(Queue& queue, const Batch& p, Mode mode) {
    with_costs(p.kind, [&]<class Costs>() {
        const std::int64_t blocks = p.batch * p.slots, m = p.m;
        if (m <= narrow) {
            queue.run(SweepRows<narrow_rows, narrow_columns, 256, 2, Costs>{p, mode}, blocks,
                      threads_for(m, 8), m);
        } else if (m <= 24 * 256) {
            queue.run(SweepRows<1, 24, 256, 2, Costs>{p, mode}, blocks, 256, m);
        } else if (m <= std::min(most_columns, queue.shared_limit())) {
            queue.run(SweepRows<1, 40, 512, 1, Costs>{p, mode}, blocks, 512, m);
        } else {
            const std::int64_t panels = ceil_divide(m, usual_threads);
            queue.run(SweepRows<4, 0, 256, 2, Costs>{p, mode}, blocks, usual_threads);
            queue.run(SumColumns<Costs>{{p}, mode, panels}, p.batch * p.parts * panels,
                      usual_threads);
        }
    });
}

template <class Queue>
void finish_columns(Queue& queue, const Batch& p, Mode mode) {
    with_costs(p.kind, [&]<class Costs>() {
        const std::int64_t tiles = ceil_divide(p.m, warp_size);
        queue.run(FinishColumns<Costs>{{p}, mode, tiles}, p.batch * tiles, usual_threads,
                  usual_threads + warp_size);
    });
}

template <class Queue>
void check(Queue& queue, const Batch& p, bool last, std::int64_t iteration, double tol,
           double* errors) {
    queue.run(PrepareCheck{{p}, last}, p.batch, usual_threads);
    sweep(queue, p, Mode::check);
    finish_columns(queue, p, Mode::check);
    queue.run(Judge{{p}, static_cast<double>(iteration), tol, errors}, p.batch, usual_threads);
}

template <class Queue>
void complete(Queue& queue, const Batch& p, double* f, double* g, double* info) {
    finish_columns(queue, p, Mode::complete);
    queue.run(Write{{p}, f, g, info}, p.batch, usual_threads);
}

// Compiles all of them for a queue.
#define CURVKERN_DEVICE_PASSES(Queue)                                               \
    template void start(Queue&, const Batch&);                                      \
    template void find_range(Queue&, const Batch&);                                 \
    template void sweep(Queue&, const Batch&, Mode);                                \
    template void finish_columns(Queue&, const Batch&, Mode);                       \
    template void check(Queue&, const Batch&, bool, std::int64_t, double, double*); \
    template void complete(Queue&, const Batch&, double*, double*, double*);

}  // namespace curvkern::sinkhorn::device
