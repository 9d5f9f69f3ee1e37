// -hess phi x = grad phi for the sparse model, by preconditioned conjugate gradients.
#pragma once

#include <vector>

#include "sinkhorn/newton.hpp"
#include "sinkhorn/newton_laplacian.hpp"
#include "sinkhorn/newton_model.hpp"

namespace curvkern::newton {

class LinearSolver {
  public:
    // Where it is known that the diagonal does not do, the factor comes first.
    explicit LinearSolver(bool needs_factor = false) : slow_(needs_factor) {}

    // Until the L1 norm of the residual has fallen by `reduction`: with the diagonal as
    // preconditioner as long as that is quick, else with an approximate factor. Returns the
    // number of iterations.
    std::int64_t solve(SparseModel& model, double reduction, double* x, Interrupt& interrupt);

  private:
    std::int64_t iterate(SparseModel& model, double goal, std::int64_t most, double* x,
                         Interrupt& interrupt);
    void precondition();

    bool factored_ = false;  // the preconditioner in use
    bool slow_;              // the diagonal did not do the last time
    double norm_ = 0;        // L1, of the residual
    LaplacianFactor factor_;
    std::vector<double> residual_, preconditioned_, direction_, image_, inverse_, graph_;
};

}  // namespace curvkern::newton
