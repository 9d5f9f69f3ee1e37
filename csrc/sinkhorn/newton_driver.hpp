// The path of Newton's method on the dual: which level of eps comes next, when the plan is
// gathered, what becomes of a step. One source for the CPU and for a GPU: what it says is done
// by a stage, and it sees nothing but numbers.
//
//     void set_level(double eps)     the kept potentials, in units of this eps
//     void keep()                    keeps the potentials as they are, where they are finite
//     void clear()                   zeros in place of the kept ones
//     bool starts_from_zero()        whether those are zeros
//     double cost_range()            of the finite costs
//
//     bool pass(double threshold)    brings every row to its optimum given the columns, and
//                                    takes stock; with a threshold, what is above it can be
//                                    gathered. False when interrupted
//     bool verify()                  as a pass, rows as they are: error() counts both marginals
//     void sweep_columns()           Sinkhorn's column step from the sums of the last pass
//     double error(), value(), resolution(), threshold()    see DenseState
//
//     bool begin_model()             the sparse model around the potentials, at x = 0
//     double model_value(), gradient_norm()                 see SparseModel
//     bool solve(double reduction)   a direction from x; false when interrupted
//     double propose(double step, double cap)               next = x + step direction, within
//                                    the cap; returns the slope from x to there
//     bool evaluate_proposed(), evaluate()                  the model at next, at x
//     void accept()                  x = next
//     void end_model()               makes the move of rows and columns from x
//     void save()                    the potentials from which move() starts
//     void move(double step)         to so much of the move from there
//     void return_to_start()         back, with the column sums that were found there
//     bool interrupted()
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "sinkhorn/newton.hpp"

namespace curvkern::newton {

// The path: eps falls from a quarter of the range of the costs by factors of four, and a level
// is left at a marginal error of a tenth.
inline constexpr double first_level = 4, level_factor = 4, level_error = 0.1;
// Below this error after one sweep, a level needs nothing else; above dense_error the next pass
// gathers the plan for a Newton step.
inline constexpr double easy_error = 1e-3, dense_error = 0.3;
// Entries of the plan above this share of the error, within these limits, take part.
inline constexpr double kept_share = 1e-3, kept_least = 1e-7, kept_most = 1e-4;
// Where nothing improves, smaller ones as well, by this factor an iteration: parts of the plan
// that only they connect are moved against each other by them alone.
inline constexpr double kept_finer = 0.1;
// Newton steps on one sparse model, and the fall of its gradient that ends them early.
inline constexpr int most_inner = 2;
inline constexpr double inner_fall = 0.5;
inline constexpr double linear_fall = 0.1;  // of the residual in a linear solve
// A warm start with a larger error is as good as none.
inline constexpr double far_error = 0.5;
inline constexpr int idle_limit = 20;  // iterations without progress

template <class Stage>
class Driver {
  public:
    Driver(Stage& stage, double eps, const NewtonOptions& options, double* trace,
           std::int64_t trace_size)
        : stage_(stage), eps_(eps), options_(options), trace_(trace), trace_size_(trace_size) {}

    // The result is in the kept potentials. False when interrupted.
    bool run(NewtonResult& result) {
        bool finished = true;
        double eps = eps_;
        stage_.set_level(eps);
        // Nothing is known at zero: a small error of the columns after one sweep means little.
        const bool is_warm = options_.warm_start && !stage_.starts_from_zero();
        if (is_warm) finished = pass(0);
        if (finished && !done_) {
            stage_.keep();
            if (!(error_ < far_error)) {
                eps = std::max(eps, stage_.cost_range() / first_level);
                if (!std::isfinite(eps)) eps = eps_;
                stage_.clear();
            }
            while (finished) {
                stage_.set_level(eps);
                finished = level(eps == eps_);
                stage_.keep();
                if (done_ || eps == eps_) break;
                eps = std::max(eps / level_factor, eps_);
            }
        }
        stage_.keep();
        if (finished && !converged_) finished = take_stock();
        if (std::isnan(error_)) error_ = std::numeric_limits<double>::infinity();
        result = {error_, iterations_, converged_};
        return finished;
    }

  private:
    bool pass(double threshold) {
        if (!stage_.pass(threshold)) return false;
        if (iterations_ < trace_size_) trace_[iterations_] = stage_.error();
        ++iterations_;
        error_ = stage_.error();
        done_ = iterations_ >= options_.max_iter;
        return true;
    }

    // True where the error, counted again with both marginals, is within tol.
    bool check() {
        if (!stage_.verify()) return false;
        error_ = stage_.error();
        converged_ = error_ <= options_.tol;
        return converged_;
    }

    // The error of potentials that came from a larger eps, or that were not checked yet.
    bool take_stock() {
        stage_.set_level(eps_);
        if (!stage_.pass(0) || !stage_.verify()) return false;
        error_ = stage_.error();
        converged_ = error_ <= options_.tol;
        stage_.keep();
        return true;
    }

    bool level(bool last) {
        bool trial = false, first = true, later = false;
        double step = 1, start_value = 0, start_error = 0, gain = 0;
        for (;;) {
            const bool gathers = !first && (last || error_ > dense_error || trial || later);
            const double threshold =
                !gathers ? 0
                         : std::max(std::clamp(kept_share * error_, kept_least, kept_most) *
                                        std::pow(kept_finer, idle_),
                                    stage_.threshold() / 8);
            if (!pass(threshold)) return false;
            if (last && error_ <= options_.tol && check()) done_ = true;
            if (done_) return true;
            if (trial) {
                const bool better =
                    stage_.value() >= start_value + 0.01 * step * gain - stage_.resolution() ||
                    error_ < 0.5 * start_error;
                if (!better) {
                    step *= 0.25;
                    trial = step > 1e-3;
                    if (trial) {
                        stage_.move(step);
                    } else {
                        stage_.return_to_start();
                        stage_.sweep_columns();
                    }
                    continue;
                }
            }
            if (!std::isfinite(error_)) return done_ = true;
            if (first) {
                first = false;
                trial = false;
                stage_.sweep_columns();
                if (!last && error_ < easy_error) return true;
                continue;
            }
            if (!last && error_ < level_error) {
                stage_.sweep_columns();
                return true;
            }
            if (last && !progress()) return true;
            later = true;
            if (!gathers) {
                stage_.sweep_columns();
                continue;
            }
            gain = newton_step();
            if (stage_.interrupted()) return false;
            if (!(gain > 0)) {
                trial = false;
                stage_.sweep_columns();
                continue;
            }
            trial = true;
            step = 1;
            start_value = stage_.value();
            start_error = error_;
            stage_.save();
            stage_.move(step);
        }
    }

    // False at the limit of the arithmetic: for long neither error nor value has improved.
    bool progress() {
        if (error_ < 0.9 * best_error_ || stage_.value() > best_value_ + stage_.resolution()) {
            idle_ = 0;
        } else {
            ++idle_;
        }
        best_error_ = std::min(best_error_, error_);
        best_value_ = std::max(best_value_, stage_.value());
        return idle_ < idle_limit;
    }

    // Newton on the sparse model from the present potentials; the gain it promises.
    double newton_step() {
        if (!stage_.begin_model()) return 0;
        const double first_value = stage_.model_value(), first_norm = stage_.gradient_norm();
        // A dropped entry grows by less than the square root of what it was dropped for.
        // Letting the cap grow after steps that met it and turned out well took more
        // iterations, not fewer.
        const double cap = -0.5 * std::log(stage_.threshold());
        for (int inner = 0; inner < most_inner; ++inner) {
            const double norm = stage_.gradient_norm(), value = stage_.model_value();
            if (inner > 0 && norm < inner_fall * first_norm) break;
            if (!stage_.solve(linear_fall)) return 0;
            bool moved = false;
            for (double step = 1; step > 1e-5; step *= 0.4) {
                const double slope = stage_.propose(step, cap);
                if (!(slope > 0)) continue;
                moved = stage_.evaluate_proposed() &&
                        (stage_.model_value() >= value + 1e-4 * slope ||
                         stage_.gradient_norm() < 0.5 * norm);
                if (moved) break;
                stage_.evaluate();
            }
            if (!moved) break;
            stage_.accept();
        }
        if (!stage_.evaluate()) return 0;
        stage_.end_model();
        const double gain = stage_.model_value() - first_value;
        if (gain <= 0 && stage_.gradient_norm() < first_norm) return 1e-300;
        return gain;
    }

    Stage& stage_;
    const double eps_;
    const NewtonOptions options_;
    double* trace_;
    std::int64_t trace_size_;
    std::int64_t iterations_ = 0, idle_ = 0;
    double error_ = std::numeric_limits<double>::infinity();
    double best_error_ = std::numeric_limits<double>::infinity();
    double best_value_ = -std::numeric_limits<double>::infinity();
    bool done_ = false, converged_ = false;
};

}  // namespace curvkern::newton
