// The kernels of a Newton step: a block for each chunk of rows and columns, for each row, for
// each part of the rows, or one.
#pragma once

#include "sinkhorn/device_kernels.hpp"
#include "sinkhorn/device_newton_model.hpp"
#include "sinkhorn/device_newton_plan.hpp"

namespace curvkern::sinkhorn::device {
CURVKERN_PER_ISA {

struct NewtonKernel {
    static constexpr int threads_at_most = usual_threads, blocks_at_once = 2;
    Newton s;
};

// body(block, s, chunk)
#define CURVKERN_CHUNK_KERNEL(name, body)                                  \
    struct name : NewtonKernel {                                           \
        CURVKERN_HD void operator()(Block& block, std::int64_t id) const { \
            body(block, s, id);                                            \
        }                                                                  \
    };
CURVKERN_CHUNK_KERNEL(FindNonfinite, find_nonfinite)
CURVKERN_CHUNK_KERNEL(Keep, keep)
CURVKERN_CHUNK_KERNEL(Clear, clear)
CURVKERN_CHUNK_KERNEL(AddColumns, add_columns)
CURVKERN_CHUNK_KERNEL(Balance, balance)
CURVKERN_CHUNK_KERNEL(TakeStock, take_stock)
CURVKERN_CHUNK_KERNEL(SweepPsi, sweep_psi)
CURVKERN_CHUNK_KERNEL(Save, save)
CURVKERN_CHUNK_KERNEL(CountColumns, count_columns)
CURVKERN_CHUNK_KERNEL(AddCounts, add_counts)
CURVKERN_CHUNK_KERNEL(FillColumns, fill_columns)
CURVKERN_CHUNK_KERNEL(BeginModel, begin_model)
CURVKERN_CHUNK_KERNEL(EvaluateRows, evaluate_rows)
CURVKERN_CHUNK_KERNEL(StartSolve, start_solve)
CURVKERN_CHUNK_KERNEL(FindMean, find_mean)
CURVKERN_CHUNK_KERNEL(Accept, accept)
CURVKERN_CHUNK_KERNEL(EndModel, end_model)
#undef CURVKERN_CHUNK_KERNEL

struct BeginLevel : NewtonKernel {
    double eps;
    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        begin_level(block, s, id, eps);
    }
};

struct MoveFromStart : NewtonKernel {
    double step;
    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        move_from_start(block, s, id, step);
    }
};

template <class Costs>
struct CountRow : NewtonKernel {
    double threshold;
    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        count_row<Costs>(block, s, id, threshold);
    }
};

template <class Costs>
struct FillRow : NewtonKernel {
    double threshold;
    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        fill_row<Costs>(block, s, id, threshold);
    }
};

struct PlaceRows : NewtonKernel {
    CURVKERN_HD void operator()(Block& block, std::int64_t) const { place_rows(block, s); }
};

struct PlaceColumns : NewtonKernel {
    CURVKERN_HD void operator()(Block& block, std::int64_t) const {
        place_lines(block, s.columns, s.p.m, [&](std::int64_t j) { return s.column_count[j]; });
    }
};

struct PutGrowth : NewtonKernel {
    const double* x;
    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        put_growth(block, s, id, x);
    }
};

struct EvaluateColumns : NewtonKernel {
    const double* x;
    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        evaluate_columns(block, s, id, x);
    }
};

struct Propose : NewtonKernel {
    double step, cap;
    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        propose(block, s, id, step, cap);
    }
};

// One iteration of conjugate gradients.
struct SolveKernel : NewtonKernel {
    std::int64_t iteration;
    double goal;
};

struct SolveRows : SolveKernel {
    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        solve_rows(block, s, id, iteration, goal);
    }
};

struct SolveColumns : SolveKernel {
    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        solve_columns(block, s, id, iteration, goal);
    }
};

struct SolveVectors : SolveKernel {
    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        solve_vectors(block, s, id, iteration, goal);
    }
};

// One block: N sums over the chunks, for the host.
template <int N>
struct AddChunks : NewtonKernel {
    int first, step;
    CURVKERN_HD void operator()(Block& block, std::int64_t) const {
        const Few<N> total = add_chunks<N>(block, s, first, step);
        block.alone([&](int thread) {
            CURVKERN_IN_REGISTERS
            for (int k = 0; k < N; ++k) {
                if (thread == 0) s.totals[k] = total[k];
            }
        });
    }
};

}  // namespace isa
}  // namespace curvkern::sinkhorn::device
