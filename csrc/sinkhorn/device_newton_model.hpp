// The sparse model of newton_model.hpp on the device, and conjugate gradients for its Newton
// direction with the diagonal as preconditioner. Formulas and names are those of the CPU.
#pragma once

#include "sinkhorn/device_newton.hpp"

namespace curvkern::sinkhorn::device {
CURVKERN_PER_ISA {

// Rounding may leave less than nothing of what was dropped; a trace keeps every component of
// the kept entries tied down.
inline constexpr double least_rest = 1e-14;

// What was dropped, by rows and columns; x = 0.
CURVKERN_HD void begin_model(Block& block, const Newton& s, std::int64_t chunk) {
    const auto rest = [](double mass, double kept) {
        return mass - kept > least_rest * mass ? mass - kept : least_rest * mass;
    };
    for_lines<1>(
        block, s.rows, chunk, s.row_chunk, s.p.n,
        [&](std::int64_t k) { return Few<1>{{s.rows.value[k]}}; },
        [&](int, std::int64_t i, const Few<1>& kept) {
            s.rest_row[i] = rest(s.row_mass[i], kept[0]);
        });
    for_lines<1>(
        block, s.columns, chunk, s.column_chunk, s.p.m,
        [&](std::int64_t k) { return Few<1>{{s.columns.value[k]}}; },
        [&](int, std::int64_t j, const Few<1>& kept) {
            s.rest_column[j] = rest(s.column_mass[j], kept[0]);
            s.move[j] = 0;
            s.growth[j] = 1;
        });
}

// The rows at x, whose e^x is `growth`.
CURVKERN_HD void evaluate_rows(Block& block, const Newton& s, std::int64_t chunk) {
    const double lambda = s.p.state[0].damping_a;
    Block::Own<Few<1>> value(block);
    for_lines<1>(
        block, s.rows, chunk, s.row_chunk, s.p.n,
        [&](std::int64_t k) { return Few<1>{{s.rows.value[k] * s.growth[s.rows.other[k]]}}; },
        [&](int thread, std::int64_t i, const Few<1>& kept) {
            const double r = s.row_mass[i];
            s.factor[i] = 1;
            s.u[i] = s.weight[i] = 0;
            if (!(r > 0)) return;
            const double t = (s.rest_row[i] + kept[0]) / r, log_t = log(t);
            const double exponent = (1 - lambda) * log_t;
            value(thread)[0] -= r * (lambda == 1 ? log_t : expm1(exponent) / (1 - lambda));
            const double u = lambda == 1 ? 1 / t : exp(-lambda * log_t);
            s.factor[i] = t;
            s.u[i] = u;
            s.weight[i] = lambda * u * u / (r * (lambda == 1 ? 1 : exp(exponent)));
        });
    put_chunk(block, s, chunk, value, sum_value_rows);
}

// The columns at x: gradient, diagonal of -hess phi, and the inverse of its true diagonal.
CURVKERN_HD void evaluate_columns(Block& block, const Newton& s, std::int64_t chunk,
                                  const double* x) {
    const double kappa = s.p.state[0].inverse_rho_b;
    Block::Own<Few<2>> sums(block);
    for_lines<2>(
        block, s.columns, chunk, s.column_chunk, s.p.m,
        [&](std::int64_t k) {
            const double w = s.columns.value[k];
            const std::int64_t i = s.columns.other[k];
            return Few<2>{{w * s.u[i], w * w * s.weight[i]}};
        },
        [&](int thread, std::int64_t j, const Few<2>& kept) {
            const double moved = expm1(-kappa * x[j]), growth = s.growth[j];
            const double mass = (kept[0] + s.rest_column[j]) * growth;
            const double wanted = s.target[j] * (1 + moved);
            const double gradient = wanted - mass, diagonal = mass + kappa * wanted;
            sums(thread)[0] += s.target[j] * (kappa == 0 ? x[j] : -moved / kappa) -
                               s.rest_column[j] * expm1(x[j]);
            sums(thread)[1] += abs(gradient);
            s.gradient[j] = gradient;
            s.diagonal[j] = diagonal;
            const double exact = diagonal - growth * growth * kept[1];
            const double least = 0.01 * diagonal;
            const double used = exact > least ? exact : least;
            s.inverse[j] = used > 0 ? 1 / used : 1;
        });
    put_chunk(block, s, chunk, sums, sum_value_columns);
}

CURVKERN_HD void put_growth(Block& block, const Newton& s, std::int64_t chunk,
                            const double* x) {
    in_chunk(block, chunk, s.column_chunk, s.p.m,
             [&](int, std::int64_t j) { s.growth[j] = exp(x[j]); });
}

// Conjugate gradients ------------------------------------------------------------------------
//
// An iteration is three kernels: the rows of W, its columns, the vectors. Energy r'z and L1
// norm of the residual have two places each, which iterations take in turn: what all blocks add
// up for their decision is not what some of them write meanwhile. An iteration after the last
// copies them.

CURVKERN_HD void start_solve(Block& block, const Newton& s, std::int64_t chunk) {
    Block::Own<Few<2>> sums(block);
    in_chunk(block, chunk, s.column_chunk, s.p.m, [&](int thread, std::int64_t j) {
        const double r = s.gradient[j], z = s.inverse[j] * r;
        s.direction[j] = s.search[j] = 0;
        s.residual[j] = r;
        s.preconditioned[j] = z;
        sums(thread)[0] += r * z;
        sums(thread)[1] += abs(r);
    });
    put_chunk(block, s, chunk, sums, sum_energy, 2);
}

struct Progress {
    bool ended;
    double energy;
};

CURVKERN_HD Progress progress(Block& block, const Newton& s, std::int64_t iteration,
                              double goal) {
    const int now = static_cast<int>(iteration % 2);
    const Few<2> sums = add_chunks<2>(block, s, sum_energy + now, 2);
    return {!(sums[0] > 0) || !(sums[1] > goal), sums[0]};
}

// How much of the last search direction stays.
CURVKERN_HD double kept_share(Block& block, const Newton& s, std::int64_t iteration,
                              double energy) {
    if (iteration == 0) return 0;
    return energy /
           add_chunks<1>(block, s, sum_energy + 1 - static_cast<int>(iteration % 2))[0];
}

CURVKERN_HD void solve_rows(Block& block, const Newton& s, std::int64_t chunk,
                            std::int64_t iteration, double goal) {
    const Progress at = progress(block, s, iteration, goal);
    if (at.ended) return;
    const double keep = kept_share(block, s, iteration, at.energy);
    for_lines<1>(
        block, s.rows, chunk, s.row_chunk, s.p.n,
        [&](std::int64_t k) {
            const std::int64_t j = s.rows.other[k];
            const double search = s.preconditioned[j] + keep * s.search[j];
            return Few<1>{{s.rows.value[k] * (s.growth[j] * search)}};
        },
        [&](int, std::int64_t i, const Few<1>& sum) { s.image_row[i] = s.weight[i] * sum[0]; });
}

CURVKERN_HD void solve_columns(Block& block, const Newton& s, std::int64_t chunk,
                               std::int64_t iteration, double goal) {
    const Progress at = progress(block, s, iteration, goal);
    if (at.ended) return;
    const double keep = kept_share(block, s, iteration, at.energy);
    Block::Own<Few<1>> curvature(block);
    for_lines<1>(
        block, s.columns, chunk, s.column_chunk, s.p.m,
        [&](std::int64_t k) {
            return Few<1>{{s.columns.value[k] * s.image_row[s.columns.other[k]]}};
        },
        [&](int thread, std::int64_t j, const Few<1>& sum) {
            const double search = s.preconditioned[j] + keep * s.search[j];
            const double image = s.diagonal[j] * search - s.growth[j] * sum[0];
            s.search[j] = search;
            s.image[j] = image;
            curvature(thread)[0] += search * image;
        });
    put_chunk(block, s, chunk, curvature, sum_curvature);
}

CURVKERN_HD void solve_vectors(Block& block, const Newton& s, std::int64_t chunk,
                               std::int64_t iteration, double goal) {
    const Progress at = progress(block, s, iteration, goal);
    const int now = static_cast<int>(iteration % 2);
    const double curvature = add_chunks<1>(block, s, sum_curvature)[0];
    if (at.ended || !(curvature > 0)) {
        block.alone([&](int thread) {
            if (thread != 0) return;
            double *energy = s.partial + sum_energy * most_chunks + chunk,
                   *residual = s.partial + sum_residual * most_chunks + chunk;
            energy[(1 - now) * most_chunks] = at.ended ? energy[now * most_chunks] : 0;
            residual[(1 - now) * most_chunks] = residual[now * most_chunks];
        });
        return;
    }
    const double length = at.energy / curvature;
    Block::Own<Few<2>> sums(block);
    in_chunk(block, chunk, s.column_chunk, s.p.m, [&](int thread, std::int64_t j) {
        s.direction[j] += length * s.search[j];
        const double r = s.residual[j] - length * s.image[j], z = s.inverse[j] * r;
        s.residual[j] = r;
        s.preconditioned[j] = z;
        sums(thread)[0] += r * z;
        sums(thread)[1] += abs(r);
    });
    put_chunk(block, s, chunk, sums, sum_energy + 1 - now, 2);
}

// The line search ----------------------------------------------------------------------------

// Hard marginals leave a constant open: none of it, in the mean over the targets. For
// put_proposal, which takes it off.
CURVKERN_HD void find_mean(Block& block, const Newton& s, std::int64_t chunk) {
    Block::Own<Few<2>> sums(block);
    in_chunk(block, chunk, s.column_chunk, s.p.m, [&](int thread, std::int64_t j) {
        sums(thread)[0] += s.target[j] * s.direction[j];
        sums(thread)[1] += s.target[j];
    });
    put_chunk(block, s, chunk, sums, sum_energy);
}

// next = x + step direction within the cap, and its e^x. The slope on the way there.
CURVKERN_HD void propose(Block& block, const Newton& s, std::int64_t chunk, double step,
                         double cap) {
    const bool is_open = s.p.state[0].balanced();
    const Few<2> sums = add_chunks<2>(block, s, sum_energy);
    const double mean = is_open ? sums[0] / sums[1] : 0;
    Block::Own<Few<1>> slope(block);
    in_chunk(block, chunk, s.column_chunk, s.p.m, [&](int thread, std::int64_t j) {
        const double d = is_open && !(s.target[j] > 0) ? 0 : s.direction[j] - mean;
        double x = s.move[j] + step * d;
        x = x < cap ? x : cap;
        x = x > -cap ? x : -cap;
        s.next[j] = x;
        s.growth[j] = exp(x);
        slope(thread)[0] += s.gradient[j] * (x - s.move[j]);
    });
    put_chunk(block, s, chunk, slope, sum_slope);
}

CURVKERN_HD void accept(Block& block, const Newton& s, std::int64_t chunk) {
    in_chunk(block, chunk, s.column_chunk, s.p.m,
             [&](int, std::int64_t j) { s.move[j] = s.next[j]; });
}

CURVKERN_HD void end_model(Block& block, const Newton& s, std::int64_t chunk) {
    const double lambda = s.p.state[0].damping_a;
    in_chunk(block, chunk, s.row_chunk, s.p.n,
             [&](int, std::int64_t i) { s.row_move[i] = -lambda * log(s.factor[i]); });
}

}  // namespace isa
}  // namespace curvkern::sinkhorn::device
