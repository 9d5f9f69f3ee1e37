// The Sinkhorn iteration on the device: every cost is read once.
//
// As on the CPU (sweep.hpp), relative to the potentials of the last iteration: with
//
//     e_ij = b_j 2^(phi_i + psi_j - slope C_ij + log2 mass_b),      r_i = sum_j e_ij,
//     phi_i' = damping_a (phi_i - log2 r_i),   s_j = sum_i a_i 2^(phi_i' - phi_i) e_ij,
//     psi_j' = damping_b (psi_j - log2 (s_j / b_j  mass_a / mass_b)).
//
// r_i is near 1 and s_j near b_j from the second iteration on. A row or column whose sum is not
// is done again by its largest exponent.
//
// A block takes `rows` rows of one problem, R at a time, and all m columns, of which each
// thread has every threads-th. Its R K entries stay in registers from the load of their costs,
// all at once, over their row's sum to the sum of their column. Column sums grow in shared
// memory, where each thread has its own; each block writes them once, and finish_columns adds
// them in order. Everything is in place; a check is a pass of its own that changes nothing.
//
// Prediction for an H100 (3.35 TB/s, 132 SM, 64 float64 FMA a cycle and SM at 1.7 GHz),
// n = m = 20 000, an iteration:
//     memory       8 bytes an entry (float32: 4) and 16 bytes / rows (76 here) of partial sums:
//                  3.3 GB (1.7 GB), 0.98 ms (0.50 ms) at 100 % of the bandwidth
//     arithmetic   3 operations for the exponent, 13 for 2^t, 1 for r, 1 for s: 18 float64
//                  instructions an entry, 0.50 ms
//     psi, log2 b  16 bytes for R entries, R = 1 here: 6.4 GB, 1.2 ms at 5.5 TB/s of the L2
//                  cache; up to some 6000 columns they stay in L1, at 28 TB/s
//     shared       16 bytes for R entries: 0.22 ms
// so memory bounds up to some 6000 columns; above, costs and psi come through the L2 cache
// together, 24 bytes an entry, 1.75 ms or 56 % of the bandwidth. A check reads the costs again,
// and so does every sweep of more than most_columns columns: for the rows, then for columns.
#pragma once

#include "sinkhorn/device_costs.hpp"

namespace curvkern::sinkhorn::device {
CURVKERN_PER_ISA {

inline constexpr double infinite = __builtin_huge_val();
// Sums within these are used as they are; see Usable in sweep.hpp.
inline constexpr double row_low = 0x1p-500, row_high = 0x1p500;
inline constexpr double column_low = 0x1p-200, column_high = 0x1p200, sum_low = 0x1p-500;

enum class Mode {
    update,   // the iteration
    check,    // marginals at the potentials as they are: residuals, nothing else
    complete  // finish_columns only: potentials of points without mass
};

CURVKERN_HD bool within(double x, double low, double high) {
    return x > low && x < high;
}

CURVKERN_HD bool is_reachable(double top) {
    return top > -infinite && top < infinite;
}

// A problem that takes part in a pass: not yet done, and a check is for the wanted eps alone.
CURVKERN_HD bool takes_part(const State& s, Mode mode) {
    return s.done == 0 && (mode != Mode::check || !(s.eps > s.target));
}

// How many of the columns thread, thread + threads, ... there are.
CURVKERN_HD int columns_of(int thread, std::int64_t m, int threads) {
    return static_cast<int>((m - thread + threads - 1) / threads);
}

// Rows i .. i + R - 1 of one problem.
template <int R, class Costs>
class RowGroup {
  public:
    CURVKERN_HD RowGroup(const Batch& p, std::int64_t index, const Costs& costs)
        : costs_(costs),
          psi_(p.psi + index * p.m),
          log2_b_(p.log2_weight_b + index * p.m),
          slope_(p.state[index].slope),
          m_(p.m) {}

    // Sums of e_ij, K = 0; or of at most K columns a thread, and e_ij of its k-th column and
    // row i + r is entries[k R + r]. Costs wait there for their turn: all loads go out at once.
    template <int K>
    CURVKERN_HD Few<R> sums(Block& block, std::int64_t i, const Few<R>& shift,
                            Block::Own<Few<R*(K > 0 ? K : 1)>>& entries) const {
        const int threads = block.threads();
        Block::Own<Few<R>> part(block);
        block.alone([&](int thread) {
            Few<R> sum;
            if constexpr (K == 0) {
                for (std::int64_t j = thread; j < m_; j += threads) {
                    const Few<R> t = exponents(j, costs_.template at<R>(i, j));
                    CURVKERN_IN_REGISTERS
                    for (int r = 0; r < R; ++r) sum[r] += exp2_clamped(shift[r] + t[r]);
                }
            } else {
                const int mine = columns_of(thread, m_, threads);
                auto& e = entries(thread);
                CURVKERN_IN_REGISTERS
                for (int k = 0; k < K; ++k) {
                    if (k >= mine) continue;
                    const Few<R> cost =
                        costs_.template at<R>(i, thread + std::int64_t{k} * threads);
                    CURVKERN_IN_REGISTERS
                    for (int r = 0; r < R; ++r) e[k * R + r] = cost[r];
                }
                CURVKERN_IN_REGISTERS
                for (int k = 0; k < K; ++k) {
                    if (k >= mine) continue;
                    Few<R> cost;
                    CURVKERN_IN_REGISTERS
                    for (int r = 0; r < R; ++r) cost[r] = e[k * R + r];
                    const Few<R> t = exponents(thread + std::int64_t{k} * threads, cost);
                    CURVKERN_IN_REGISTERS
                    for (int r = 0; r < R; ++r) {
                        e[k * R + r] = exp2_clamped(shift[r] + t[r]);
                        sum[r] += e[k * R + r];
                    }
                }
            }
            part(thread) = sum;
        });
        return block.sum(part);
    }

    CURVKERN_HD Few<R> largest(Block& block, std::int64_t i) const {
        Block::Own<Few<R>> part(block);
        block.alone([&](int thread) {
            Few<R> top;
            CURVKERN_IN_REGISTERS
            for (int r = 0; r < R; ++r) top[r] = -infinite;
            for (std::int64_t j = thread; j < m_; j += block.threads()) {
                const Few<R> t = exponents(j, costs_.template at<R>(i, j));
                CURVKERN_IN_REGISTERS
                for (int r = 0; r < R; ++r) top[r] = t[r] > top[r] ? t[r] : top[r];
            }
            part(thread) = top;
        });
        return block.most(part);
    }

  private:
    // psi_j + log2 b_j - slope C_ij
    CURVKERN_HD Few<R> exponents(std::int64_t j, const Few<R>& cost) const {
        const double column = psi_[j] + log2_b_[j];
        Few<R> t;
        CURVKERN_IN_REGISTERS
        for (int r = 0; r < R; ++r) t[r] = column - slope_ * cost[r];
        return t;
    }

    const Costs& costs_;
    const double *psi_, *log2_b_;
    double slope_;
    std::int64_t m_;
};

// What becomes of a row with the sum of its entries; shift = -inf: it has no mass within reach.
class RowUpdate {
  public:
    CURVKERN_HD RowUpdate(const State& s, Mode mode)
        : checks_(mode == Mode::check),
          damping_(s.damping_a),
          inverse_rho_(s.inverse_rho_a),
          log2_mass_b_(s.log2_mass_b) {}

    // a_i 2^(phi_i' - phi_i), what its entries count in the sums of columns.
    CURVKERN_HD double factor(double sum, double shift, double a) const {
        if (checks_) return a;
        if (!(shift > -infinite)) return 0;
        const double total = sum > 0 ? sum : 1;
        if (damping_ == 1) return a / total;
        const double rest = shift - log2_mass_b_;
        return a * exp2_clamped(damping_ * (rest - log2_positive(total)) - rest);
    }

    // The new potential; by a check the residual.
    CURVKERN_HD double result(double sum, double shift, double a) const {
        const double rest = shift - log2_mass_b_;
        if (checks_) return a * abs(sum - exp2_clamped(-inverse_rho_ * rest));
        return shift > -infinite ? damping_ * (rest - log2_positive(sum > 0 ? sum : 1)) : 0;
    }

  private:
    bool checks_;
    double damping_, inverse_rho_, log2_mass_b_;
};

// Rows of one slot. K > 0: a thread has at most K columns, whose sums grow in shared memory, m
// numbers, and go to p.partial. K = 0: rows only.
template <int R, int K, class Costs>
CURVKERN_HD void sweep_rows(Block& block, const Batch& p, std::int64_t index, std::int64_t slot,
                            Mode mode) {
    if (!takes_part(p.state[index], mode)) return;
    const Costs costs(p, index);
    const RowGroup<R, Costs> group(p, index, costs);
    const RowUpdate update(p.state[index], mode);
    const double log2_mass_b = p.state[index].log2_mass_b;
    const double *phi = p.phi + index * p.n, *weight = p.weight_a + index * p.n;
    double* result = (mode == Mode::check ? p.residual_a : p.phi) + index * p.n;
    double* column = block.shared();
    const std::int64_t m = p.m, end = smaller((slot + 1) * p.rows, p.n);
    const int threads = block.threads();
    Block::Own<Few<R*(K > 0 ? K : 1)>> entries(block);
    for (std::int64_t i = slot * p.rows; i < end; i += R) {
        Few<R> shift, sum, factor;
        CURVKERN_IN_REGISTERS
        for (int r = 0; r < R; ++r) shift[r] = phi[smaller(i + r, end - 1)] + log2_mass_b;
        for (int attempt = 0; attempt < 2; ++attempt) {
            sum = group.template sums<K>(block, i, shift, entries);
            bool usable = true;
            CURVKERN_IN_REGISTERS
            for (int r = 0; r < R; ++r) usable &= within(sum[r], row_low, row_high);
            if (usable || mode == Mode::check || attempt == 1) break;
            const Few<R> top = group.largest(block, i);
            CURVKERN_IN_REGISTERS
            for (int r = 0; r < R; ++r) {
                if (within(sum[r], row_low, row_high)) continue;
                shift[r] = is_reachable(top[r]) ? -top[r] : -infinite;
            }
        }
        CURVKERN_IN_REGISTERS
        for (int r = 0; r < R; ++r) {
            factor[r] = i + r < end ? update.factor(sum[r], shift[r], weight[i + r]) : 0;
        }
        block.alone([&](int thread) {
            const int mine = columns_of(thread, m, threads);
            CURVKERN_IN_REGISTERS
            for (int k = 0; k < K; ++k) {
                if (k >= mine) continue;
                double& total = column[thread + k * threads];
                double add = i == slot * p.rows ? 0 : total;
                CURVKERN_IN_REGISTERS
                for (int r = 0; r < R; ++r) add = factor[r] * entries(thread)[k * R + r] + add;
                total = add;
            }
            CURVKERN_IN_REGISTERS
            for (int r = 0; r < R; ++r) {
                if (thread != r || i + r >= end) continue;
                result[i + r] = update.result(sum[r], shift[r], weight[i + r]);
            }
        });
    }
    block.each([&](int thread) {
        if (K == 0) return;
        double* target = p.partial + (index * p.parts + slot) * m;
        for (std::int64_t j = thread; j < m; j += threads) target[j] = column[j];
    });
}

// Sums over the rows of one part at columns that are as many as threads; the rows are at their
// new potentials.
template <class Costs>
CURVKERN_HD void sum_columns(Block& block, const Batch& p, std::int64_t index,
                             std::int64_t part, std::int64_t first, Mode mode) {
    const State s = p.state[index];
    if (!takes_part(s, mode)) return;
    const Costs costs(p, index);
    const double *phi = p.phi + index * p.n, *weight = p.weight_a + index * p.n;
    const std::int64_t end = smaller((part + 1) * p.rows_of_part, p.n);
    block.each([&](int thread) {
        const std::int64_t j = first + thread;
        if (j >= p.m) return;
        const double shift =
            p.psi[index * p.m + j] + p.log2_weight_b[index * p.m + j] + s.log2_mass_b;
        double total = 0;
        for (std::int64_t i = part * p.rows_of_part; i < end; i += most_rows) {
            const Few<most_rows> cost = costs.template at<most_rows>(i, j);
            CURVKERN_IN_REGISTERS
            for (int r = 0; r < most_rows; ++r) {
                const std::int64_t row = smaller(i + r, end - 1);
                const double a = i + r < end ? weight[row] : 0;
                total = a * exp2_clamped((phi[row] + shift) - s.slope * cost[r]) + total;
            }
        }
        p.partial[(index * p.parts + part) * p.m + j] = total;
    });
}

// A tile of columns: a warp of them side by side, over all rows (or parts) of the problem,
// which the warps of the block share out. Shared memory: a number for each thread.
class ColumnTile {
  public:
    CURVKERN_HD ColumnTile(Block& block, std::int64_t first, std::int64_t m)
        : block_(block), first_(first), m_(m), warps_(block.threads() / warp_size) {}

    CURVKERN_HD std::int64_t column(int thread) const { return first_ + thread % warp_size; }
    CURVKERN_HD bool inside(int thread) const { return column(thread) < m_; }
    CURVKERN_HD bool writes(int thread) const { return thread < warp_size && inside(thread); }

    // of(k, column) for k < count, combined: the same in all threads of a column.
    template <class Of, class Combine>
    CURVKERN_HD Block::Own<double> over(std::int64_t count, double start, Of of,
                                        Combine combine) const {
        double* shared = block_.shared();
        block_.each([&](int thread) {
            double total = start;
            if (inside(thread)) {
                for (std::int64_t k = thread / warp_size; k < count; k += warps_) {
                    total = combine(total, of(k, column(thread)));
                }
            }
            shared[thread] = total;
        });
        Block::Own<double> result(block_, start);
        block_.each([&](int thread) {
            double total = start;
            for (int w = 0; w < warps_; ++w) {
                total = combine(total, shared[w * warp_size + thread % warp_size]);
            }
            result(thread) = total;
        });
        return result;
    }

  private:
    Block& block_;
    std::int64_t first_, m_;
    int warps_;
};

// -damping_b log2 sum_i a_i 2^(phi_i - slope C_ij) by the largest exponent; 0 where no row with
// mass is at a finite cost.
template <class Costs>
CURVKERN_HD Block::Own<double> rescued_columns(Block& block, const ColumnTile& tile,
                                               const Batch& p, std::int64_t index) {
    const State s = p.state[index];
    const Costs costs(p, index);
    const double *phi = p.phi + index * p.n, *weight = p.weight_a + index * p.n;
    const auto exponent = [&](std::int64_t i, std::int64_t j) {
        return phi[i] - s.slope * costs.template at<1>(i, j)[0];
    };
    Block::Own<double> top = tile.over(
        p.n, -infinite,
        [&](std::int64_t i, std::int64_t j) {
            return weight[i] > 0 ? exponent(i, j) : -infinite;
        },
        Largest{});
    // The threads of a column share its largest exponent, which the sum looks up there.
    double* tops = block.shared() + block.threads();
    block.each([&](int thread) {
        if (thread < warp_size) tops[thread] = top(thread);
    });
    Block::Own<double> sum = tile.over(
        p.n, 0.0,
        [&](std::int64_t i, std::int64_t j) {
            const double t = exponent(i, j) - tops[j % warp_size];
            return weight[i] > 0 ? weight[i] * exp2_clamped(t) : 0.0;
        },
        Add{});
    Block::Own<double> next(block, 0.0);
    block.alone([&](int thread) {
        if (!is_reachable(top(thread)) || !(sum(thread) > 0)) return;
        next(thread) =
            -s.damping_b * (top(thread) + log2_positive(sum(thread)) + s.log2_mass_a);
    });
    return next;
}

// Columns first .. first + 31, first a multiple of 32.
template <class Costs>
CURVKERN_HD void finish_columns(Block& block, const Batch& p, std::int64_t index,
                                std::int64_t first, Mode mode) {
    const State s = p.state[index];
    if (mode != Mode::complete && !takes_part(s, mode)) return;
    double *psi = p.psi + index * p.m, *residual = p.residual_b + index * p.m;
    const double *weight = p.weight_b + index * p.m,
                 *partial = p.partial + index * p.parts * p.m;
    const ColumnTile tile(block, first, p.m);
    if (mode == Mode::complete) {
        const auto massless = [&](int thread) {
            return tile.writes(thread) && !(weight[tile.column(thread)] > 0);
        };
        if (!block.any(massless)) return;
        Block::Own<double> next = rescued_columns<Costs>(block, tile, p, index);
        block.each([&](int thread) {
            if (massless(thread)) psi[tile.column(thread)] = next(thread);
        });
        return;
    }
    Block::Own<double> sum = tile.over(
        p.parts, 0.0, [&](std::int64_t k, std::int64_t j) { return partial[k * p.m + j]; },
        Add{});
    const double log2_masses = s.log2_mass_a - s.log2_mass_b;
    if (mode == Mode::check) {
        const double masses = exp2_clamped(log2_masses);
        block.each([&](int thread) {
            if (!tile.writes(thread)) return;
            const std::int64_t j = tile.column(thread);
            const double target = weight[j] * exp2_clamped(-s.inverse_rho_b * psi[j]);
            residual[j] = weight[j] > 0 ? abs(sum(thread) * masses - target) : 0;
        });
        return;
    }
    const auto usable = [&](int thread) {
        const double total = sum(thread);
        return total > sum_low &&
               within(total / weight[tile.column(thread)], column_low, column_high);
    };
    const auto has_mass = [&](int thread) {
        return tile.writes(thread) && weight[tile.column(thread)] > 0;
    };
    const bool again =
        block.any([&](int thread) { return has_mass(thread) && !usable(thread); });
    Block::Own<double> rescued(block, 0.0);
    if (again) rescued = rescued_columns<Costs>(block, tile, p, index);
    block.each([&](int thread) {
        if (!has_mass(thread)) return;
        const std::int64_t j = tile.column(thread);
        residual[j] = psi[j];  // for the translation
        psi[j] = usable(thread)
                     ? s.damping_b *
                           (psi[j] - (log2_positive(sum(thread) / weight[j]) + log2_masses))
                     : rescued(thread);
    });
}

}  // namespace isa
}  // namespace curvkern::sinkhorn::device
