// What the dual looks like around the present potentials when only the largest entries of the
// plan may change: the sparse model in which Newton steps are computed.
//
// The entries W of the plan P that were kept follow the potentials exactly. Those dropped enter
// with their sums, rho_i over rows and delta_j over columns: the former see only their row's
// potential, the latter only their column's. With x the change of g / eps, r the row sums of P
// and every row at its optimum given x,
//     t_i = (sum_j W_ij e^{x_j} + rho_i) / r_i       u_i = t_i^{-lambda}
//     W'_ij = u_i W_ij e^{x_j}                       r'_i = r_i t_i^{1 - lambda}
//     c_j = sum_i W'_ij + delta_j e^{x_j}            (model of the column sums)
//     b_j = target_j e^{-kappa x_j}, kappa = eps / rho_b   (what they should be)
// the model of the dual, over eps and without constants, is concave:
//     phi(x) = -sum_i r_i (t_i^{1 - lambda} - 1) / (1 - lambda) - sum_j delta_j (e^{x_j} - 1)
//              - sum_j target_j (e^{-kappa x_j} - 1) / kappa,       grad phi = b - c,
//     -hess phi = diag(c + kappa b) - W'^T diag(lambda / r') W'.
// At x = 0 gradient and diagonal are those of the dual itself. Nothing kept gives Sinkhorn's
// own step, everything kept Newton's; the diagonal outweighs the rest by what was dropped, so
// the matrix is positive definite also where the kept entries fall into several components.
// The split into kept and dropped follows Tang et al., "Accelerating Sinkhorn Algorithm with
// Sparse Newton Iterations", ICLR 2024.
#pragma once

#include <cstdint>
#include <vector>

#include "sinkhorn/newton_laplacian.hpp"

namespace curvkern::newton {

// The kept entries by rows.
struct SparsePlan {
    std::vector<std::int64_t> row_begin;  // (n + 1,)
    std::vector<std::int32_t> column;
    std::vector<double> value;

    std::int64_t rows() const { return static_cast<std::int64_t>(row_begin.size()) - 1; }
    std::int64_t entries() const { return row_begin.empty() ? 0 : row_begin.back(); }
};

class SparseModel {
  public:
    // row_mass r (n,), column_mass c (m,) and target b (m,) of the plan whose entries are kept.
    void reset(const SparsePlan& plan, const double* row_mass, const double* column_mass,
               const double* target, std::int64_t m, double lambda, double kappa);

    // Moves to x; false, with nothing usable, where the model is not finite.
    bool evaluate(const double* x);

    double value() const { return value_; }
    double gradient_norm() const { return gradient_norm_; }  // L1
    const std::vector<double>& gradient() const { return gradient_; }
    const std::vector<double>& diagonal() const {
        return diagonal_;
    }  // of -hess phi: c + kappa b
    // -lambda log t: the change of f / eps that goes with x.
    void row_change(double* change) const;
    // out = -hess phi p
    void apply(const double* p, double* out);
    // The true diagonal of -hess phi, at least a hundredth of diagonal().
    void jacobi(double* out) const;
    // The graph whose Laplacian, rows eliminated, is -hess phi: vertices 0 .. n - 1 are the
    // rows, n .. n + m - 1 the columns.
    void graph(LaplacianFactor& factor) const;
    std::int64_t rows() const { return plan_->rows(); }

  private:
    const SparsePlan* plan_ = nullptr;
    std::int64_t m_ = 0;
    double lambda_ = 1, kappa_ = 0, value_ = 0, gradient_norm_ = 0;
    std::vector<double> row_mass_, rest_row_, rest_column_, target_;
    std::vector<double> growth_;      // e^x
    std::vector<double> row_factor_;  // t
    std::vector<double> weight_;      // lambda u^2 / r'
    std::vector<double> gradient_, diagonal_, scaled_, kept_column_;
};

}  // namespace curvkern::newton
