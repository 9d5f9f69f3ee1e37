#include "sinkhorn/newton.hpp"

#include <algorithm>
#include <cmath>

#include "sinkhorn/newton_driver.hpp"
#include "sinkhorn/newton_linear.hpp"
#include "sinkhorn/newton_solver.hpp"

namespace curvkern::newton {

namespace {

// What newton_driver.hpp asks for, with the costs of one problem in memory.
class Stage {
  public:
    Stage(const DenseProblem& problem, double* f, double* g, Interrupt& interrupt)
        : problem_(problem), f_(f), g_(g), interrupt_(interrupt), state_(problem, interrupt) {}

    void set_level(double eps) { state_.set_level(eps, f_, g_); }
    void keep() { state_.potentials(f_, g_); }
    void clear() {
        std::fill_n(f_, problem_.n, 0.0);
        std::fill_n(g_, problem_.m, 0.0);
    }
    bool starts_from_zero() const {
        const auto is_zero = [](double x) { return x == 0; };
        return std::all_of(f_, f_ + problem_.n, is_zero) &&
               std::all_of(g_, g_ + problem_.m, is_zero);
    }
    double cost_range() const { return state_.cost_range(); }

    bool pass(double threshold) { return state_.pass(threshold); }
    bool verify() { return state_.verify(); }
    void sweep_columns() { state_.sweep_columns(); }
    double error() const { return state_.error(); }
    double value() const { return state_.value(); }
    double resolution() const { return state_.resolution(); }
    double threshold() const { return state_.threshold(); }

    bool begin_model() {
        const std::int64_t m = problem_.m;
        model_.reset(state_.plan(), state_.row_mass.data(), state_.column_mass.data(),
                     state_.target.data(), m, state_.lambda_a, state_.kappa_b);
        move_.assign(m, 0.0);
        row_move_.resize(problem_.n);
        direction_.resize(m);
        next_.resize(m);
        return model_.evaluate(move_.data());
    }
    double model_value() const { return model_.value(); }
    double gradient_norm() const { return model_.gradient_norm(); }

    bool solve(double reduction) {
        linear_.solve(model_, reduction, direction_.data(), interrupt_);
        if (interrupt_.stop()) return false;
        center(direction_);
        return true;
    }

    double propose(double step, double cap) {
        double slope = 0;
        for (std::int64_t j = 0; j < problem_.m; ++j) {
            next_[j] = std::clamp(move_[j] + step * direction_[j], -cap, cap);
            slope += model_.gradient()[j] * (next_[j] - move_[j]);
        }
        return slope;
    }
    bool evaluate_proposed() { return model_.evaluate(next_.data()); }
    bool evaluate() { return model_.evaluate(move_.data()); }
    void accept() { move_.swap(next_); }
    void end_model() { model_.row_change(row_move_.data()); }

    void save() {
        start_F_ = state_.F;
        start_G_ = state_.G;
        start_column_ = state_.column_mass;
    }
    void move(double step) {
        for (std::int64_t j = 0; j < problem_.m; ++j) {
            state_.G[j] = start_G_[j] + step * move_[j];
        }
        for (std::int64_t i = 0; i < problem_.n; ++i) {
            state_.F[i] = start_F_[i] + step * row_move_[i];
        }
    }
    void return_to_start() {
        state_.F = start_F_;
        state_.G = start_G_;
        state_.column_mass = start_column_;
    }
    bool interrupted() { return interrupt_.stop(); }

  private:
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
    double *f_, *g_;
    Interrupt& interrupt_;
    DenseState state_;
    SparseModel model_;
    LinearSolver linear_;
    std::vector<double> move_, row_move_, direction_, next_;
    std::vector<double> start_F_, start_G_, start_column_;
};

}  // namespace

bool solve_newton(const DenseProblem& problem, const NewtonOptions& options, double* f,
                  double* g, double* trace, std::int64_t trace_size, NewtonResult& result,
                  Interrupt& interrupt) {
    Stage stage(problem, f, g, interrupt);
    return Driver<Stage>(stage, problem.eps, options, trace, trace_size).run(result);
}

}  // namespace curvkern::newton
