// Costs on the device: of up to R rows at one column. Rows behind the last repeat it.
#pragma once

#include "sinkhorn/device_problem.hpp"
#include "sinkhorn/exp2.hpp"

namespace curvkern::sinkhorn::device {
CURVKERN_PER_ISA {

CURVKERN_HD std::int64_t smaller(std::int64_t a, std::int64_t b) {
    return a < b ? a : b;
}

template <class T>
class DenseCosts {
  public:
    CURVKERN_HD DenseCosts(const Batch& p, std::int64_t index)
        : cost_(static_cast<const T*>(p.cost) + index * p.n * p.m), last_(p.n - 1), m_(p.m) {}

    template <int R>
    CURVKERN_HD Few<R> at(std::int64_t i, std::int64_t j) const {
        Few<R> cost;
        CURVKERN_IN_REGISTERS
        for (int r = 0; r < R; ++r) {
            cost[r] = static_cast<double>(cost_[smaller(i + r, last_) * m_ + j]);
        }
        return cost;
    }

  private:
    const T* cost_;
    std::int64_t last_, m_;
};

// From differences, as |x|^2 + |y|^2 - 2 x.y cancels between points near each other.
template <Cost Kind>
class PointCosts {
  public:
    CURVKERN_HD PointCosts(const Batch& p, std::int64_t index)
        : x_(p.x + index * p.n * p.dims),
          y_(p.y_transposed + index * p.m * p.dims),
          last_(p.n - 1),
          m_(p.m),
          dims_(p.dims) {}

    template <int R>
    CURVKERN_HD Few<R> at(std::int64_t i, std::int64_t j) const {
        Few<R> cost;
        for (int k = 0; k < dims_; ++k) {
            const double y = y_[k * m_ + j];
            CURVKERN_IN_REGISTERS
            for (int r = 0; r < R; ++r) {
                const double d = x_[smaller(i + r, last_) * dims_ + k] - y;
                if constexpr (Kind == Cost::l1) {
                    cost[r] = cost[r] + abs(d);
                } else {
                    cost[r] = d * d + cost[r];
                }
            }
        }
        if constexpr (Kind == Cost::euclidean) {
            CURVKERN_IN_REGISTERS
            for (int r = 0; r < R; ++r) cost[r] = sqrt(cost[r]);
        }
        return cost;
    }

    // dC_ij/dx_ik, from C_ij; 0 where the norm has a kink.
    CURVKERN_HD double slope(std::int64_t i, std::int64_t j, int k, double cost) const {
        const double d = x_[i * dims_ + k] - y_[k * m_ + j];
        if constexpr (Kind == Cost::l1) return d > 0 ? 1 : d < 0 ? -1 : d;
        if constexpr (Kind == Cost::euclidean) return cost > 0 ? d / cost : 0;
        return 2 * d;
    }

  private:
    const double *x_, *y_;
    std::int64_t last_, m_;
    int dims_;
};

}  // namespace isa
}  // namespace curvkern::sinkhorn::device
