#include "sinkhorn/plan_pass.hpp"

#include <algorithm>
#include <vector>

#include "core/span.hpp"

namespace curvkern::sinkhorn {
namespace {

constexpr std::int64_t columns_at_once = 8;

// Rows of all problems, in chunks of one problem each: body(problem number, first row, end,
// slot). The chunks of a wave have different slots, and waves come one after the other.
template <class Body>
bool for_rows(const Batch& batch, const Shares& shares, InterruptCheck interrupted, Body body) {
    for (std::int64_t wave = 0; wave < shares.chunks; wave += shares.slots) {
        const std::int64_t chunks = std::min<std::int64_t>(shares.slots, shares.chunks - wave);
        const bool finished = parallel_chunks(
            batch.batch * chunks, 1, interrupted, [&](std::int64_t begin, std::int64_t end) {
                for (std::int64_t c = begin; c < end; ++c) {
                    const std::int64_t slot = c % chunks, first = (wave + slot) * shares.rows;
                    body(c / chunks, first, std::min(first + shares.rows, batch.n),
                         static_cast<int>(slot), wave == 0);
                }
            });
        if (!finished) return false;
    }
    return true;
}

Problem with_potentials(const Batch& batch, std::int64_t index, const double* f,
                        const double* g, double* workspace) {
    Problem p = make_problem(batch, index, workspace);
    const double unit = log2_e / batch.eps[index];
    for (std::int64_t i = 0; i < batch.n; ++i) {
        p.a.potential[i] = f[index * batch.n + i] * unit;
    }
    for (std::int64_t j = 0; j < batch.m; ++j) {
        p.b.potential[j] = g[index * batch.m + j] * unit;
    }
    p.a.base = p.a.potential;
    return p;
}

// (size, count) columns [first, first + some) to (some, padded(size)) and back.
void transpose_in(const double* from, std::int64_t size, std::int64_t count, std::int64_t first,
                  std::int64_t some, double* to) {
    const std::int64_t stride = padded(size);
    std::fill(to, to + some * stride, 0.0);
    for (std::int64_t i = 0; i < size; ++i) {
        for (std::int64_t q = 0; q < some; ++q)
            to[q * stride + i] = from[i * count + first + q];
    }
}

}  // namespace

std::int64_t plan_workspace_size(const Batch& batch, std::int64_t count) {
    const std::int64_t some = std::min(count, columns_at_once);
    const std::int64_t n = padded(batch.n), m = padded(batch.m);
    const Shares shares(batch.n, batch.m);
    const std::int64_t each = checked_multiply(some, 2 * n + m) +
                              checked_multiply(shares.slots * some, m) + 2 * n + m;
    return workspace_size(batch) + checked_multiply(batch.batch, each);
}

bool plan_products(const Batch& batch, const PlanArguments& arguments,
                   InterruptCheck interrupted, double* workspace) {
    const Kernels& kernels = CURVKERN_SELECT_ISA(sinkhorn::, ::kernels());
    const PlanRows rows = kernels.plan[static_cast<int>(batch.kind)];
    const Shares shares(batch.n, batch.m);
    const std::int64_t n = padded(batch.n), m = padded(batch.m), count = arguments.count;
    double* next = workspace + workspace_size(batch);
    const auto take = [&next](std::int64_t size) {
        double* part = next;
        next += size;
        return part;
    };
    std::vector<Problem> problems;
    std::vector<Products> products(batch.batch);
    for (std::int64_t index = 0; index < batch.batch; ++index) {
        problems.push_back(with_potentials(batch, index, arguments.f, arguments.g, workspace));
    }
    for (std::int64_t first = 0; first < count; first += columns_at_once) {
        const std::int64_t some = std::min(columns_at_once, count - first);
        next = workspace + workspace_size(batch);
        for (std::int64_t index = 0; index < batch.batch; ++index) {
            Products& out = products[index];
            out = {};
            out.count = static_cast<int>(some);
            out.pv = take(some * n);
            out.ptu = take(shares.slots * some * m);
            double *v = take(some * m), *u = take(some * n), *totals = take(2 * n);
            if (arguments.v != nullptr) {
                transpose_in(arguments.v + index * batch.m * count, batch.m, count, first, some,
                             v);
                out.v = v;
            }
            if (arguments.u != nullptr) {
                transpose_in(arguments.u + index * batch.n * count, batch.n, count, first, some,
                             u);
                out.u = u;
            }
            if (arguments.totals != nullptr && first == 0) out.totals = totals;
        }
        const bool finished =
            for_rows(batch, shares, interrupted,
                     [&](std::int64_t index, std::int64_t begin, std::int64_t end, int slot,
                         bool clear) {
                         rows(problems[index], products[index], begin, end, slot, clear);
                     });
        if (!finished) return false;
        for (std::int64_t index = 0; index < batch.batch; ++index) {
            const Products& out = products[index];
            for (std::int64_t q = 0; q < some; ++q) {
                for (std::int64_t i = 0; out.v != nullptr && i < batch.n; ++i) {
                    arguments.pv[(index * batch.n + i) * count + first + q] = out.pv[q * n + i];
                }
                for (std::int64_t j = 0; out.u != nullptr && j < batch.m; ++j) {
                    double sum = 0;
                    for (int slot = 0; slot < shares.slots; ++slot) {
                        sum += out.ptu[(slot * some + q) * m + j];
                    }
                    arguments.ptu[(index * batch.m + j) * count + first + q] = sum;
                }
            }
            if (out.totals == nullptr) continue;
            double linear = 0, entropy = 0;
            for (std::int64_t i = 0; i < batch.n; ++i) {
                linear += out.totals[i];
                entropy += out.totals[batch.n + i];
            }
            arguments.totals[2 * index] = linear * batch.scale;
            arguments.totals[2 * index + 1] = entropy * ln_2;
        }
    }
    return true;
}

bool points_gradient(const Batch& batch, const double* f, const double* g, const double* u,
                     const double* w, double* out, InterruptCheck interrupted,
                     double* workspace) {
    const Kernels& kernels = CURVKERN_SELECT_ISA(sinkhorn::, ::kernels());
    const GradientRows rows = kernels.gradient[static_cast<int>(batch.kind)];
    const Shares shares(batch.n, batch.m);
    double* weights = workspace + workspace_size(batch);
    const std::int64_t m = padded(batch.m), size = batch.n * batch.dims;
    std::vector<Problem> problems;
    for (std::int64_t index = 0; index < batch.batch; ++index) {
        problems.push_back(with_potentials(batch, index, f, g, workspace));
        transpose_in(w + index * batch.m, batch.m, 1, 0, 1, weights + index * m);
    }
    const bool finished =
        for_rows(batch, shares, interrupted,
                 [&](std::int64_t index, std::int64_t begin, std::int64_t end, int slot, bool) {
                     rows(problems[index], u + index * batch.n, weights + index * m,
                          out + index * size, begin, end, slot);
                 });
    for (std::int64_t i = 0; finished && i < batch.batch * size; ++i) out[i] *= batch.scale;
    return finished;
}

}  // namespace curvkern::sinkhorn
