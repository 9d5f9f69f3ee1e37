// Potentials and the plan between the steps: levels of eps, what a sweep has left, the entries
// that a sparse model keeps.
#pragma once

#include "sinkhorn/device_newton.hpp"
#include "sinkhorn/device_plan.hpp"

namespace curvkern::sinkhorn::device {
CURVKERN_PER_ISA {

// The kept potentials, in units of eps. The first sum: how many of them are not zero.
CURVKERN_HD void begin_level(Block& block, const Newton& s, std::int64_t chunk, double eps) {
    const double unit = log2_e / eps;
    Block::Own<Few<1>> nonzero(block);
    in_chunk(block, chunk, s.row_chunk, s.p.n, [&](int thread, std::int64_t i) {
        s.p.phi[i] = s.f[i] * unit;
        nonzero(thread)[0] += s.f[i] != 0 ? 1 : 0;
    });
    in_chunk(block, chunk, s.column_chunk, s.p.m, [&](int thread, std::int64_t j) {
        s.p.psi[j] = s.g[j] * unit;
        nonzero(thread)[0] += s.g[j] != 0 ? 1 : 0;
    });
    put_chunk(block, s, chunk, nonzero, 0);
    block.alone([&](int thread) {
        if (thread != 0 || chunk != 0) return;
        State state = s.p.state[0];
        set_eps(state, s.p, 0, eps);
        state.target = eps;
        state.done = 0;
        s.p.state[0] = state;
    });
}

CURVKERN_HD void find_nonfinite(Block& block, const Newton& s, std::int64_t chunk) {
    Block::Own<Few<1>> found(block);
    in_chunk(block, chunk, s.row_chunk, s.p.n, [&](int thread, std::int64_t i) {
        found(thread)[0] += is_finite(s.p.phi[i]) ? 0 : 1;
    });
    in_chunk(block, chunk, s.column_chunk, s.p.m, [&](int thread, std::int64_t j) {
        found(thread)[0] += is_finite(s.p.psi[j]) ? 0 : 1;
    });
    put_chunk(block, s, chunk, found, 0);
}

// The potentials become the kept ones where find_nonfinite has found none.
CURVKERN_HD void keep(Block& block, const Newton& s, std::int64_t chunk) {
    if (add_chunks<1>(block, s, 0)[0] > 0) return;
    const double unit = s.p.state[0].eps / log2_e;
    in_chunk(block, chunk, s.row_chunk, s.p.n,
             [&](int, std::int64_t i) { s.f[i] = s.p.phi[i] * unit; });
    in_chunk(block, chunk, s.column_chunk, s.p.m,
             [&](int, std::int64_t j) { s.g[j] = s.p.psi[j] * unit; });
}

CURVKERN_HD void clear(Block& block, const Newton& s, std::int64_t chunk) {
    in_chunk(block, chunk, s.row_chunk, s.p.n, [&](int, std::int64_t i) { s.f[i] = 0; });
    in_chunk(block, chunk, s.column_chunk, s.p.m, [&](int, std::int64_t j) { s.g[j] = 0; });
}

CURVKERN_HD double mass_ratio(const State& s) {  // of b to a
    return s.mass_b / s.mass_a;
}

// The column sums of a sweep; sums of them, and of what they should be.
CURVKERN_HD void add_columns(Block& block, const Newton& s, std::int64_t chunk) {
    const State state = s.p.state[0];
    Block::Own<Few<2>> sums(block);
    in_chunk(block, chunk, s.column_chunk, s.p.m, [&](int thread, std::int64_t j) {
        double total = 0;
        for (std::int64_t part = 0; part < s.p.parts; ++part) {
            total += s.p.partial[part * s.p.m + j];
        }
        const double b = mass_ratio(state) * s.p.weight_b[j];
        s.column_mass[j] = b > 0 ? total : 0;  // not what exponents were cut to
        if (!(b > 0)) return;
        sums(thread)[0] += total;
        sums(thread)[1] += b * exp(-state.inverse_rho_b * s.p.psi[j] * ln_2);
    });
    put_chunk(block, s, chunk, sums, 0);
}

// With psi + t log2(e) and rows at their optimum every row sum grows by e^{(1 - lambda) t}, and
// the targets of the columns fall by e^{-kappa t}: where the totals agree the dual is largest.
CURVKERN_HD void balance(Block& block, const Newton& s, std::int64_t chunk) {
    const State state = s.p.state[0];
    const Few<2> total = add_chunks<2>(block, s, 0);
    const double stiffness = (1 - state.damping_a) + state.inverse_rho_b;
    const double by = log(total[1] / total[0]) / stiffness;
    const double growth = exp((1 - state.damping_a) * by);
    if (!is_finite(by) || !is_finite(growth) || !(growth > 0)) return;
    in_chunk(block, chunk, s.row_chunk, s.p.n,
             [&](int, std::int64_t i) { s.p.phi[i] -= state.damping_a * by * log2_e; });
    in_chunk(block, chunk, s.column_chunk, s.p.m, [&](int, std::int64_t j) {
        s.p.psi[j] += by * log2_e;
        s.column_mass[j] *= growth;
    });
}

// A potential's part of the dual over eps, of mass w and y = potential / eps.
CURVKERN_HD double dual_part(double w, double y, double kappa) {
    return kappa == 0 ? w * y : -w * expm1(-kappa * y) / kappa;
}

// Row sums and the targets of the columns; sums: value, its size, the error of the columns.
CURVKERN_HD void take_stock(Block& block, const Newton& s, std::int64_t chunk) {
    const State state = s.p.state[0];
    const double kappa_a = state.inverse_rho_a, kappa_b = state.inverse_rho_b;
    Block::Own<Few<3>> sums(block);
    in_chunk(block, chunk, s.row_chunk, s.p.n, [&](int thread, std::int64_t i) {
        const double a = s.p.weight_a[i], y = s.p.phi[i] * ln_2;
        s.row_mass[i] = 0;
        if (!(a > 0)) return;
        s.row_mass[i] = a * exp(-kappa_a * y);
        sums(thread)[0] += dual_part(a, y, kappa_a) - (kappa_a == 0 ? 0 : s.row_mass[i]);
        sums(thread)[1] += a * abs(y + log(a));
    });
    in_chunk(block, chunk, s.column_chunk, s.p.m, [&](int thread, std::int64_t j) {
        const double b = mass_ratio(state) * s.p.weight_b[j], y = s.p.psi[j] * ln_2;
        s.target[j] = 0;
        if (!(b > 0)) return;
        s.target[j] = b * exp(-kappa_b * y);
        sums(thread)[0] += dual_part(b, y, kappa_b);
        sums(thread)[1] += b * abs(y + log(s.p.weight_b[j]));
        sums(thread)[2] += abs(s.column_mass[j] - s.target[j]);
    });
    put_chunk(block, s, chunk, sums, 0);
}

// Sinkhorn's column step from column_mass; what no row reaches stays.
CURVKERN_HD void sweep_psi(Block& block, const Newton& s, std::int64_t chunk) {
    const State state = s.p.state[0];
    in_chunk(block, chunk, s.column_chunk, s.p.m, [&](int, std::int64_t j) {
        const double b = mass_ratio(state) * s.p.weight_b[j];
        if (!(b > 0) || !(s.column_mass[j] > sum_low)) return;
        s.p.psi[j] = state.damping_b * (s.p.psi[j] - log2_positive(s.column_mass[j] / b));
    });
}

// Potentials and column sums to come back to.
CURVKERN_HD void save(Block& block, const Newton& s, std::int64_t chunk) {
    in_chunk(block, chunk, s.row_chunk, s.p.n,
             [&](int, std::int64_t i) { s.start_phi[i] = s.p.phi[i]; });
    in_chunk(block, chunk, s.column_chunk, s.p.m, [&](int, std::int64_t j) {
        s.start_psi[j] = s.p.psi[j];
        s.start_column[j] = s.column_mass[j];
    });
}

CURVKERN_HD void move_from_start(Block& block, const Newton& s, std::int64_t chunk,
                                 double step) {
    const double length = step * log2_e;
    in_chunk(block, chunk, s.row_chunk, s.p.n, [&](int, std::int64_t i) {
        s.p.phi[i] = s.start_phi[i] + length * s.row_move[i];
    });
    in_chunk(block, chunk, s.column_chunk, s.p.m, [&](int, std::int64_t j) {
        s.p.psi[j] = s.start_psi[j] + length * s.move[j];
        s.column_mass[j] = s.start_column[j];
    });
}

// P_ij over mass_a, where it may be kept; else 0.
template <class Costs>
CURVKERN_HD double candidate(const Plan<Costs>& plan, const Newton& s, std::int64_t i,
                             std::int64_t j) {
    if (!(s.target[j] > 0)) return 0;
    Entry at[1];
    plan.at(i, i, j, at);
    return at[0].value * s.p.weight_a[i];
}

// How many entries of row i are above threshold * min(r_i, target_j), and above its multiples.
template <class Costs>
CURVKERN_HD void count_row(Block& block, const Newton& s, std::int64_t i, double threshold) {
    const Plan<Costs> plan(s.p, 0);
    const double limit = s.row_mass[i];
    Block::Own<Few<threshold_levels>> above(block);
    block.alone([&](int thread) {
        if (!(limit > 0)) return;
        for (std::int64_t j = thread; j < s.p.m; j += block.threads()) {
            const double value = candidate(plan, s, i, j);
            const double least = s.target[j] < limit ? s.target[j] : limit;
            double bound = threshold * least;
            if (!(value > bound)) continue;
            CURVKERN_IN_REGISTERS
            for (int k = 0; k < threshold_levels; ++k) {
                above(thread)[k] += value > bound ? 1 : 0;
                bound *= threshold_factor;
            }
        }
    });
    const Few<threshold_levels> count = block.sum(above);
    block.alone([&](int thread) {
        CURVKERN_IN_REGISTERS
        for (int k = 0; k < threshold_levels; ++k) {
            if (thread == k) s.counts[i * threshold_levels + k] = count[k];
        }
    });
}

// Where each of `size` lines begins, count(line) entries one after the other.
template <class Count>
CURVKERN_HD void place_lines(Block& block, const Lines& lines, std::int64_t size, Count count) {
    const std::int64_t each = (size + block.threads() - 1) / block.threads();
    Block::Own<double> before(block);
    block.alone([&](int thread) {
        const std::int64_t end = smaller((thread + 1) * each, size);
        for (std::int64_t line = thread * each; line < end; ++line) {
            before(thread) += count(line);
        }
    });
    const double total = block.scan(before);
    block.each([&](int thread) {
        const std::int64_t end = smaller((thread + 1) * each, size);
        auto at = static_cast<std::int64_t>(before(thread));
        for (std::int64_t line = thread * each; line < end; ++line) {
            lines.begin[line] = at;
            at += static_cast<std::int64_t>(count(line));
        }
        if (thread == 0) lines.begin[size] = static_cast<std::int64_t>(total);
    });
}

// One block: the lowest threshold that there is room for, and where the rows begin.
CURVKERN_HD void place_rows(Block& block, const Newton& s) {
    Block::Own<Few<threshold_levels>> part(block);
    block.alone([&](int thread) {
        for (std::int64_t i = thread; i < s.p.n; i += block.threads()) {
            CURVKERN_IN_REGISTERS
            for (int k = 0; k < threshold_levels; ++k) {
                part(thread)[k] += s.counts[i * threshold_levels + k];
            }
        }
    });
    const Few<threshold_levels> total = block.sum(part);
    int level = 0;
    CURVKERN_IN_REGISTERS
    for (int k = 0; k < threshold_levels; ++k) {
        if (total[k] > static_cast<double>(s.capacity)) level = k + 1;
    }
    block.alone([&](int thread) {
        if (thread == 0) s.totals[7] = level;
    });
    place_lines(block, s.rows, s.p.n, [&](std::int64_t i) {
        return level < threshold_levels ? s.counts[i * threshold_levels + level] : 0;
    });
}

// Row i's entries in the order of the columns.
template <class Costs>
CURVKERN_HD void fill_row(Block& block, const Newton& s, std::int64_t i, double threshold) {
    const Plan<Costs> plan(s.p, 0);
    const double limit = s.row_mass[i];
    for (int k = 0; k < static_cast<int>(s.totals[7]); ++k) threshold *= threshold_factor;
    std::int64_t at = s.rows.begin[i];
    const std::int64_t end = s.rows.begin[i + 1];
    for (std::int64_t first = 0; first < s.p.m && at < end; first += block.threads()) {
        Block::Own<double> value(block), before(block);
        block.alone([&](int thread) {
            const std::int64_t j = first + thread;
            if (j >= s.p.m) return;
            value(thread) = candidate(plan, s, i, j);
            const double least = s.target[j] < limit ? s.target[j] : limit;
            if (value(thread) > threshold * least) {
                before(thread) = 1;
            } else {
                value(thread) = 0;
            }
        });
        const double found = block.scan(before);
        block.alone([&](int thread) {
            const std::int64_t k = at + static_cast<std::int64_t>(before(thread));
            if (!(value(thread) > 0) || k >= end) return;
            s.rows.other[k] = static_cast<std::int32_t>(first + thread);
            s.rows.value[k] = value(thread);
        });
        at += static_cast<std::int64_t>(found);
    }
    // Where the compiler rounded once more than in count_row, an entry may be missing.
    block.alone([&](int thread) {
        for (std::int64_t k = at + thread; k < end; k += block.threads()) {
            s.rows.other[k] = 0;
            s.rows.value[k] = 0;
        }
    });
}

// The entries of one part of the rows, row after row: a row has an entry a column, so that its
// threads meet nowhere. use(row, entry, the place's number in `placed`)
template <class Use>
CURVKERN_HD void for_part(Block& block, const Newton& s, std::int64_t part, Use use) {
    const std::int64_t end = smaller((part + 1) * s.p.rows_of_part, s.p.n);
    for (std::int64_t i = part * s.p.rows_of_part; i < end; ++i) {
        block.each([&](int thread) {
            for (std::int64_t k = s.rows.begin[i] + thread; k < s.rows.begin[i + 1];
                 k += block.threads()) {
                if (s.rows.value[k] > 0) use(i, k, part * s.p.m + s.rows.other[k]);
            }
        });
    }
}

CURVKERN_HD void count_columns(Block& block, const Newton& s, std::int64_t part) {
    block.each([&](int thread) {
        for (std::int64_t j = thread; j < s.p.m; j += block.threads()) {
            s.placed[part * s.p.m + j] = 0;
        }
    });
    for_part(block, s, part,
             [&](std::int64_t, std::int64_t, std::int64_t place) { ++s.placed[place]; });
}

// From counts by parts to what is before each part.
CURVKERN_HD void add_counts(Block& block, const Newton& s, std::int64_t chunk) {
    in_chunk(block, chunk, s.column_chunk, s.p.m, [&](int, std::int64_t j) {
        std::int64_t before = 0;
        for (std::int64_t part = 0; part < s.p.parts; ++part) {
            std::int64_t& place = s.placed[part * s.p.m + j];
            const std::int64_t count = place;
            place = before;
            before += count;
        }
        s.column_count[j] = static_cast<double>(before);
    });
}

CURVKERN_HD void fill_columns(Block& block, const Newton& s, std::int64_t part) {
    for_part(block, s, part, [&](std::int64_t i, std::int64_t k, std::int64_t place) {
        const std::int64_t to = s.columns.begin[s.rows.other[k]] + s.placed[place]++;
        s.columns.other[to] = static_cast<std::int32_t>(i);
        s.columns.value[to] = s.rows.value[k];
    });
}

}  // namespace isa
}  // namespace curvkern::sinkhorn::device
