#include "sinkhorn/newton_solver.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace curvkern::newton {
namespace {

// Entries of the plan below e^-60 of the smallest weight count as none.
constexpr double negligible = 60, least_exponent = -620;
constexpr double log2_e = 1.4426950408889634;
constexpr std::int64_t entries_per_block = 16384, most_blocks = 64;
// Room for the plan's entries, per point: what a linear solve can afford beside a pass.
constexpr std::int64_t entries_per_point = 100;

double sum(const double* x, std::int64_t n) {
    double total = 0;
    for (std::int64_t i = 0; i < n; ++i) total += x[i];
    return total;
}

double smallest(const double* x, std::int64_t n) {  // of those above zero
    double least = HUGE_VAL;
    for (std::int64_t i = 0; i < n; ++i) {
        if (x[i] > 0) least = std::min(least, x[i]);
    }
    return least;
}

double share(double rho, double eps) {  // rho / (rho + eps)
    return rho == HUGE_VAL ? 1 : rho / (rho + eps);
}

template <class T>
double finite_range(const T* cost, std::int64_t size) {
    T low = std::numeric_limits<T>::infinity(), high = -low;
    for (std::int64_t k = 0; k < size; ++k) {
        low = std::min(low, cost[k]);
        const T finite = cost[k] < std::numeric_limits<T>::infinity() ? cost[k] : high;
        high = std::max(high, finite);
    }
    return static_cast<double>(high) - static_cast<double>(low);
}

}  // namespace

DenseState::DenseState(const DenseProblem& problem, Interrupt& interrupt)
    : problem_(problem), interrupt_(interrupt) {
    const std::int64_t n = problem.n, m = problem.m;
    block_rows_ =
        std::max((entries_per_block + m - 1) / m, (n + most_blocks - 1) / most_blocks);
    block_rows_ = std::min(block_rows_, n);
    blocks_ = (n + block_rows_ - 1) / block_rows_;
    capacity_ = block_rows_ * std::min(m, entries_per_point * (n + m) / n + 1) + m;
    F.resize(n);
    G.resize(m);
    row_mass.resize(n);
    column_mass.resize(m);
    target.resize(m);
    log_a_.resize(n);
    log_b_.resize(m);
    column_scale_.resize(m);
    scaled_G_.resize(m);
    for (std::int64_t i = 0; i < n; ++i) log_a_[i] = std::log(problem.a[i]);
    for (std::int64_t j = 0; j < m; ++j) log_b_[j] = std::log(problem.b[j]);
    stride_ = 3 * padded_columns(m);
    partial_.resize(blocks_ * stride_);
    for (const double weight : {smallest(problem.a, n), smallest(problem.b, m)}) {
        lowest_ = std::max(std::min(lowest_, std::log(weight) - negligible), least_exponent);
    }
    mass_ = std::max(sum(problem.a, n), sum(problem.b, m));
    measure_cost();
}

void DenseState::measure_cost() {
    const std::int64_t size = problem_.n * problem_.m;
    cost_range_ = problem_.cost_is_float32
                      ? finite_range(static_cast<const float*>(problem_.cost), size)
                      : finite_range(static_cast<const double*>(problem_.cost), size);
}

void DenseState::set_level(double eps, const double* f, const double* g) {
    eps_ = eps;
    lambda_a = share(problem_.rho_a, eps);
    lambda_b_ = share(problem_.rho_b, eps);
    kappa_a_ = eps / problem_.rho_a;
    kappa_b = eps / problem_.rho_b;
    for (std::int64_t i = 0; i < problem_.n; ++i) {
        F[i] = problem_.a[i] > 0 ? f[i] / eps + log_a_[i] : 0;
    }
    for (std::int64_t j = 0; j < problem_.m; ++j) {
        G[j] = problem_.b[j] > 0 ? g[j] / eps + log_b_[j] : -HUGE_VAL;
    }
}

void DenseState::potentials(double* f, double* g) const {
    const auto is_finite = [](double x) { return std::isfinite(x); };
    for (std::int64_t j = 0; j < problem_.m; ++j) {
        if (problem_.b[j] > 0 && !is_finite(G[j])) return;
    }
    if (!std::all_of(F.begin(), F.end(), is_finite)) return;
    for (std::int64_t i = 0; i < problem_.n; ++i) {
        f[i] = problem_.a[i] > 0 ? eps_ * (F[i] - log_a_[i]) : 0;
    }
    for (std::int64_t j = 0; j < problem_.m; ++j) {
        g[j] = problem_.b[j] > 0 ? eps_ * (G[j] - log_b_[j]) : 0;
    }
}

bool DenseState::run_blocks(double threshold, bool fixed_rows) {
    const std::int64_t n = problem_.n, m = problem_.m;
    const bool gathers = threshold > 0;
    if (gathers && gathered_value_.empty()) {
        gathered_column_.resize(blocks_ * capacity_);
        gathered_value_.resize(blocks_ * capacity_);
        row_end_.resize(n);
    }
    for (std::int64_t j = 0; j < m; ++j) scaled_G_[j] = G[j] * log2_e;
    const Sweep sweep{
        m,          problem_.cost, 1 / eps_,         lowest_,  lambda_a,       fixed_rows,
        problem_.a, log_a_.data(), scaled_G_.data(), F.data(), row_mass.data()};
    const PassKernels& kernels = CURVKERN_SELECT_ISA(, ::pass_kernels());
    const SweepBlock run = problem_.cost_is_float32 ? kernels.f32 : kernels.f64;
    std::vector<double> thresholds(blocks_, threshold);
    const bool finished =
        parallel_chunks(blocks_, 1, interrupt_.check(), [&](std::int64_t block, std::int64_t) {
            const std::int64_t begin = block * block_rows_;
            double* columns = partial_.data() + block * stride_;
            Gathered gathered{threshold,
                              column_scale_.data(),
                              capacity_,
                              gathers ? gathered_column_.data() + block * capacity_ : nullptr,
                              gathers ? gathered_value_.data() + block * capacity_ : nullptr,
                              gathers ? row_end_.data() + begin : nullptr};
            run(sweep, begin, std::min(begin + block_rows_, n), columns,
                columns + padded_columns(m), gathers ? &gathered : nullptr);
            thresholds[block] = gathered.threshold;
        });
    threshold_ = *std::max_element(thresholds.begin(), thresholds.end());
    if (!finished) interrupt_.set();
    return finished && !interrupt_.stop();
}

void DenseState::combine() {
    const std::int64_t m = problem_.m;
    std::copy_n(partial_.data(), m, column_mass.data());
    for (std::int64_t block = 1; block < blocks_; ++block) {
        const double* columns = partial_.data() + block * stride_;
        for (std::int64_t j = 0; j < m; ++j) column_mass[j] += columns[j];
    }
}

void DenseState::collect_plan() {
    plan_.row_begin.assign(1, 0);
    plan_.column.clear();
    plan_.value.clear();
    for (std::int64_t block = 0; block < blocks_; ++block) {
        const std::int64_t begin = block * block_rows_;
        const std::int64_t end = std::min(begin + block_rows_, problem_.n);
        const std::int64_t first = plan_.row_begin.back(), size = row_end_[end - 1];
        for (std::int64_t i = begin; i < end; ++i) {
            plan_.row_begin.push_back(first + row_end_[i]);
        }
        const auto* column = gathered_column_.data() + block * capacity_;
        const auto* value = gathered_value_.data() + block * capacity_;
        plan_.column.insert(plan_.column.end(), column, column + size);
        plan_.value.insert(plan_.value.end(), value, value + size);
    }
}

// With g + t eps and rows at their optimum every row sum grows by e^{(1 - lambda) t}, and the
// targets of the columns fall by e^{-kappa t}: where the totals agree the dual is largest.
void DenseState::translate(bool gathered) {
    const double stiffness = 1 - lambda_a + kappa_b;
    if (!(stiffness > 0)) return;
    double wanted = 0;
    for (std::int64_t j = 0; j < problem_.m; ++j) {
        const double b = problem_.b[j];
        if (b > 0) wanted += b * std::exp(-kappa_b * (G[j] - log_b_[j]));
    }
    const double shift = std::log(wanted / sum(row_mass.data(), problem_.n)) / stiffness;
    const double growth = std::exp((1 - lambda_a) * shift);
    if (!std::isfinite(shift) || !std::isfinite(growth) || growth == 0) return;
    for (double& G_j : G) G_j += shift;
    for (double& F_i : F) F_i -= lambda_a * shift;
    for (double& mass : row_mass) mass *= growth;
    for (double& mass : column_mass) mass *= growth;
    if (gathered) {
        for (double& value : plan_.value) value *= growth;
    }
}

void DenseState::take_stock() {
    value_ = error_ = resolution_ = 0;
    for (std::int64_t i = 0; i < problem_.n; ++i) {
        const double a = problem_.a[i];
        if (!(a > 0)) continue;
        const double y = F[i] - log_a_[i];
        value_ +=
            kappa_a_ == 0 ? a * y : -a * std::expm1(-kappa_a_ * y) / kappa_a_ - row_mass[i];
        resolution_ += a * std::abs(F[i]);
    }
    for (std::int64_t j = 0; j < problem_.m; ++j) {
        const double b = problem_.b[j];
        target[j] = 0;
        if (!(b > 0)) continue;
        const double y = G[j] - log_b_[j];
        const double excess = std::expm1(-kappa_b * y);
        target[j] = b * (1 + excess);
        value_ += kappa_b == 0 ? b * y : -b * excess / kappa_b;
        resolution_ += b * std::abs(G[j]);
        error_ += std::abs(column_mass[j] - target[j]);
    }
    error_ /= mass_;
    resolution_ *= 4 * std::numeric_limits<double>::epsilon();
}

bool DenseState::pass(double threshold) {
    if (threshold > 0) {
        for (std::int64_t j = 0; j < problem_.m; ++j) {
            column_scale_[j] = target[j] > 0 ? target[j] : HUGE_VAL;
        }
    }
    if (!run_blocks(threshold, false)) return false;
    combine();
    if (threshold > 0) collect_plan();
    translate(threshold > 0);
    take_stock();
    return true;
}

bool DenseState::verify() {
    if (!run_blocks(0, true)) return false;
    combine();
    take_stock();
    double rows = 0;
    for (std::int64_t i = 0; i < problem_.n; ++i) {
        if (!(problem_.a[i] > 0)) continue;
        const double y = F[i] - log_a_[i];
        rows += std::abs(row_mass[i] - problem_.a[i] * std::exp(-kappa_a_ * y));
    }
    error_ += rows / mass_;
    return true;
}

void DenseState::sweep_columns() {
    for (std::int64_t j = 0; j < problem_.m; ++j) {
        if (!(problem_.b[j] > 0) || !(column_mass[j] > 0)) continue;
        G[j] = lambda_b_ * (G[j] - std::log(column_mass[j])) + log_b_[j];
    }
}

}  // namespace curvkern::newton
