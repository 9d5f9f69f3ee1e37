#include "sinkhorn/problem.hpp"

#include <algorithm>
#include <cmath>

#include "core/span.hpp"

namespace curvkern::sinkhorn {
namespace {

constexpr std::int64_t least_work = 65536;  // entries worth a chunk of their own, some 40 us
constexpr std::int64_t most_work = std::int64_t{1} << 25;  // between two polls for signals
constexpr std::int64_t most_slots = 32;
// Entries that are stored, of a whole batch: with costs 1 GiB, as much again as the costs take;
// between points 32 MiB, as those should take memory for the points alone.
constexpr double most_stored = 0x1p27, most_stored_points = 0x1p22;

// Hands out consecutive parts of the workspace; with a null base it only counts.
class Arena {
  public:
    explicit Arena(double* base) : base_(base) {}
    double* doubles(std::int64_t count) {
        double* part = base_ == nullptr ? nullptr : base_ + used_;
        used_ += count;
        return part;
    }
    float* floats(std::int64_t count) {
        return reinterpret_cast<float*>(doubles((count + 1) / 2));
    }
    std::int64_t used() const { return used_; }

  private:
    double* base_;
    std::int64_t used_ = 0;
};

struct Parts {
    double *weight[2], *potential[2], *next[2], *residual[2], *base[2], *factor[2];
    float *factor32[2], *high[2], *low[2];
    double *x = nullptr, *y = nullptr;
    float *x32 = nullptr, *y32 = nullptr;
    double *entries, *sums;
};

Parts lay_out(const Batch& batch, Arena& arena) {
    Parts parts{};
    const std::int64_t sizes[] = {padded(batch.n), padded(batch.m)};
    for (int side = 0; side < 2; ++side) {
        parts.weight[side] = arena.doubles(sizes[side]);
        parts.potential[side] = arena.doubles(sizes[side]);
        parts.next[side] = arena.doubles(sizes[side]);
        parts.residual[side] = arena.doubles(sizes[side]);
        parts.base[side] = arena.doubles(sizes[side]);
        parts.factor[side] = arena.doubles(sizes[side]);
        if (!batch.has_float32()) continue;
        parts.factor32[side] = arena.floats(sizes[side]);
        parts.high[side] = arena.floats(sizes[side]);
        parts.low[side] = arena.floats(sizes[side]);
    }
    if (batch.has_points()) {
        parts.x = arena.doubles(checked_multiply(sizes[0], batch.dims));
        parts.y = arena.doubles(checked_multiply(sizes[1], batch.dims));
        if (batch.narrow) {
            parts.x32 = arena.floats(checked_multiply(sizes[0], batch.dims));
            parts.y32 = arena.floats(checked_multiply(sizes[1], batch.dims));
        }
    }
    const Shares shares(batch.n, batch.m);
    parts.entries = arena.doubles(checked_multiply(shares.slots * rows_at_once, sizes[1]));
    parts.sums = arena.doubles(checked_multiply(shares.slots * 2, sizes[1]));
    return parts;
}

template <class T>
void copy_points(const Batch& batch, std::int64_t index, const Parts& parts) {
    const int dims = batch.dims;
    const std::int64_t stride = padded(batch.m);
    const T* x = static_cast<const T*>(batch.x) + index * batch.n * dims;
    const T* y = static_cast<const T*>(batch.y) + index * batch.m * dims;
    std::copy(x, x + batch.n * dims, parts.x);
    std::fill(parts.y, parts.y + stride * dims, 0.0);
    for (std::int64_t j = 0; j < batch.m; ++j) {
        for (int k = 0; k < dims; ++k) parts.y[k * stride + j] = y[j * dims + k];
    }
    if (parts.x32 == nullptr) return;
    std::copy(x, x + batch.n * dims, parts.x32);
    std::copy(parts.y, parts.y + stride * dims, parts.y32);
}

Side make_side(const double* weight, std::int64_t size, const Parts& parts, int which) {
    Side side{};
    const std::int64_t room = padded(size);
    for (double* array : {parts.potential[which], parts.next[which], parts.residual[which],
                          parts.base[which], parts.factor[which]}) {
        std::fill(array, array + room, 0.0);
    }
    side.size = size;
    side.mass = 0;
    for (std::int64_t i = 0; i < size; ++i) side.mass += weight[i];
    side.log2_mass = std::log2(side.mass);
    double* normalised = parts.weight[which];
    std::fill(normalised, normalised + room, 0.0);
    for (std::int64_t i = 0; i < size; ++i) normalised[i] = weight[i] / side.mass;
    if (parts.high[which] != nullptr) {
        std::fill(parts.factor32[which], parts.factor32[which] + room, 0.0f);
        std::fill(parts.high[which], parts.high[which] + room, 0.0f);
        std::fill(parts.low[which], parts.low[which] + room, 0.0f);
    }
    side.weight = normalised;
    side.potential = parts.potential[which];
    side.next = parts.next[which];
    side.residual = parts.residual[which];
    side.base = parts.base[which];
    if (which == 1) {
        side.factor = parts.factor[which];
        side.factor32 = parts.factor32[which];
    }
    side.high = parts.high[which];
    side.low = parts.low[which];
    side.damping = 1;
    return side;
}

}  // namespace

Shares::Shares(std::int64_t n, std::int64_t m) {
    const double work = static_cast<double>(n) * static_cast<double>(m);
    const auto wanted = static_cast<std::int64_t>(
        std::clamp(work / least_work, 1.0, static_cast<double>(most_slots)));
    rows = (n + wanted - 1) / wanted;
    rows = std::min(rows, std::max<std::int64_t>(most_work / std::max<std::int64_t>(m, 1), 1));
    rows = (rows + rows_at_once - 1) / rows_at_once * rows_at_once;
    rows = std::max<std::int64_t>(rows, rows_at_once);
    chunks = (n + rows - 1) / rows;
    slots = static_cast<int>(std::min(most_slots, std::max<std::int64_t>(chunks, 1)));
}

std::int64_t workspace_size(const Batch& batch) {
    Arena arena(nullptr);
    lay_out(batch, arena);
    return checked_multiply(arena.used(), batch.batch);
}

std::int64_t store_size(const Batch& batch) {
    const double entries = static_cast<double>(padded(batch.n)) *
                           static_cast<double>(padded(batch.m)) *
                           static_cast<double>(batch.batch);
    const double most = batch.has_points() ? most_stored_points : most_stored;
    return entries <= most ? padded(batch.n) * padded(batch.m) : 0;
}

Problem make_problem(const Batch& batch, std::int64_t index, double* workspace) {
    Arena counter(nullptr);
    lay_out(batch, counter);
    Arena arena(workspace + index * counter.used());
    const Parts parts = lay_out(batch, arena);

    Problem p{};
    p.a = make_side(batch.a + index * batch.n, batch.n, parts, 0);
    p.b = make_side(batch.b + index * batch.m, batch.m, parts, 1);
    p.dims = batch.dims;
    p.entries = parts.entries;
    p.sums = parts.sums;
    p.slots = Shares(batch.n, batch.m).slots;
    if (batch.has_points()) {
        if (batch.narrow) {
            copy_points<float>(batch, index, parts);
        } else {
            copy_points<double>(batch, index, parts);
        }
        p.x = parts.x;
        p.y_transposed = parts.y;
        p.x32 = parts.x32;
        p.y_transposed32 = parts.y32;
    } else {
        const std::int64_t bytes = batch.kind == Cost::dense64 ? 8 : 4;
        p.cost = static_cast<const char*>(batch.cost) + index * batch.n * batch.m * bytes;
    }
    set_eps(p, batch, index, batch.eps[index]);
    return p;
}

void set_eps(Problem& problem, const Batch& batch, std::int64_t index, double eps) {
    problem.slope = batch.scale / eps * log2_e;
    for (Side* side : {&problem.a, &problem.b}) {
        const double rho = batch.rho[index * 2 + (side == &problem.b)];
        // A penalty so stiff that rho / (rho + eps) rounds to 1 is a hard marginal.
        const double inverse = eps / rho;
        const bool is_hard = 1 + inverse == 1;
        side->inverse_rho = is_hard ? 0 : inverse;
        side->damping = is_hard ? 1 : 1 / (1 + inverse);
    }
}

}  // namespace curvkern::sinkhorn
