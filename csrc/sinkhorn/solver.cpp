#include "sinkhorn/solver.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "core/span.hpp"

namespace curvkern::sinkhorn {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr std::int64_t column_chunk = 512;
constexpr std::int64_t round_work = std::int64_t{1} << 25;  // entries, some 20 ms

// Annealing divides eps by `factor` down from the range of the costs, so many sweeps at each.
constexpr double anneal_factor = 4;
constexpr int anneal_sweeps = 2;

// float32 arithmetic is for the way to here; its own noise is some 1e-7 of a marginal.
constexpr double float32_floor = 1e-5;

// Stored entries serve while no potential has moved further, in powers of two: sums then stay
// as far from the bounds of their arithmetic, see Usable, as they were.
constexpr double most_drift[] = {60, 10};

double seconds() {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double>(now).count();
}

bool is_balanced(const Problem& p) {
    return p.a.inverse_rho == 0 && p.b.inverse_rho == 0;
}

double mean(const Side& side, const double* values) {
    double total = 0;
    for (std::int64_t i = 0; i < side.size; ++i) {
        if (side.weight[i] > 0) total += side.weight[i] * values[i];
    }
    return total;
}

void shift(const Side& side, double* potential, double by) {
    for (std::int64_t i = 0; i < side.size; ++i) potential[i] += by;
}

// sum a f / sum a = sum b g / sum b
void fix_gauge(Problem& p) {
    const double by = (mean(p.b, p.b.potential) - mean(p.a, p.a.potential)) / 2;
    shift(p.a, p.a.potential, by);
    shift(p.b, p.b.potential, -by);
}

// The translation t that, with the new potentials of `fresh` following it, maximises the dual
// in (fresh + t, other - t): closed form for KL penalties. Séjourné, Vialard, Peyré, "Faster
// unbalanced optimal transport: translation invariant Sinkhorn and 1-D Frank-Wolfe" (2022).
double best_translation(const Kernels& kernels, const Side& fresh,
                        const double* fresh_potential, const Side& other,
                        const double* other_potential) {
    const double own = kernels.log_sum(fresh, fresh_potential, fresh.inverse_rho);
    const double theirs = kernels.log_sum(other, other_potential, other.inverse_rho);
    const double inverse = fresh.inverse_rho;
    return (own - theirs) / (inverse / (1 + inverse) + other.inverse_rho);
}

// f <- (f + update(f)) / 2 for both sides. The Jacobian of the update is -P without its
// weights, with eigenvalues in [-1, 0] where exp(-C / eps) is positive definite, as it is
// between points: the error halves, at least, whatever eps is. Feydy et al., "Interpolating
// between optimal transport and MMD using Sinkhorn divergences" (2019), section 3.
void average(const Problem& p) {
    for (std::int64_t i = 0; i < p.a.size; ++i) {
        double& next = p.a.next[i];
        if (p.a.weight[i] > 0) next = (p.a.potential[i] + next) / 2;
        p.b.next[i] = next;
    }
}

bool is_finite(const Side& side) {
    return std::all_of(side.potential, side.potential + side.size,
                       [](double x) { return std::isfinite(x); });
}

// Points without mass follow the others, wherever a solve started from.
void finish(const Side& side) {
    for (std::int64_t i = 0; i < side.size; ++i) {
        if (side.weight[i] == 0) side.potential[i] = side.next[i];
    }
}

// A bound on the range of costs between points, from the boxes that hold them.
double point_range(const Batch& batch, const Problem& p) {
    double total = 0;
    for (int k = 0; k < batch.dims; ++k) {
        double least = infinity, most = -infinity;
        const auto include = [&](double coordinate) {
            least = std::min(least, coordinate);
            most = std::max(most, coordinate);
        };
        for (std::int64_t i = 0; i < batch.n; ++i) include(p.x[i * batch.dims + k]);
        const double* y = p.y_transposed + k * padded(batch.m);
        for (std::int64_t j = 0; j < batch.m; ++j) include(y[j]);
        const double extent = most - least;
        total += batch.kind == Cost::l1 ? extent : extent * extent;
    }
    return (batch.kind == Cost::euclidean ? std::sqrt(total) : total) * batch.scale;
}

}  // namespace

std::int64_t solver_workspace_size(const Batch& batch) {
    return workspace_size(batch) + checked_multiply(store_size(batch), batch.batch);
}

Solver::Solver(const Batch& batch, const Options& options, const Hooks& hooks,
               double* workspace)
    : batch_(batch),
      options_(options),
      hooks_(hooks),
      shares_(batch.n, batch.m),
      kernels_(CURVKERN_SELECT_ISA(sinkhorn::, ::kernels())),
      states_(batch.batch),
      last_poll_(seconds()) {
    for (std::int64_t i = 0; i < batch.batch; ++i) {
        State& state = states_[i];
        state.problem = make_problem(batch_, i, workspace);
        const std::int64_t store = store_size(batch);
        if (store > 0) state.problem.store = workspace + workspace_size(batch) + i * store;
        state.index = i;
        state.eps = state.target = batch.eps[i];
        state.error = infinity;
        const double slope = state.problem.slope;
        if (batch.has_float32() && slope > 1e-30 && slope < 1e30) {
            state.arithmetic = Arithmetic::float32;
        }
        active_.push_back(&state);
    }
}

void Solver::start_from(const double* f, const double* g) {
    warm_ = true;
    for (State& state : states_) {
        Problem& p = state.problem;
        const double unit = log2_e / state.eps;
        for (std::int64_t i = 0; i < batch_.n; ++i) {
            p.a.potential[i] = f[state.index * batch_.n + i] * unit;
        }
        for (std::int64_t j = 0; j < batch_.m; ++j) {
            p.b.potential[j] = g[state.index * batch_.m + j] * unit;
        }
        if (is_balanced(p)) fix_gauge(p);
    }
}

bool Solver::run() {
    if (options_.anneal && !warm_ && !begin_annealing()) return false;
    const std::int64_t every = options_.check_every, last = options_.max_iter;
    std::int64_t next_check = warm_ ? 0 : std::min(every, last);
    for (;;) {
        if (!all_sweep(next_check - iteration_, false)) return false;
        iteration_ = next_check;
        if (iteration_ == last) {
            for (State* state : active_) set_level(*state, state->target);
        }
        if (!all_sweep(1, true)) return false;
        double largest = 0;
        for (State& state : states_) largest = state.error > largest ? state.error : largest;
        for (State* state : active_) {
            if (std::isnan(state->error)) largest = state->error;
        }
        if (hooks_.checked && !hooks_.checked(iteration_, largest)) return false;
        std::erase_if(active_, [](const State* state) { return state->done; });
        if (active_.empty() || iteration_ == last) return true;
        for (State* state : active_) {
            std::swap(state->problem.a.potential, state->problem.a.next);
            std::swap(state->problem.b.potential, state->problem.b.next);
        }
        ++iteration_;
        next_check =
            every > last ? last : std::min(((iteration_ - 1) / every + 1) * every, last);
    }
}

// So many sweeps of every active problem; a check's is not yet committed.
bool Solver::all_sweep(std::int64_t sweeps, bool check) {
    const std::int64_t work = std::max<std::int64_t>(1, batch_.n * batch_.m);
    const std::int64_t round = std::max<std::int64_t>(1, round_work / work);
    const auto count = static_cast<std::int64_t>(active_.size());
    const bool by_problem = count > 1 && (count >= 2 * thread_count() || shares_.chunks == 1);
    const auto serial = [](std::int64_t n, std::int64_t, auto body) {
        body(std::int64_t{0}, n);
        return true;
    };
    const auto parallel = [this](std::int64_t n, std::int64_t chunk, auto body) {
        return parallel_chunks(n, chunk, hooks_.interrupted, body);
    };
    for (std::int64_t left = sweeps; left > 0; left -= round) {
        const std::int64_t now = std::min(left, round);
        if (by_problem) {
            const bool finished = parallel_chunks(
                count, 1, hooks_.interrupted, [&](std::int64_t begin, std::int64_t end) {
                    for (std::int64_t i = begin; i < end; ++i) {
                        for (std::int64_t s = 0; s < now; ++s)
                            sweep(*active_[i], check, serial);
                    }
                });
            if (!finished || !poll()) return false;
        } else {
            for (State* state : active_) {
                for (std::int64_t s = 0; s < now; ++s) {
                    if (!sweep(*state, check, parallel) || !poll()) return false;
                }
            }
        }
    }
    return true;
}

template <class Run>
bool Solver::sweep(State& state, bool is_check, const Run& run) {
    if (state.eps > state.target && state.sweeps_left-- == 0) {
        set_level(state, std::max(state.target, state.eps / anneal_factor));
    }
    Problem& p = state.problem;
    if (is_check && state.eps == state.target) return check(state, run);
    if (!sweep_once(state, Sweep::plain, run)) return false;
    if (is_check) return true;  // annealing still
    std::swap(p.a.potential, p.a.next);
    std::swap(p.b.potential, p.b.next);
    return true;
}

template <class Run>
bool Solver::check(State& state, const Run& run) {
    const double before = state.error;
    const bool last = iteration_ == options_.max_iter;
    if (!sweep_once(state, last ? Sweep::exact_check : Sweep::check, run)) return false;
    measure(state);
    const bool is_rough = !last && (state.error <= options_.tol ||
                                    (is_float32(state) && state.error < float32_floor));
    if (is_rough) {
        if (!sweep_once(state, Sweep::exact_check, run)) return false;
        measure(state);
        // The roundings of stored entries stay the same from sweep to sweep: make them again.
        if (state.error > options_.tol) state.stored = false;
    }
    judge(state, before);
    if (state.done || last) {
        finish(state.problem.a);
        finish(state.problem.b);
        if (is_balanced(state.problem)) fix_gauge(state.problem);
    }
    return true;
}

// The problem as the next sweep takes it: with entries that are stored, or are to be stored.
Problem Solver::prepare(State& state, Arithmetic arithmetic, bool may_store) {
    Problem p = state.problem;
    if (p.store == nullptr || !may_store) {
        p.store = nullptr;
        p.a.base = p.a.potential;
        p.b.base = p.b.potential;
    } else if (state.stored) {
        const double drift = std::max(kernels_.drift(p.a), kernels_.drift(p.b));
        p.stored = drift <= most_drift[static_cast<int>(arithmetic)];
    }
    if (p.stored) return p;
    if (p.store != nullptr) {
        std::copy(p.a.potential, p.a.potential + p.a.size, p.a.base);
        std::copy(p.b.potential, p.b.potential + p.b.size, p.b.base);
        state.stored = true;
    }
    kernels_.drift(p.b);  // there is none: it fills the factors of the columns
    if (arithmetic == Arithmetic::float32) kernels_.split(p);
    return p;
}

template <class Run>
bool Solver::sweep_once(State& state, Sweep sweep, const Run& run) {
    const bool check = sweep != Sweep::plain, exact = sweep == Sweep::exact_check;
    const Arithmetic arithmetic = exact ? Arithmetic::float64 : state.arithmetic;
    const Problem p = prepare(state, arithmetic, !exact);
    const int kind = static_cast<int>(batch_.kind), number = static_cast<int>(arithmetic);
    const Rows rows = kernels_.rows[kind][number];
    for (std::int64_t wave = 0; wave < shares_.chunks; wave += shares_.slots) {
        const std::int64_t chunks =
            std::min<std::int64_t>(shares_.slots, shares_.chunks - wave);
        const bool finished = run(chunks, 1, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t slot = begin; slot < end; ++slot) {
                const std::int64_t first = (wave + slot) * shares_.rows;
                rows(p, first, std::min(first + shares_.rows, batch_.n), static_cast<int>(slot),
                     wave == 0, check);
            }
        });
        if (!finished) return false;
    }
    const Columns columns = kernels_.columns[kind][number];
    const bool finished =
        run(batch_.m, column_chunk,
            [&](std::int64_t begin, std::int64_t end) { columns(p, begin, end, check); });
    if (!finished) return false;
    if (options_.translate && !is_balanced(p)) {
        const double first = best_translation(kernels_, p.a, p.a.next, p.b, p.b.potential);
        shift(p.a, p.a.next, p.a.damping * first);
        shift(p.b, p.b.next, -p.a.damping * p.b.damping * first);
        const double second = best_translation(kernels_, p.b, p.b.next, p.a, p.a.next);
        shift(p.b, p.b.next, p.b.damping * second);
        shift(p.a, p.a.next, -second);
    }
    if (options_.symmetric) average(p);
    return true;
}

void Solver::measure(State& state) {
    const Side &a = state.problem.a, &b = state.problem.b;
    const double total = a.mass * mean(a, a.residual) + b.mass * mean(b, b.residual);
    // Exponents are cut where arithmetic ends, at NaN as well: the sums alone do not tell.
    const bool has_overflown = !is_finite(a) || !is_finite(b);
    state.error = has_overflown ? infinity : total / std::max(a.mass, b.mass);
}

// After a check whose error, the one `before` being known, was exact where it matters.
void Solver::judge(State& state, double before) {
    state.iterations = iteration_;
    state.converged = state.error <= options_.tol;
    state.done = state.converged;
    const bool has_stalled = state.error < float32_floor || !(state.error < before);
    if (is_float32(state) && has_stalled) {
        state.arithmetic = Arithmetic::float64;
        state.stored = false;
    }
}

// Levels that leave no iteration for the wanted eps are skipped.
bool Solver::begin_annealing() {
    for (State& state : states_) {
        double range;
        if (!cost_range(state, range)) return false;
        double eps = range / anneal_factor;
        while (eps > anneal_factor * state.target) {
            const double levels = std::log(eps / state.target) / std::log(anneal_factor) + 1;
            if (anneal_sweeps * levels < static_cast<double>(options_.max_iter) / 2) break;
            eps /= anneal_factor;
        }
        if (eps > anneal_factor * state.target) set_level(state, eps);
    }
    return true;
}

// The range of the finite costs times the scale, or a bound on it; false when interrupted.
bool Solver::cost_range(const State& state, double& range) const {
    const Problem& p = state.problem;
    constexpr double largest = std::numeric_limits<double>::max();
    if (batch_.has_points()) {
        range = std::min(point_range(batch_, p), largest);
        return true;
    }
    const Range find = kernels_.range[static_cast<int>(batch_.kind)];
    std::vector<double> bounds(2 * shares_.chunks);
    const bool finished = parallel_chunks(
        batch_.n, shares_.rows, hooks_.interrupted, [&](std::int64_t begin, std::int64_t end) {
            find(p, begin, end, bounds.data() + 2 * (begin / shares_.rows));
        });
    double least = infinity, most = -infinity;
    for (std::size_t i = 0; i < bounds.size(); i += 2) {
        least = std::min(least, bounds[i]);
        most = std::max(most, bounds[i + 1]);
    }
    const double extent = most > least ? (most - least) * batch_.scale : 0;
    range = std::min(extent, largest);
    return finished;
}

void Solver::set_level(State& state, double eps) {
    const double ratio = state.eps / eps;
    state.eps = eps;
    state.sweeps_left = anneal_sweeps;
    if (ratio == 1) return;
    state.stored = false;
    Problem& p = state.problem;
    for (std::int64_t i = 0; i < batch_.n; ++i) p.a.potential[i] *= ratio;
    for (std::int64_t j = 0; j < batch_.m; ++j) p.b.potential[j] *= ratio;
    set_eps(p, batch_, state.index, eps);
}

bool Solver::poll() {
    if (seconds() - last_poll_ < 0.05) return true;
    last_poll_ = seconds();
    return !hooks_.interrupted();
}

void Solver::write(double* f, double* g, double* info) const {
    for (const State& state : states_) {
        const Problem& p = state.problem;
        const double unit = state.target / log2_e;
        for (std::int64_t i = 0; i < batch_.n; ++i) {
            f[state.index * batch_.n + i] = p.a.potential[i] * unit;
        }
        for (std::int64_t j = 0; j < batch_.m; ++j) {
            g[state.index * batch_.m + j] = p.b.potential[j] * unit;
        }
        double* row = info + 3 * state.index;
        row[0] = state.error;
        row[1] = static_cast<double>(state.iterations);
        row[2] = state.converged ? 1 : 0;
    }
}

void Solver::write_errors(double* errors) const {
    for (const State& state : states_) errors[state.index] = state.error;
}

}  // namespace curvkern::sinkhorn
