// Passes over the plan on the device, without storing it: products with vectors, cost and
// entropy, and the gradient of a weighted sum of costs through the points. A pass reads the
// costs once for the rows and once for the columns, whichever are asked for.
#pragma once

#include "sinkhorn/device_sweep.hpp"

namespace curvkern::sinkhorn::device {
CURVKERN_PER_ISA {

inline constexpr int columns_at_once = 8;  // of v and u

struct Products {
    std::int64_t count;
    const double *v, *u;  // (batch, m, count), (batch, n, count), or null
    double *pv, *ptu;     // (batch, n, count): P v; (batch, m, count): P' u
    double* totals;       // (batch, 2): sums of P C and of P log(P / ab), or null
    double* row_totals;   // (batch, n, 2)
    double* partial;      // (batch, parts, columns_at_once, m)
};

// What a pass over the rows adds up at an entry: C_ij, the exponent of P_ij / (a_i b_j), and
// P_ij / a_i.
struct Entry {
    double cost, exponent, value;
};

template <class Costs>
class Plan {
  public:
    CURVKERN_HD Plan(const Batch& p, std::int64_t index)
        : costs(p, index),
          phi_(p.phi + index * p.n),
          psi_(p.psi + index * p.m),
          weight_b_(p.weight_b + index * p.m),
          slope_(p.state[index].slope),
          log2_mass_b_(p.state[index].log2_mass_b) {}

    template <int R>
    CURVKERN_HD void at(std::int64_t i, std::int64_t last, std::int64_t j,
                        Entry (&entry)[R]) const {
        const Few<R> cost = costs.template at<R>(i, j);
        CURVKERN_IN_REGISTERS
        for (int r = 0; r < R; ++r) {
            const double t = (phi_[smaller(i + r, last)] + psi_[j]) - slope_ * cost[r];
            entry[r] = {cost[r], t, exp2_entry(t + log2_mass_b_) * weight_b_[j]};
        }
    }

    const Costs costs;

  private:
    const double *phi_, *psi_, *weight_b_;
    double slope_, log2_mass_b_;
};

// Row i: P v for columns first, ... of v, and the totals with the first of them.
template <class Costs>
CURVKERN_HD void plan_row(Block& block, const Batch& p, const Products& out, std::int64_t index,
                          std::int64_t i, std::int64_t first) {
    const Plan<Costs> plan(p, index);
    const auto some = static_cast<int>(smaller(out.count - first, columns_at_once));
    const bool totals = out.totals != nullptr && first == 0;
    const double* v = out.v == nullptr ? nullptr : out.v + index * p.m * out.count + first;
    Block::Own<Few<columns_at_once>> dots(block);
    Block::Own<Few<2>> sums(block);
    block.alone([&](int thread) {
        Few<columns_at_once> dot;
        Few<2> sum;
        for (std::int64_t j = thread; j < p.m; j += block.threads()) {
            Entry at[1];
            plan.at(i, i, j, at);
            const Entry e = at[0];
            if (totals && e.value > 0x1p-900) {  // not where the cost may be infinite
                sum[0] += e.value * e.cost;
                sum[1] += e.value * e.exponent;
            }
            if (v == nullptr) continue;
            CURVKERN_IN_REGISTERS
            for (int q = 0; q < columns_at_once; ++q) {
                if (q < some) dot[q] += e.value * v[j * out.count + q];
            }
        }
        dots(thread) = dot;
        sums(thread) = sum;
    });
    const double weight = p.weight_a[index * p.n + i] * p.state[index].mass_a;
    if (totals) {
        const Few<2> sum = block.sum(sums);
        block.alone([&](int thread) {
            double* target = out.row_totals + 2 * (index * p.n + i);
            if (thread == 0) target[0] = weight * sum[0];
            if (thread == 0) target[1] = weight * sum[1];
        });
    }
    if (v == nullptr) return;
    const Few<columns_at_once> dot = block.sum(dots);
    block.alone([&](int thread) {
        CURVKERN_IN_REGISTERS
        for (int q = 0; q < columns_at_once; ++q) {
            if (thread == q && q < some) {
                out.pv[(index * p.n + i) * out.count + first + q] = weight * dot[q];
            }
        }
    });
}

// P' u over the rows of one part, at columns that are as many as threads.
template <class Costs>
CURVKERN_HD void plan_columns(Block& block, const Batch& p, const Products& out,
                              std::int64_t index, std::int64_t part, std::int64_t column,
                              std::int64_t first) {
    const Plan<Costs> plan(p, index);
    const auto some = static_cast<int>(smaller(out.count - first, columns_at_once));
    const std::int64_t end = smaller((part + 1) * p.rows_of_part, p.n);
    const double *weight = p.weight_a + index * p.n, mass = p.state[index].mass_a;
    const double* u = out.u + index * p.n * out.count + first;
    block.alone([&](int thread) {
        const std::int64_t j = column + thread;
        if (j >= p.m) return;
        Few<columns_at_once> sum;
        for (std::int64_t i = part * p.rows_of_part; i < end; i += most_rows) {
            Entry at[most_rows];
            plan.at(i, end - 1, j, at);
            CURVKERN_IN_REGISTERS
            for (int r = 0; r < most_rows; ++r) {
                if (i + r >= end) continue;
                const double e = at[r].value * (weight[i + r] * mass);
                CURVKERN_IN_REGISTERS
                for (int q = 0; q < columns_at_once; ++q) {
                    if (q < some) sum[q] += e * u[(i + r) * out.count + q];
                }
            }
        }
        double* target = out.partial + (index * p.parts + part) * columns_at_once * p.m + j;
        CURVKERN_IN_REGISTERS
        for (int q = 0; q < columns_at_once; ++q) target[q * p.m] = sum[q];
    });
}

// P' u at columns that are as many as threads, from its parts.
CURVKERN_HD void add_parts(Block& block, const Batch& p, const Products& out,
                           std::int64_t index, std::int64_t column, std::int64_t first) {
    const std::int64_t some = smaller(out.count - first, columns_at_once);
    block.alone([&](int thread) {
        const std::int64_t j = column + thread;
        if (j >= p.m) return;
        for (std::int64_t q = 0; q < some; ++q) {
            double sum = 0;
            for (std::int64_t part = 0; part < p.parts; ++part) {
                const std::int64_t row = (index * p.parts + part) * columns_at_once + q;
                sum += out.partial[row * p.m + j];
            }
            out.ptu[(index * p.m + j) * out.count + first + q] = sum;
        }
    });
}

CURVKERN_HD void add_totals(Block& block, const Batch& p, const Products& out,
                            std::int64_t index) {
    Block::Own<Few<2>> part(block);
    block.alone([&](int thread) {
        Few<2> sum;
        for (std::int64_t i = thread; i < p.n; i += block.threads()) {
            const double* row = out.row_totals + 2 * (index * p.n + i);
            sum[0] += row[0];
            sum[1] += row[1];
        }
        part(thread) = sum;
    });
    const Few<2> sum = block.sum(part);
    block.alone([&](int thread) {
        if (thread == 0) out.totals[2 * index] = sum[0] * p.scale;
        if (thread == 0) out.totals[2 * index + 1] = sum[1] * ln_2;
    });
}

struct Gradient {
    const double *u, *w;  // (batch, n), (batch, m)
    double* out;          // (batch, n, dims)
};

// Row i: sum_j P_ij (u_i + w_j) dC_ij/dx_ik for every k.
template <class Costs>
CURVKERN_HD void gradient_row(Block& block, const Batch& p, const Gradient& to,
                              std::int64_t index, std::int64_t i) {
    const Plan<Costs> plan(p, index);
    const double weight = p.weight_a[index * p.n + i] * p.state[index].mass_a * p.scale;
    const double u = to.u[index * p.n + i];
    const double* w = to.w + index * p.m;
    for (int first = 0; first < p.dims; first += columns_at_once) {
        Block::Own<Few<columns_at_once>> part(block);
        block.alone([&](int thread) {
            Few<columns_at_once> sum;
            for (std::int64_t j = thread; j < p.m; j += block.threads()) {
                Entry e[1];
                plan.at(i, i, j, e);
                const double factor = e[0].value * (u + w[j]);
                CURVKERN_IN_REGISTERS
                for (int q = 0; q < columns_at_once; ++q) {
                    if (first + q < p.dims) {
                        sum[q] += factor * plan.costs.slope(i, j, first + q, e[0].cost);
                    }
                }
            }
            part(thread) = sum;
        });
        const Few<columns_at_once> sum = block.sum(part);
        block.alone([&](int thread) {
            CURVKERN_IN_REGISTERS
            for (int q = 0; q < columns_at_once; ++q) {
                if (thread != q || first + q >= p.dims) continue;
                to.out[(index * p.n + i) * p.dims + first + q] = weight * sum[q];
            }
        });
    }
}

}  // namespace isa
}  // namespace curvkern::sinkhorn::device
