#include "sinkhorn/newton_model.hpp"

#include <algorithm>
#include <cmath>

namespace curvkern::newton {

void SparseModel::reset(const SparsePlan& plan, const double* row_mass,
                        const double* column_mass, const double* target, std::int64_t m,
                        double lambda, double kappa) {
    const std::int64_t n = plan.rows();
    plan_ = &plan;
    m_ = m;
    lambda_ = lambda;
    kappa_ = kappa;
    row_mass_.assign(row_mass, row_mass + n);
    target_.assign(target, target + m);
    rest_row_.assign(row_mass, row_mass + n);
    rest_column_.assign(column_mass, column_mass + m);
    for (std::int64_t i = 0; i < n; ++i) {
        for (std::int64_t k = plan.row_begin[i]; k < plan.row_begin[i + 1]; ++k) {
            rest_row_[i] -= plan.value[k];
            rest_column_[plan.column[k]] -= plan.value[k];
        }
    }
    // Rounding may leave less than nothing; a trace keeps every component of the kept entries
    // tied down.
    constexpr double trace = 1e-14;
    for (std::int64_t i = 0; i < n; ++i) {
        rest_row_[i] = std::max(rest_row_[i], trace * row_mass_[i]);
    }
    for (std::int64_t j = 0; j < m; ++j) {
        rest_column_[j] = std::max(rest_column_[j], trace * column_mass[j]);
    }
    growth_.resize(m);
    row_factor_.resize(n);
    weight_.resize(n);
    gradient_.resize(m);
    diagonal_.resize(m);
    scaled_.resize(m);
    kept_column_.resize(m);
}

bool SparseModel::evaluate(const double* x) {
    const std::int64_t n = plan_->rows();
    const std::int32_t* column = plan_->column.data();
    const double* w = plan_->value.data();
    for (std::int64_t j = 0; j < m_; ++j) growth_[j] = std::exp(x[j]);
    std::fill(kept_column_.begin(), kept_column_.end(), 0.0);
    double value = 0;
    for (std::int64_t i = 0; i < n; ++i) {
        weight_[i] = 0;
        row_factor_[i] = 1;
        const double r = row_mass_[i];
        if (!(r > 0)) continue;
        const std::int64_t begin = plan_->row_begin[i], end = plan_->row_begin[i + 1];
        double sum = rest_row_[i];
        for (std::int64_t k = begin; k < end; ++k) sum += w[k] * growth_[column[k]];
        const double t = sum / r, log_t = std::log(t);
        const double exponent = (1 - lambda_) * log_t;
        value -= r * (lambda_ == 1 ? log_t : std::expm1(exponent) / (1 - lambda_));
        const double u = lambda_ == 1 ? 1 / t : std::exp(-lambda_ * log_t);
        row_factor_[i] = t;
        weight_[i] = lambda_ * u * u / (r * (lambda_ == 1 ? 1 : std::exp(exponent)));
        for (std::int64_t k = begin; k < end; ++k) kept_column_[column[k]] += w[k] * u;
    }
    double norm = 0;
    for (std::int64_t j = 0; j < m_; ++j) {
        const double moved = std::expm1(-kappa_ * x[j]);
        const double mass = (kept_column_[j] + rest_column_[j]) * growth_[j];
        const double wanted = target_[j] * (1 + moved);
        value += target_[j] * (kappa_ == 0 ? x[j] : -moved / kappa_) -
                 rest_column_[j] * std::expm1(x[j]);
        gradient_[j] = wanted - mass;
        diagonal_[j] = mass + kappa_ * wanted;
        norm += std::abs(gradient_[j]);
    }
    value_ = value;
    gradient_norm_ = norm;
    return std::isfinite(value) && std::isfinite(norm);
}

void SparseModel::row_change(double* change) const {
    for (std::int64_t i = 0; i < plan_->rows(); ++i) {
        change[i] = -lambda_ * std::log(row_factor_[i]);
    }
}

void SparseModel::apply(const double* p, double* out) {
    const std::int64_t n = plan_->rows();
    const std::int32_t* column = plan_->column.data();
    const double* w = plan_->value.data();
    for (std::int64_t j = 0; j < m_; ++j) {
        scaled_[j] = growth_[j] * p[j];
        out[j] = 0;
    }
    for (std::int64_t i = 0; i < n; ++i) {
        const std::int64_t begin = plan_->row_begin[i], end = plan_->row_begin[i + 1];
        double sum = 0;
        for (std::int64_t k = begin; k < end; ++k) sum += w[k] * scaled_[column[k]];
        sum *= weight_[i];
        for (std::int64_t k = begin; k < end; ++k) out[column[k]] += w[k] * sum;
    }
    for (std::int64_t j = 0; j < m_; ++j) {
        out[j] = diagonal_[j] * p[j] - growth_[j] * out[j];
    }
}

void SparseModel::jacobi(double* out) const {
    std::fill(out, out + m_, 0.0);
    for (std::int64_t i = 0; i < plan_->rows(); ++i) {
        for (std::int64_t k = plan_->row_begin[i]; k < plan_->row_begin[i + 1]; ++k) {
            const double w = plan_->value[k];
            out[plan_->column[k]] += w * w * weight_[i];
        }
    }
    for (std::int64_t j = 0; j < m_; ++j) {
        out[j] = std::max(diagonal_[j] - growth_[j] * growth_[j] * out[j], 0.01 * diagonal_[j]);
        if (!(out[j] > 0)) out[j] = 1;
    }
}

void SparseModel::graph(LaplacianFactor& factor) const {
    const std::int64_t n = plan_->rows();
    factor.begin(n + m_);
    std::vector<double> rest(diagonal_);
    for (std::int64_t i = 0; i < n; ++i) {
        if (!(weight_[i] > 0)) continue;
        // weight = lambda u^2 / r' and W' = u W e^x give the row's diagonal r' / lambda.
        const double u = std::exp(-lambda_ * std::log(row_factor_[i]));
        double ground = u * u / weight_[i];
        for (std::int64_t k = plan_->row_begin[i]; k < plan_->row_begin[i + 1]; ++k) {
            const std::int32_t j = plan_->column[k];
            const double weight = u * plan_->value[k] * growth_[j];
            if (!(weight > 0)) continue;
            factor.add_edge(i, n + j, weight);
            ground -= weight;
            rest[j] -= weight;
        }
        factor.add_ground(i, std::max(ground, 0.0));
    }
    for (std::int64_t j = 0; j < m_; ++j) factor.add_ground(n + j, std::max(rest[j], 0.0));
}

}  // namespace curvkern::newton
