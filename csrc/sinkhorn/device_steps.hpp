// What happens to one problem between the passes over its costs: one block for each.
#pragma once

#include "sinkhorn/device_sweep.hpp"

namespace curvkern::sinkhorn::device {
CURVKERN_PER_ISA {

// Annealing divides eps by `factor` down from the range of the costs; sweeps at the first
// level, and at each below it.
inline constexpr double anneal_factor = 4, first_sweeps = 2, level_sweeps = 3;

CURVKERN_HD void set_eps(State& s, const Batch& p, std::int64_t index, double eps) {
    s.eps = eps;
    s.slope = p.scale / eps * log2_e;
    // A penalty so stiff that rho / (rho + eps) rounds to 1 is a hard marginal.
    const double a = eps / p.rho[2 * index], b = eps / p.rho[2 * index + 1];
    s.inverse_rho_a = 1 + a == 1 ? 0 : a;
    s.inverse_rho_b = 1 + b == 1 ? 0 : b;
    s.damping_a = 1 / (1 + s.inverse_rho_a);
    s.damping_b = 1 / (1 + s.inverse_rho_b);
}

CURVKERN_HD void start(Block& block, const Batch& p, std::int64_t index) {
    const double *a = p.a + index * p.n, *b = p.b + index * p.m;
    Block::Own<Few<2>> part(block);
    block.alone([&](int thread) {
        for (std::int64_t i = thread; i < p.n; i += block.threads()) part(thread)[0] += a[i];
        for (std::int64_t j = thread; j < p.m; j += block.threads()) part(thread)[1] += b[j];
    });
    const Few<2> mass = block.sum(part);
    const double unit = log2_e / p.eps[index];
    block.each([&](int thread) {
        for (std::int64_t i = thread; i < p.n; i += block.threads()) {
            const std::int64_t at = index * p.n + i;
            p.weight_a[at] = a[i] / mass[0];
            p.phi[at] = p.f == nullptr ? 0 : p.f[at] * unit;
        }
        for (std::int64_t j = thread; j < p.m; j += block.threads()) {
            const std::int64_t at = index * p.m + j;
            const double weight = b[j] / mass[1];
            p.weight_b[at] = weight;
            p.log2_weight_b[at] = weight > 0 ? log2_positive(weight) : -infinite;
            p.psi[at] = p.g == nullptr ? 0 : p.g[at] * unit;
            p.residual_b[at] = 0;
        }
        if (thread != 0) return;
        State s{};
        s.mass_a = mass[0];
        s.mass_b = mass[1];
        s.log2_mass_a = log2_positive(mass[0]);
        s.log2_mass_b = log2_positive(mass[1]);
        s.target = p.eps[index];
        s.error = infinite;
        set_eps(s, p, index, s.target);
        p.state[index] = s;
    });
}

// The least and the largest finite cost of the rows of a slot.
template <class Costs>
CURVKERN_HD void find_range(Block& block, const Batch& p, std::int64_t index,
                            std::int64_t slot) {
    const Costs costs(p, index);
    const std::int64_t end = smaller((slot + 1) * p.rows, p.n);
    Block::Own<Few<2>> bounds(block);  // minus the least, and the largest
    block.alone([&](int thread) {
        double least = infinite, most = -infinite;
        for (std::int64_t i = slot * p.rows; i < end; ++i) {
            for (std::int64_t j = thread; j < p.m; j += block.threads()) {
                const double cost = costs.template at<1>(i, j)[0];
                least = cost < least ? cost : least;
                most = cost > most && cost < infinite ? cost : most;
            }
        }
        bounds(thread)[0] = -least;
        bounds(thread)[1] = most;
    });
    const Few<2> found = block.most(bounds);
    block.each([&](int thread) {
        double* range = p.range + 2 * (index * p.slots + slot);
        if (thread == 0) range[0] = -found[0];
        if (thread == 0) range[1] = found[1];
    });
}

// The potentials of another eps in its place.
CURVKERN_HD void set_level(Block& block, const Batch& p, std::int64_t index, double eps,
                           double sweeps) {
    const double ratio = p.state[index].eps / eps;
    block.each([&](int thread) {
        for (std::int64_t i = thread; i < p.n; i += block.threads()) {
            p.phi[index * p.n + i] *= ratio;
        }
        for (std::int64_t j = thread; j < p.m; j += block.threads()) {
            p.psi[index * p.m + j] *= ratio;
        }
    });
    block.each([&](int thread) {
        if (thread != 0) return;
        State s = p.state[index];
        s.sweeps_left = sweeps;
        set_eps(s, p, index, eps);
        p.state[index] = s;
    });
}

// The first level: levels that leave no iteration for the wanted eps are skipped.
CURVKERN_HD void begin_annealing(Block& block, const Batch& p, std::int64_t index,
                                 double max_iter) {
    double least = infinite, most = -infinite;
    if (p.extent != nullptr) {
        least = 0;
        most = p.extent[index];
    } else {
        for (std::int64_t slot = 0; slot < p.slots; ++slot) {
            const double* range = p.range + 2 * (index * p.slots + slot);
            least = range[0] < least ? range[0] : least;
            most = range[1] > most ? range[1] : most;
        }
    }
    const double target = p.state[index].target;
    double eps = most > least ? (most - least) * p.scale / anneal_factor : 0;
    while (eps > anneal_factor * target && eps < infinite) {
        const double levels = log(eps / target) / log(anneal_factor) + 1;
        if (first_sweeps * levels < max_iter / 2) break;
        eps /= anneal_factor;
    }
    if (eps > anneal_factor * target && eps < infinite) {
        set_level(block, p, index, eps, first_sweeps);
    }
}

// log2 sum_i weight_i 2^(-factor potential_i), of normalised weights
CURVKERN_HD double log2_sum(Block& block, std::int64_t size, const double* weight,
                            const double* potential, double factor) {
    Block::Own<Few<1>> part(block);
    block.alone([&](int thread) {
        double top = -infinite;
        for (std::int64_t i = thread; i < size; i += block.threads()) {
            const double t = -factor * potential[i];
            top = weight[i] > 0 && t > top ? t : top;
        }
        part(thread)[0] = top;
    });
    const double top = block.most(part)[0];
    block.alone([&](int thread) {
        double sum = 0;
        for (std::int64_t i = thread; i < size; i += block.threads()) {
            if (weight[i] > 0) {
                sum += weight[i] * exp2_clamped(-factor * potential[i] - top);
            }
        }
        part(thread)[0] = sum;
    });
    return top + log2_positive(block.sum(part)[0]);
}

CURVKERN_HD void shift(Block& block, std::int64_t size, double* potential, double by) {
    block.each([&](int thread) {
        for (std::int64_t i = thread; i < size; i += block.threads()) potential[i] += by;
    });
}

// Unbalanced: the translations that maximise the dual after each half of the sweep; see
// best_translation in solver.cpp for formula and source.
CURVKERN_HD void translate(Block& block, const Batch& p, std::int64_t index) {
    const State s = p.state[index];
    double *phi = p.phi + index * p.n, *psi = p.psi + index * p.m;
    const auto rows = [&] {
        return log2_sum(block, p.n, p.weight_a + index * p.n, phi, s.inverse_rho_a) +
               s.log2_mass_a;
    };
    const auto columns = [&](const double* potential) {
        return log2_sum(block, p.m, p.weight_b + index * p.m, potential, s.inverse_rho_b) +
               s.log2_mass_b;
    };
    const double after_rows = rows() - columns(p.residual_b + index * p.m);
    const double first =
        after_rows / (s.inverse_rho_a / (1 + s.inverse_rho_a) + s.inverse_rho_b);
    shift(block, p.n, phi, s.damping_a * first);
    shift(block, p.m, psi, -s.damping_a * s.damping_b * first);
    const double after_columns = columns(psi) - rows();
    const double second =
        after_columns / (s.inverse_rho_b / (1 + s.inverse_rho_b) + s.inverse_rho_a);
    shift(block, p.m, psi, s.damping_b * second);
    shift(block, p.n, phi, -second);
}

// f <- (f + update(f)) / 2 for both sides; the last psi is the last phi.
CURVKERN_HD void average(Block& block, const Batch& p, std::int64_t index) {
    block.each([&](int thread) {
        for (std::int64_t i = thread; i < p.n; i += block.threads()) {
            const std::int64_t at = index * p.n + i;
            if (p.weight_a[at] > 0) p.phi[at] = (p.phi[at] + p.residual_b[at]) / 2;
            p.psi[at] = p.phi[at];
        }
    });
}

// What a sweep is followed by.
struct Updates {
    bool translate, average;
};

// After a sweep: translation where it is unbalanced, the next level while it is annealing.
CURVKERN_HD void settle(Block& block, const Batch& p, std::int64_t index, Updates updates) {
    const State s = p.state[index];
    if (s.done != 0) return;
    if (updates.translate && !s.balanced()) translate(block, p, index);
    if (updates.average) average(block, p, index);
    if (!(s.eps > s.target)) return;
    if (s.sweeps_left > 1) {
        block.barrier();
        block.each([&](int thread) {
            if (thread == 0) p.state[index].sweeps_left = s.sweeps_left - 1;
        });
    } else {
        const double next = s.eps / anneal_factor;
        set_level(block, p, index, next > s.target ? next : s.target, level_sweeps);
    }
}

// Before a check: the wanted eps where this is the last, and sum a f / sum a = sum b g / sum b.
CURVKERN_HD void prepare_check(Block& block, const Batch& p, std::int64_t index, bool last) {
    if (p.state[index].done != 0) return;
    if (last && p.state[index].eps > p.state[index].target) {
        set_level(block, p, index, p.state[index].target, 0);
    }
    const State s = p.state[index];
    if (s.eps > s.target || !s.balanced()) return;
    Block::Own<Few<2>> part(block);
    block.alone([&](int thread) {
        Few<2> sum;
        for (std::int64_t i = thread; i < p.n; i += block.threads()) {
            sum[0] += p.weight_a[index * p.n + i] * p.phi[index * p.n + i];
        }
        for (std::int64_t j = thread; j < p.m; j += block.threads()) {
            sum[1] += p.weight_b[index * p.m + j] * p.psi[index * p.m + j];
        }
        part(thread) = sum;
    });
    const Few<2> mean = block.sum(part);
    const double by = (mean[1] - mean[0]) / 2;
    shift(block, p.n, p.phi + index * p.n, by);
    shift(block, p.m, p.psi + index * p.m, -by);
}

CURVKERN_HD bool is_finite(double x) {
    return abs(x) < infinite;
}

// From the residuals of a check.
CURVKERN_HD void judge(Block& block, const Batch& p, std::int64_t index, double iteration,
                       double tol, double* errors) {
    const State s = p.state[index];
    if (!takes_part(s, Mode::check)) {
        block.alone([&](int thread) {
            if (thread == 0) errors[index] = s.error;
        });
        return;
    }
    Block::Own<Few<3>> part(block);
    block.alone([&](int thread) {
        // Exponents are cut where arithmetic ends, at NaN as well: residuals alone do not tell.
        Few<3> sum;
        for (std::int64_t i = thread; i < p.n; i += block.threads()) {
            sum[0] += p.residual_a[index * p.n + i];
            sum[2] += is_finite(p.phi[index * p.n + i]) ? 0 : 1;
        }
        for (std::int64_t j = thread; j < p.m; j += block.threads()) {
            sum[1] += p.residual_b[index * p.m + j];
            sum[2] += is_finite(p.psi[index * p.m + j]) ? 0 : 1;
        }
        part(thread) = sum;
    });
    const Few<3> off = block.sum(part);
    block.each([&](int thread) {
        if (thread != 0) return;
        State& to = p.state[index];
        const double total = s.mass_a * off[0] + s.mass_b * off[1];
        to.error = off[2] > 0 ? infinite : total / max(s.mass_a, s.mass_b);
        to.iterations = iteration;
        to.converged = to.done = to.error <= tol ? 1 : 0;
        errors[index] = to.error;
    });
}

// f (batch, n), g (batch, m), info (batch, 3): error, iterations, converged
CURVKERN_HD void write(Block& block, const Batch& p, std::int64_t index, double* f, double* g,
                       double* info) {
    const State s = p.state[index];
    const double unit = s.target / log2_e;
    block.each([&](int thread) {
        for (std::int64_t i = thread; i < p.n; i += block.threads()) {
            f[index * p.n + i] = p.phi[index * p.n + i] * unit;
        }
        for (std::int64_t j = thread; j < p.m; j += block.threads()) {
            g[index * p.m + j] = p.psi[index * p.m + j] * unit;
        }
        if (thread != 0) return;
        info[3 * index] = s.error;
        info[3 * index + 1] = s.iterations;
        info[3 * index + 2] = s.converged;
    });
}

}  // namespace isa
}  // namespace curvkern::sinkhorn::device
