#include "sinkhorn/newton.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "sinkhorn/newton_linear.hpp"
#include "sinkhorn/newton_solver.hpp"

namespace curvkern::newton {

namespace {

// The path: eps falls from a quarter of the range of the costs by factors of four, and a level
// is left at a marginal error of a tenth.
constexpr double first_level = 4, level_factor = 4, level_error = 0.1;
// Below this error after one sweep, a level needs nothing else; above dense_error the next pass
// gathers the plan for a Newton step.
constexpr double easy_error = 1e-3, dense_error = 0.3;
// Entries of the plan above this share of the error, within these limits, take part.
constexpr double kept_share = 1e-3, kept_least = 1e-7, kept_most = 1e-4;
// Where nothing improves, smaller ones as well, by this factor an iteration: parts of the plan
// that only they connect are moved against each other by them alone.
constexpr double kept_finer = 0.1;
// Newton steps on one sparse model, and the fall of its gradient that ends them early.
constexpr int most_inner = 2;
constexpr double inner_fall = 0.5;
constexpr double linear_fall = 0.1;  // of the residual in a linear solve
// A warm start with a larger error is as good as none.
constexpr double far_error = 0.5;
constexpr int idle_limit = 20;  // iterations without progress

class NewtonSolver {
  public:
    NewtonSolver(const DenseProblem& problem, const NewtonOptions& options, double* f,
                 double* g, double* trace, std::int64_t trace_size, Interrupt& interrupt)
        : problem_(problem),
          options_(options),
          f_(f),
          g_(g),
          trace_(trace),
          trace_size_(trace_size),
          interrupt_(interrupt),
          state_(problem, interrupt) {}

    bool run(NewtonResult& result) {
        bool finished = true;
        double eps = problem_.eps;
        state_.set_level(eps, f_, g_);
        const bool is_warm = options_.warm_start && !starts_from_zero();
        if (is_warm) finished = pass(0);
        if (finished && !done_) {
            state_.potentials(f_, g_);
            if (!(error_ < far_error)) {
                eps = std::max(eps, state_.cost_range() / first_level);
                if (!std::isfinite(eps)) eps = problem_.eps;
                std::fill_n(f_, problem_.n, 0.0);
                std::fill_n(g_, problem_.m, 0.0);
            }
            while (finished) {
                state_.set_level(eps, f_, g_);
                finished = level(eps == problem_.eps);
                state_.potentials(f_, g_);
                if (done_ || eps == problem_.eps) break;
                eps = std::max(eps / level_factor, problem_.eps);
            }
        }
        state_.potentials(f_, g_);
        if (finished && !converged_) finished = take_stock();
        if (std::isnan(error_)) error_ = std::numeric_limits<double>::infinity();
        result = {error_, iterations_, converged_};
        return finished;
    }

  private:
    // Nothing is known then: a small error of the columns after one sweep means little.
    bool starts_from_zero() const {
        const auto is_zero = [](double x) { return x == 0; };
        return std::all_of(f_, f_ + problem_.n, is_zero) &&
               std::all_of(g_, g_ + problem_.m, is_zero);
    }

    bool pass(double threshold) {
        if (!state_.pass(threshold)) return false;
        if (iterations_ < trace_size_) trace_[iterations_] = state_.error();
        ++iterations_;
        error_ = state_.error();
        done_ = iterations_ >= options_.max_iter;
        return true;
    }

    // True where the error, counted again with both marginals, is within tol.
    bool check() {
        if (!state_.verify()) return false;
        error_ = state_.error();
        converged_ = error_ <= options_.tol;
        return converged_;
    }

    // The error of potentials that came from a larger eps, or that were not checked yet.
    bool take_stock() {
        state_.set_level(problem_.eps, f_, g_);
        if (!state_.pass(0) || !state_.verify()) return false;
        error_ = state_.error();
        converged_ = error_ <= options_.tol;
        state_.potentials(f_, g_);
        return true;
    }

    bool level(bool last) {
        const std::int64_t n = problem_.n, m = problem_.m;
        bool trial = false, first = true, later = false;
        double step = 1, start_value = 0, start_error = 0, gain = 0;
        std::vector<double> start_F, start_G, start_column;
        for (;;) {
            const bool gathers = !first && (last || error_ > dense_error || trial || later);
            const double threshold =
                !gathers ? 0
                         : std::max(std::clamp(kept_share * error_, kept_least, kept_most) *
                                        std::pow(kept_finer, idle_),
                                    state_.threshold() / 8);
            if (!pass(threshold)) return false;
            if (last && error_ <= options_.tol && check()) done_ = true;
            if (done_) return true;
            if (trial) {
                const bool better =
                    state_.value() >= start_value + 0.01 * step * gain - state_.resolution() ||
                    error_ < 0.5 * start_error;
                if (!better) {
                    step *= 0.25;
                    trial = step > 1e-3;
                    state_.F = start_F;
                    state_.G = start_G;
                    if (trial) {
                        for (std::int64_t j = 0; j < m; ++j) state_.G[j] += step * move_[j];
                        for (std::int64_t i = 0; i < n; ++i) state_.F[i] += step * row_move_[i];
                    } else {
                        state_.column_mass = start_column;
                        state_.sweep_columns();
                    }
                    continue;
                }
            }
            if (!std::isfinite(error_)) return done_ = true;
            if (first) {
                first = false;
                trial = false;
                state_.sweep_columns();
                if (!last && error_ < easy_error) return true;
                continue;
            }
            if (!last && error_ < level_error) {
                state_.sweep_columns();
                return true;
            }
            if (last && !progress()) return true;
            later = true;
            if (!gathers) {
                state_.sweep_columns();
                continue;
            }
            gain = newton_step();
            if (interrupt_.stop()) return false;
            if (!(gain > 0)) {
                trial = false;
                state_.sweep_columns();
                continue;
            }
            trial = true;
            step = 1;
            start_F = state_.F;
            start_G = state_.G;
            start_column = state_.column_mass;
            start_value = state_.value();
            start_error = error_;
            for (std::int64_t j = 0; j < m; ++j) state_.G[j] += move_[j];
            for (std::int64_t i = 0; i < n; ++i) state_.F[i] += row_move_[i];
        }
    }

    // False at the limit of the arithmetic: for long neither error nor value has improved.
    bool progress() {
        if (error_ < 0.9 * best_error_ || state_.value() > best_value_ + state_.resolution()) {
            idle_ = 0;
        } else {
            ++idle_;
        }
        best_error_ = std::min(best_error_, error_);
        best_value_ = std::max(best_value_, state_.value());
        return idle_ < idle_limit;
    }

    // Newton on the sparse model from the present potentials; the gain it promises.
    double newton_step() {
        const std::int64_t m = problem_.m;
        model_.reset(state_.plan(), state_.row_mass.data(), state_.column_mass.data(),
                     state_.target.data(), m, state_.lambda_a, state_.kappa_b);
        move_.assign(m, 0.0);
        row_move_.resize(problem_.n);
        direction_.resize(m);
        next_.resize(m);
        if (!model_.evaluate(move_.data())) return 0;
        const double first_value = model_.value(), first_norm = model_.gradient_norm();
        // A dropped entry grows by less than the square root of what it was dropped for.
        // Letting the cap grow after steps that met it and turned out well took more
        // iterations, not fewer.
        const double cap = -0.5 * std::log(state_.threshold());
        for (int inner = 0; inner < most_inner; ++inner) {
            const double norm = model_.gradient_norm(), value = model_.value();
            if (inner > 0 && norm < inner_fall * first_norm) break;
            linear_.solve(model_, linear_fall, direction_.data(), interrupt_);
            if (interrupt_.stop()) return 0;
            center(direction_);
            double step = 1;
            bool moved = false;
            for (; step > 1e-5; step *= 0.4) {
                double slope = 0;
                for (std::int64_t j = 0; j < m; ++j) {
                    next_[j] = std::clamp(move_[j] + step * direction_[j], -cap, cap);
                    slope += model_.gradient()[j] * (next_[j] - move_[j]);
                }
                if (!(slope > 0)) continue;
                if (model_.evaluate(next_.data()) && (model_.value() >= value + 1e-4 * slope ||
                                                      model_.gradient_norm() < 0.5 * norm)) {
                    moved = true;
                    break;
                }
                model_.evaluate(move_.data());
            }
            if (!moved) break;
            move_.swap(next_);
        }
        if (!model_.evaluate(move_.data())) return 0;
        model_.row_change(row_move_.data());
        const double gain = model_.value() - first_value;
        if (gain <= 0 && model_.gradient_norm() < first_norm) return 1e-300;
        return gain;
    }

    // Hard marginals leave a constant open: none of it, in the mean over the targets.
    void center(std::vector<double>& x) const {
        double mean = 0, mass = 0;
        for (std::int64_t j = 0; j < problem_.m; ++j) {
            mean += state_.target[j] * x[j];
            mass += state_.target[j];
        }
        if (state_.lambda_a < 1 || state_.kappa_b > 0) return;
        for (std::int64_t j = 0; j < problem_.m; ++j) {
            x[j] = state_.target[j] > 0 ? x[j] - mean / mass : 0;
        }
    }

    const DenseProblem& problem_;
    const NewtonOptions& options_;
    double *f_, *g_, *trace_;
    std::int64_t trace_size_;
    Interrupt& interrupt_;
    DenseState state_;
    SparseModel model_;
    LinearSolver linear_;
    std::vector<double> move_, row_move_, direction_, next_;
    std::int64_t iterations_ = 0, idle_ = 0;
    double error_ = std::numeric_limits<double>::infinity();
    double best_error_ = std::numeric_limits<double>::infinity();
    double best_value_ = -std::numeric_limits<double>::infinity();
    bool done_ = false, converged_ = false;
};

}  // namespace

bool solve_newton(const DenseProblem& problem, const NewtonOptions& options, double* f,
                  double* g, double* trace, std::int64_t trace_size, NewtonResult& result,
                  Interrupt& interrupt) {
    return NewtonSolver(problem, options, f, g, trace, trace_size, interrupt).run(result);
}

}  // namespace curvkern::newton
