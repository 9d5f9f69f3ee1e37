// Sparse Newton steps on the device, for one problem: what the kernels are given.
//
// The numbers are those of the CPU (newton_model.hpp) in the units of device_problem.hpp:
// masses are over mass_a, potentials in powers of two, the model's x in powers of e. Rows are
// at their optimum given the columns after a sweep, so that r_i = a_i 2^{-(eps / rho_a) phi_i}.
//
// The kept entries W are counted, placed by a prefix sum and written in the order of the
// columns, and sorted into columns from there, part of the rows after part. Every sum has one
// order, so results are the same from run to run. Where more than `capacity` entries are above
// the threshold, it is raised by factors of four.
//
// Prediction for an H100 (3.35 TB/s, L2 5.5 TB/s, 64 float64 FMA a cycle and SM at 1.7 GHz; 3
// us a launch, 10 us a number read by the host), float64 costs, n = m = 20 000, 10 entries kept
// a point:
//     pass        the sweep of device_sweep.hpp: 1.75 ms
//     gather      costs read twice, by blocks of one row: with psi, b and the targets 32 bytes
//                 an entry through L2, 2.3 ms each (up to some 6000 columns, which stay in L1,
//                 8 bytes of memory: 0.95 ms at this size), and 19 float64 instructions,
//                 0.53 ms; into columns 2 x 76 rows one after the other at 0.7 us, and two
//                 prefix sums by one block: 0.2 ms
//     model       12 bytes an entry and 8 (rows) or 16 (columns) of vectors that it points to:
//                 10 MB through L2, 2 us; four launches and a read: 22 us
//     iteration of conjugate gradients: as many bytes; three launches, 9 us, and a read in 16
// An iteration of Newton's method with two linear solves of 50 iterations takes
// 1.75 + 4.8 + 0.1 + 1.0 = 7.7 ms, nine tenths of it with the costs. For n = m = 1000 launches
// and reads are all: 0.1 ms for pass and gather, 1.1 ms for the linear solves.
#pragma once

#include "sinkhorn/device_steps.hpp"

namespace curvkern::sinkhorn::device {
CURVKERN_PER_ISA {

inline constexpr int lanes = 8;  // threads for a line of the sparse plan
inline constexpr int threshold_levels = 12;
inline constexpr double threshold_factor = 4;
inline constexpr std::int64_t least_chunk = 64, most_chunks = 512;
inline constexpr std::int64_t entries_per_point = 100;  // kept at most, as on the CPU

// Sums over parts of the rows or columns, each (most_chunks,).
enum Partial {
    sum_value_rows,
    sum_value_columns,
    sum_norm,
    sum_slope,
    sum_curvature,
    sum_energy,                     // two of them in turn, then
    sum_residual = sum_energy + 2,  // two as well
    partial_count = sum_residual + 2
};

// Entry k of line i, a row or a column: begin[i] <= k < begin[i + 1].
struct Lines {
    std::int64_t* begin;
    std::int32_t* other;  // the column of an entry of a row, the row of one of a column
    double* value;
};

struct Newton {
    Batch p;                                       // of one problem
    std::int64_t capacity;                         // entries
    std::int64_t chunks, row_chunk, column_chunk;  // blocks, and what each takes
    double *f, *g;                                 // (n,), (m,) kept potentials
    Lines rows, columns;                           // the kept entries, twice
    double* counts;        // (n, threshold_levels) entries above each threshold
    double* column_count;  // (m,)
    std::int64_t* placed;  // (parts, m), in the place of p.partial
    double *row_mass, *rest_row, *factor, *u, *weight, *image_row;   // (n,); factor: t
    double *column_mass, *target, *rest_column, *growth;             // (m,)
    double *gradient, *diagonal, *inverse;                           // (m,)
    double *move, *next;                                             // (m,) x
    double *direction, *residual, *preconditioned, *search, *image;  // (m,) of CG
    double *row_move, *start_phi, *start_psi, *start_column;
    double* partial;  // (partial_count, most_chunks)
    double* totals;   // (8,)
};

inline void share_lines(Newton& s) {
    const std::int64_t longer = s.p.n > s.p.m ? s.p.n : s.p.m;
    const std::int64_t wanted = ceil_divide(longer, least_chunk);
    s.chunks = wanted < most_chunks ? wanted : most_chunks;
    s.row_chunk = ceil_divide(s.p.n, s.chunks);
    s.column_chunk = ceil_divide(s.p.m, s.chunks);
}

// Places the arrays in `memory`, those of s.p first; with null it only counts. Returns the
// float64 numbers used.
inline std::int64_t lay_out(Newton& s, double* memory) {
    const std::int64_t n = s.p.n, m = s.p.m;
    share_lines(s);
    std::int64_t used = lay_out(s.p, memory);
    s.capacity = checked_multiply(n + m, entries_per_point);
    if (checked_multiply(n, m) < s.capacity) s.capacity = n * m;
    const auto take = [&](std::int64_t size) {
        double* part = memory == nullptr ? nullptr : memory + used;
        used += size;
        return part;
    };
    for (Lines* lines : {&s.rows, &s.columns}) {
        lines->begin = reinterpret_cast<std::int64_t*>(take((lines == &s.rows ? n : m) + 1));
        lines->value = take(s.capacity);
        lines->other = reinterpret_cast<std::int32_t*>(take(ceil_divide(s.capacity, 2)));
    }
    s.counts = take(checked_multiply(n, threshold_levels));
    s.placed = reinterpret_cast<std::int64_t*>(s.p.partial);
    for (double** array : {&s.row_mass, &s.rest_row, &s.factor, &s.u, &s.weight, &s.image_row,
                           &s.row_move, &s.start_phi}) {
        *array = take(n);
    }
    for (double** array :
         {&s.column_count, &s.column_mass, &s.target, &s.rest_column, &s.growth, &s.gradient,
          &s.diagonal, &s.inverse, &s.move, &s.next, &s.direction, &s.residual,
          &s.preconditioned, &s.search, &s.image, &s.start_psi, &s.start_column}) {
        *array = take(m);
    }
    s.partial = take(partial_count * most_chunks);
    s.totals = take(8);
    return used;
}

// The sum over all chunks of N kinds of partial sums, the first `first`, the next `step` on.
template <int N>
CURVKERN_HD Few<N> add_chunks(Block& block, const Newton& s, int first, int step = 1) {
    Block::Own<Few<N>> part(block);
    block.alone([&](int thread) {
        for (std::int64_t c = thread; c < s.chunks; c += block.threads()) {
            CURVKERN_IN_REGISTERS
            for (int k = 0; k < N; ++k) {
                part(thread)[k] += s.partial[(first + k * step) * most_chunks + c];
            }
        }
    });
    return block.sum(part);
}

// Of this chunk, what the threads have.
template <int N>
CURVKERN_HD void put_chunk(Block& block, const Newton& s, std::int64_t chunk,
                           Block::Own<Few<N>>& part, int first, int step = 1) {
    const Few<N> total = block.sum(part);
    block.alone([&](int thread) {
        CURVKERN_IN_REGISTERS
        for (int k = 0; k < N; ++k) {
            if (thread == 0) s.partial[(first + k * step) * most_chunks + chunk] = total[k];
        }
    });
}

// body(thread, index) for what is in a chunk of `each` out of `size`.
template <class Body>
CURVKERN_HD void in_chunk(Block& block, std::int64_t chunk, std::int64_t each,
                          std::int64_t size, Body body) {
    const std::int64_t end = smaller((chunk + 1) * each, size);
    block.alone([&](int thread) {
        for (std::int64_t i = chunk * each + thread; i < end; i += block.threads()) {
            body(thread, i);
        }
    });
}

// The lines in a chunk, each by a group of neighbours: term(k) of its entries, summed, goes to
// use(thread, line, sum) in the first of the group.
template <int N, class Term, class Use>
CURVKERN_HD void for_lines(Block& block, const Lines& lines, std::int64_t chunk,
                           std::int64_t each, std::int64_t size, Term term, Use use) {
    const std::int64_t end = smaller((chunk + 1) * each, size);
    const int groups = block.threads() / lanes;
    for (std::int64_t first = chunk * each; first < end; first += groups) {
        Block::Own<Few<N>> part(block);
        block.alone([&](int thread) {
            const std::int64_t line = first + thread / lanes;
            if (line >= end) return;
            Few<N> sum;
            for (std::int64_t k = lines.begin[line] + thread % lanes; k < lines.begin[line + 1];
                 k += lanes) {
                const Few<N> more = term(k);
                CURVKERN_IN_REGISTERS
                for (int q = 0; q < N; ++q) sum[q] += more[q];
            }
            part(thread) = sum;
        });
        block.template add_lanes<lanes>(part);
        block.alone([&](int thread) {
            const std::int64_t line = first + thread / lanes;
            if (thread % lanes == 0 && line < end) use(thread, line, part(thread));
        });
    }
}

}  // namespace isa
}  // namespace curvkern::sinkhorn::device
