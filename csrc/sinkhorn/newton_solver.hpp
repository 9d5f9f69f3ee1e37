// The state of one dense problem: potentials in units of eps, the plan's marginals, the plan's
// largest entries.
#pragma once

#include <vector>

#include "sinkhorn/newton.hpp"
#include "sinkhorn/newton_model.hpp"
#include "sinkhorn/newton_pass.hpp"

namespace curvkern::newton {

class DenseState {
  public:
    DenseState(const DenseProblem& problem, Interrupt& interrupt);

    // Potentials of eps in place, F and G for them.
    void set_level(double eps, const double* f, const double* g);
    void potentials(double* f, double* g) const;

    // Brings every row to its optimum given G and, where a marginal is soft, the sum of all G
    // to its own; takes stock. With a threshold, gathers the entries above it. False when
    // interrupted.
    bool pass(double threshold);
    // The same with F as it is: error() then counts both marginals.
    bool verify();
    // Sinkhorn's column step from the column sums of the last pass.
    void sweep_columns();

    double error() const { return error_; }            // L1, over the total mass
    double value() const { return value_; }            // of the dual, over eps
    double resolution() const { return resolution_; }  // of value(), from rounding
    double threshold() const { return threshold_; }    // largest that any block came to
    double cost_range() const { return cost_range_; }
    const SparsePlan& plan() const { return plan_; }

    std::vector<double> F, G;
    std::vector<double> row_mass, column_mass, target;
    double lambda_a, kappa_b;

  private:
    bool run_blocks(double threshold, bool fixed_rows);
    void combine();
    void collect_plan();
    void translate(bool gathered);
    void take_stock();
    void measure_cost();

    const DenseProblem& problem_;
    Interrupt& interrupt_;
    double eps_ = 1, error_ = 0, value_ = 0, resolution_ = 0, threshold_ = 0;
    double mass_ = 0, cost_range_ = 0, lambda_b_ = 1, kappa_a_ = 0;
    double lowest_ = 0;
    std::int64_t block_rows_, blocks_, capacity_, stride_;
    std::vector<double> log_a_, log_b_, column_scale_, scaled_G_;
    std::vector<double> partial_;  // (blocks, stride): column sums and a row of scratch
    std::vector<std::int32_t> gathered_column_;  // (blocks, capacity)
    std::vector<double> gathered_value_;
    std::vector<std::int64_t> row_end_;  // (n,) within the block
    SparsePlan plan_;
};

}  // namespace curvkern::newton
