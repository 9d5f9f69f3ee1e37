// The CPU loops of the projection onto the simplex.
//
// Compiled once per instruction set. The output row is the scratch of the search.
#include "sinkhorn/sparsemax_kernels.hpp"
#include "sinkhorn/sparsemax_threshold.hpp"

namespace curvkern::sparsemax {
namespace {

// Entries of a block under a threshold; ties are a matter of order, and not here.
CURVKERN_HD Block entries(Block z, const Threshold& h) {
    const Block p = ((z - c<Block>(h.top)) - c<Block>(h.t)) - c<Block>(h.low);
    return select((z > c<Block>(h.cut)) & (p > c<Block>(0)), p, c<Block>(0));
}

template <class T>
T tied_entry(const Threshold& h) {
    const double p = ((h.cut - h.top) - h.t) - h.low;
    return static_cast<T>(p > 0 ? p : 0);
}

// A row at +inf: equal shares for its infinite entries.
template <class T>
double share_infinite(const T* z, double mass, std::int64_t k, T* p, std::int64_t n) {
    std::int64_t count = 0;
    for (std::int64_t i = 0; i < n; ++i) count += z[i] == static_cast<T>(infinite);
    if (count > k) count = k;
    std::int64_t left = count;
    for (std::int64_t i = 0; i < n; ++i) {
        const bool takes = z[i] == static_cast<T>(infinite) && left > 0;
        p[i] = takes ? static_cast<T>(mass / static_cast<double>(count)) : T{0};
        left -= takes;
    }
    return static_cast<double>(count);
}

template <class T>
double write_row(const T* z, const Threshold& h, T* p, std::int64_t n) {
    std::int64_t count = 0;
    const T floor = floor_of<T>(h.top, h.t + h.low);
    const auto put = [&](const T* source, T* target) {
        if (!reaches(source, floor)) return store(target, c<Block>(0));
        const Block y = entries(load(source), h);
        store(target, y);
        count += __builtin_popcount(lanes(y > c<Block>(0)));
    };
    const Row<T> row(z, n);
    for (std::int64_t i = 0; i < row.whole; i += step) put(z + i, p + i);
    if (row.has_rest) {
        T last[step];
        put(row.rest, last);
        __builtin_memcpy(p + row.whole, last,
                         sizeof(T) * static_cast<std::size_t>(n - row.whole));
    }

    std::int64_t ties = h.ties;
    for (std::int64_t i = 0; ties > 0; ++i) {
        if (static_cast<double>(z[i]) != h.cut) continue;
        p[i] = tied_entry<T>(h);
        --ties;
    }
    return static_cast<double>(count + h.ties);
}

template <class T>
void project(const T* z, const double* mass, std::int64_t k, T* p, double* tau, double* support,
             std::int64_t rows, std::int64_t n) {
    for (std::int64_t r = 0; r < rows; ++r, z += n, p += n) {
        const Row<T> row(z, n);
        const Top top = find_top(row);
        tau[r] = top.value;
        support[r] = 0;
        switch (kind_of(top.value, top.has_nan, mass[r])) {
            case Kind::ordinary: {
                const Threshold h = find_threshold(row, top.value, mass[r], k, p);
                tau[r] = h.tau();
                support[r] = write_row(z, h, p, n);
                break;
            }
            case Kind::infinite:
                support[r] = share_infinite(z, mass[r], k, p, n);
                break;
            case Kind::empty:
                for (std::int64_t i = 0; i < n; ++i) p[i] = 0;
                break;
            case Kind::undefined:
                tau[r] = __builtin_nan("");
                for (std::int64_t i = 0; i < n; ++i) p[i] = static_cast<T>(tau[r]);
        }
    }
}

template <class T>
void jacobian(const T* p, const T* grad, T* out, std::int64_t rows, std::int64_t n) {
    for (std::int64_t r = 0; r < rows; ++r, p += n, grad += n, out += n) {
        Block sum{};
        std::int64_t count = 0;
        const Row<T> row(p, n), slope(grad, n);
        const auto add = [&](const T* at, const T* from) {
            const auto mask = load(at) > c<Block>(0);
            sum = sum + select(mask, load(from), c<Block>(0));
            count += __builtin_popcount(lanes(mask));
        };
        for (std::int64_t i = 0; i < row.whole; i += step) add(p + i, grad + i);
        if (row.has_rest) add(row.rest, slope.rest);
        const Block mean = c<Block>(count > 0 ? total(sum) / static_cast<double>(count) : 0);
        const auto put = [&](const T* at, const T* from, T* target) {
            const Block q = load(at);
            const Block y = select(q > c<Block>(0), load(from) - mean, c<Block>(0));
            store(target, select(q >= c<Block>(0), y, q));  // NaN, where the row is
        };
        for (std::int64_t i = 0; i < row.whole; i += step) put(p + i, grad + i, out + i);
        if (!row.has_rest) continue;
        T last[step];
        put(row.rest, slope.rest, last);
        __builtin_memcpy(out + row.whole, last,
                         sizeof(T) * static_cast<std::size_t>(n - row.whole));
    }
}

// The nonzeros of a column in order, `value` and `rows` with room for all.
Column pick_column(const double* z, const Threshold& h, double* value, std::int64_t* rows,
                   std::int64_t n) {
    std::int64_t count = 0, ties = h.ties;
    double square = 0;
    const double floor = floor_of<double>(h.top, h.t + h.low);
    for (std::int64_t i = 0; i < n; i += step) {
        const int entries = static_cast<int>(n - i < step ? n - i : step);
        if (entries == step && !reaches(z + i, floor)) continue;
        for (int lane = 0; lane < entries; ++lane) {
            const double at = z[i + lane], p = ((at - h.top) - h.t) - h.low;
            const bool tied = at == h.cut && ties > 0;
            if (!(p > 0) || !(at > h.cut || tied)) continue;
            ties -= tied;
            value[count] = p;
            rows[count++] = i + lane;
            square += p * p;
        }
    }
    return {h.tau(), square, count, rows, value};
}

void columns(const double* cost, const double* f, const double* mass, std::int64_t k,
             std::int64_t begin, std::int64_t end, std::int64_t n, double* scratch,
             std::int64_t* rows, Visit visit, void* context) {
    double *z = scratch, *kept = scratch + n, *value = scratch + 2 * n;
    for (std::int64_t j = begin; j < end; ++j) {
        const double* price = cost + j * n;
        for (std::int64_t i = 0; i < n; ++i) z[i] = f[i] - price[i];
        const Row<double> row(z, n);
        const double top = find_top(row).value;
        if (mass[j] == 0) {
            visit(context, j, Column{top, 0, 0, rows, value});
        } else {
            const Threshold h = find_threshold(row, top, mass[j], k, kept);
            visit(context, j, pick_column(z, h, value, rows, n));
        }
    }
}

}  // namespace

namespace CURVKERN_ISA_NAMESPACE {
const Kernels& kernels() {
    static const Kernels table{project<double>, project<float>, jacobian<double>,
                               jacobian<float>, columns};
    return table;
}
}  // namespace CURVKERN_ISA_NAMESPACE

}  // namespace curvkern::sparsemax
