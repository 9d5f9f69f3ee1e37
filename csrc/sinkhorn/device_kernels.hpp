// The kernels: which part of the work each block of a launch takes.
#pragma once

#include "sinkhorn/device_plan.hpp"
#include "sinkhorn/device_steps.hpp"

namespace curvkern::sinkhorn::device {
CURVKERN_PER_ISA {

inline constexpr int usual_threads = 256;

// A block for each problem.
struct EachProblem {
    static constexpr int threads_at_most = usual_threads, blocks_at_once = 1;
    Batch p;
};

struct Start : EachProblem {
    CURVKERN_HD void operator()(Block& block, std::int64_t id) const { start(block, p, id); }
};

struct BeginAnnealing : EachProblem {
    double max_iter;
    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        begin_annealing(block, p, id, max_iter);
    }
};

struct Settle : EachProblem {
    Updates updates;
    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        settle(block, p, id, updates);
    }
};

struct PrepareCheck : EachProblem {
    bool last;
    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        prepare_check(block, p, id, last);
    }
};

struct Judge : EachProblem {
    double iteration, tol;
    double* errors;
    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        judge(block, p, id, iteration, tol, errors);
    }
};

struct Write : EachProblem {
    double *f, *g, *info;
    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        write(block, p, id, f, g, info);
    }
};

// A block for each slot of rows.
template <class Costs>
struct FindRange : EachProblem {
    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        find_range<Costs>(block, p, id / p.slots, id % p.slots);
    }
};

// A multiprocessor runs BlocksAtOnce of them side by side: the compiler keeps registers for so
// many.
template <int R, int K, int Threads, int BlocksAtOnce, class Costs>
struct SweepRows {
    static constexpr int threads_at_most = Threads, blocks_at_once = BlocksAtOnce;
    Batch p;
    Mode mode;
    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        sweep_rows<R, K, Costs>(block, p, id / p.slots, id % p.slots, mode);
    }
};

// A block for each part of the rows and `usual_threads` columns.
template <class Costs>
struct SumColumns : EachProblem {
    Mode mode;
    std::int64_t panels;
    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        const std::int64_t part = id / panels, panel = id % panels;
        sum_columns<Costs>(block, p, part / p.parts, part % p.parts, panel * block.threads(),
                           mode);
    }
};

// A block for each warp of columns.
template <class Costs>
struct FinishColumns : EachProblem {
    Mode mode;
    std::int64_t tiles;
    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        finish_columns<Costs>(block, p, id / tiles, id % tiles * warp_size, mode);
    }
};

// Many small problems: a block for each, and so many sweeps in one launch.
template <int R, int K, class Costs>
struct Iterate : EachProblem {
    Updates updates;
    std::int64_t sweeps;
    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        for (std::int64_t sweep = 0; sweep < sweeps; ++sweep) {
            for (std::int64_t slot = 0; slot < p.slots; ++slot) {
                sweep_rows<R, K, Costs>(block, p, id, slot, Mode::update);
            }
            for (std::int64_t first = 0; first < p.m; first += warp_size) {
                finish_columns<Costs>(block, p, id, first, Mode::update);
            }
            settle(block, p, id, updates);
        }
    }
};

template <class Costs>
struct PlanRow : EachProblem {
    Products out;
    std::int64_t first;
    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        plan_row<Costs>(block, p, out, id / p.n, id % p.n, first);
    }
};

template <class Costs>
struct PlanColumns : EachProblem {
    Products out;
    std::int64_t first, panels;
    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        const std::int64_t part = id / panels, panel = id % panels;
        plan_columns<Costs>(block, p, out, part / p.parts, part % p.parts,
                            panel * block.threads(), first);
    }
};

struct AddParts : EachProblem {
    Products out;
    std::int64_t first, panels;
    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        add_parts(block, p, out, id / panels, id % panels * block.threads(), first);
    }
};

struct AddTotals : EachProblem {
    Products out;
    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        add_totals(block, p, out, id);
    }
};

template <class Costs>
struct GradientRow : EachProblem {
    Gradient to;
    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        gradient_row<Costs>(block, p, to, id / p.n, id % p.n);
    }
};

}  // namespace isa
}  // namespace curvkern::sinkhorn::device
