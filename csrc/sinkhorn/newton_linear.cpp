#include "sinkhorn/newton_linear.hpp"

#include <algorithm>
#include <cmath>

namespace curvkern::newton {
namespace {

// Iterations with the diagonal that cost about as much as a factor; with the factor, a limit
// for what rounding makes unsolvable.
constexpr std::int64_t most_diagonal = 400, most_factored = 100;

double dot(const std::vector<double>& x, const std::vector<double>& y) {
    double sum = 0;
    for (std::size_t j = 0; j < x.size(); ++j) sum += x[j] * y[j];
    return sum;
}

double norm1(const std::vector<double>& x) {
    double sum = 0;
    for (const double value : x) sum += std::abs(value);
    return sum;
}

}  // namespace

void LinearSolver::precondition() {
    const std::size_t m = residual_.size();
    if (factored_) {
        const std::size_t n = graph_.size() - m;
        std::fill_n(graph_.begin(), n, 0.0);
        std::copy(residual_.begin(), residual_.end(), graph_.begin() + n);
        factor_.solve(graph_.data());
        std::copy_n(graph_.begin() + n, m, preconditioned_.begin());
    } else {
        for (std::size_t j = 0; j < m; ++j) preconditioned_[j] = inverse_[j] * residual_[j];
    }
}

std::int64_t LinearSolver::iterate(SparseModel& model, double goal, std::int64_t most,
                                   double* x, Interrupt& interrupt) {
    const std::size_t m = residual_.size();
    precondition();
    direction_ = preconditioned_;
    double energy = dot(residual_, preconditioned_);
    std::int64_t k = 0;
    while (k < most && energy > 0 && norm_ > goal && !interrupt.stop()) {
        model.apply(direction_.data(), image_.data());
        ++k;
        const double curvature = dot(direction_, image_);
        if (!(curvature > 0)) break;
        const double length = energy / curvature;
        for (std::size_t j = 0; j < m; ++j) {
            x[j] += length * direction_[j];
            residual_[j] -= length * image_[j];
        }
        norm_ = norm1(residual_);
        precondition();
        const double next = dot(residual_, preconditioned_);
        const double keep = next / energy;
        energy = next;
        for (std::size_t j = 0; j < m; ++j) {
            direction_[j] = preconditioned_[j] + keep * direction_[j];
        }
    }
    return k;
}

std::int64_t LinearSolver::solve(SparseModel& model, double reduction, double* x,
                                 Interrupt& interrupt) {
    residual_ = model.gradient();
    const std::size_t m = residual_.size();
    for (auto* vector : {&preconditioned_, &image_, &inverse_}) vector->resize(m);
    std::fill_n(x, m, 0.0);
    norm_ = norm1(residual_);
    const double goal = reduction * norm_;
    std::int64_t iterations = 0;
    if (!slow_) {
        factored_ = false;
        model.jacobi(inverse_.data());
        for (double& value : inverse_) value = 1 / value;
        iterations = iterate(model, goal, most_diagonal, x, interrupt);
    }
    if (norm_ > goal && !interrupt.stop()) {
        slow_ = factored_ = true;
        model.graph(factor_);
        factor_.factor();
        graph_.resize(m + model.rows());
        iterations += iterate(model, goal, most_factored, x, interrupt);
    }
    return iterations;
}

}  // namespace curvkern::newton
