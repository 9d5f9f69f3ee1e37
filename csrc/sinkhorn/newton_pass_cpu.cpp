#include "core/math.hpp"
#include "core/twin.hpp"
#include "newton_pass.hpp"
#include "sinkhorn/exp2.hpp"

namespace curvkern::newton {
namespace {

using V = VectorDouble;
using R = Twin<V>;  // two registers: a group of entries that is skipped or evaluated as a whole
constexpr int width = Lanes<R>::width;
constexpr double log2_e = 1.4426950408889634, ln_2 = 0.6931471805599453;
typedef float HalfVector __attribute__((vector_size(sizeof(V) / 2)));

// A row whose largest exponent lies this far from that of its mass, log a_i, is evaluated
// again, shifted by it.
constexpr double largest_shift = 15.0;

CURVKERN_HD V load_register(const double* source) {
    V y;
    __builtin_memcpy(&y, source, sizeof(V));
    return y;
}
CURVKERN_HD V load_register(const float* source) {
    HalfVector y;
    __builtin_memcpy(&y, source, sizeof(y));
    return __builtin_convertvector(y, V);
}
template <class T>
CURVKERN_HD R load(const T* source) {
    return {load_register(source), load_register(source + Lanes<V>::width)};
}
CURVKERN_HD void store(double* target, R y) {
    __builtin_memcpy(target, &y.a, sizeof(V));
    __builtin_memcpy(target + Lanes<V>::width, &y.b, sizeof(V));
}
// The first `count` entries, the others `fill`.
template <class T>
CURVKERN_HD R load_part(const T* source, std::int64_t count, T fill) {
    T part[width];
    for (int lane = 0; lane < width; ++lane) part[lane] = lane < count ? source[lane] : fill;
    return load(part);
}
CURVKERN_HD double sum(R x) {
    const V y = x.a + x.b;
    double total = y[0];
    for (int lane = 1; lane < Lanes<V>::width; ++lane) total += y[lane];
    return total;
}

// One row of the plan; only the groups in `group` were evaluated.
struct Row {
    double* value;        // (m,) rounded up to whole groups
    std::int32_t* group;  // their numbers, ascending
    std::int64_t groups;
    double sum, largest;  // of the exponentials; of the exponents
};

// value_j = exp(F + G_j - C_j / eps), but for groups with no exponent above `low`.
template <class T>
void exponentials(const T* cost, const Sweep& sweep, double F, Row& row) {
    const std::int64_t m = sweep.m;
    // In powers of two.
    const R shift = c<R>(F * log2_e), scale = c<R>(sweep.inverse_eps * log2_e);
    const R low = c<R>(sweep.lowest * log2_e);
    R total = c<R>(0), top = c<R>(-__builtin_huge_val());
    std::int64_t groups = 0;
    const auto evaluate = [&](R exponent, std::int64_t j) __attribute__((always_inline)) {
        if (!any(exponent > low)) return;
        top = max(top, exponent);
        const R y = select(exponent > low, sinkhorn::exp2_bounded(max(low, exponent)), c<R>(0));
        total = total + y;
        store(row.value + j, y);
        row.group[groups++] = static_cast<std::int32_t>(j / width);
    };
    std::int64_t j = 0;
    for (; j + width <= m; j += width) {
        evaluate((shift + load(sweep.G + j)) - load(cost + j) * scale, j);
    }
    if (j < m) {
        const R G = load_part(sweep.G + j, m - j, -__builtin_huge_val());
        evaluate((shift + G) - load_part(cost + j, m - j, T{0}) * scale, j);
    }
    row.groups = groups;
    row.sum = sum(total);
    row.largest = largest(top) * ln_2;
}

// max_j (G_j - C_j / eps)
template <class T>
double largest_exponent(const T* cost, const Sweep& sweep) {
    const std::int64_t m = sweep.m;
    const R scale = c<R>(sweep.inverse_eps * log2_e);
    R top = c<R>(-__builtin_huge_val());
    std::int64_t j = 0;
    for (; j + width <= m; j += width) {
        top = max(top, load(sweep.G + j) - load(cost + j) * scale);
    }
    if (j < m) {
        const R G = load_part(sweep.G + j, m - j, -__builtin_huge_val());
        top = max(top, G - load_part(cost + j, m - j, T{0}) * scale);
    }
    return largest(top) * ln_2;
}

void scale_and_add(double factor, Row& row, double* columns) {
    const R scale = c<R>(factor);
    for (std::int64_t k = 0; k < row.groups; ++k) {
        const std::int64_t j = std::int64_t{row.group[k]} * width;
        const R y = load(row.value + j) * scale;
        store(row.value + j, y);
        store(columns + j, load(columns + j) + y);
    }
}

// The gathered part of one block while it grows.
struct Store {
    const Gathered& to;
    double threshold;
    std::int64_t size = 0;

    // Drops entries until a row more fits: those below a threshold four times as high.
    void thin_out(const double* row_mass, std::int64_t rows, std::int64_t room) {
        while (to.capacity - size < room) {
            threshold *= 4;
            std::int64_t kept = 0, entry = 0;
            for (std::int64_t i = 0; i < rows; ++i) {
                for (; entry < to.row_end[i]; ++entry) {
                    const double scale = min(row_mass[i], to.column_scale[to.column[entry]]);
                    if (to.value[entry] > threshold * scale) {
                        to.column[kept] = to.column[entry];
                        to.value[kept++] = to.value[entry];
                    }
                }
                to.row_end[i] = kept;
            }
            size = kept;
        }
    }

    void add_row(const Row& row, double mass, std::int64_t m) {
        const R bound = c<R>(threshold), limit = c<R>(mass);
        for (std::int64_t k = 0; k < row.groups; ++k) {
            const std::int64_t begin = std::int64_t{row.group[k]} * width;
            const std::int64_t end = begin + width < m ? begin + width : m;
            if (end - begin == width &&
                !any(load(row.value + begin) >
                     bound * min(limit, load(to.column_scale + begin)))) {
                continue;
            }
            for (std::int64_t j = begin; j < end; ++j) {
                if (row.value[j] > threshold * min(mass, to.column_scale[j])) {
                    to.column[size] = static_cast<std::int32_t>(j);
                    to.value[size++] = row.value[j];
                }
            }
        }
    }
};

template <class T>
void sweep_block(const Sweep& sweep, std::int64_t begin, std::int64_t end, double* columns,
                 double* scratch, Gathered* gathered) {
    const std::int64_t m = sweep.m, padded = padded_columns(m);
    for (std::int64_t j = 0; j < padded; ++j) columns[j] = 0;
    Row row{scratch, reinterpret_cast<std::int32_t*>(scratch + padded), 0, 0, 0};
    const Gathered none{};
    Store store{gathered != nullptr ? *gathered : none,
                gathered != nullptr ? gathered->threshold : 0};
    for (std::int64_t i = begin; i < end; ++i) {
        sweep.row_mass[i] = 0;
        if (sweep.a[i] > 0) {
            const T* cost = static_cast<const T*>(sweep.cost) + i * m;
            double F = sweep.F[i];
            exponentials(cost, sweep, F, row);
            const double offset = row.largest - sweep.log_a[i];
            if (!(offset > -largest_shift && offset < largest_shift) && !sweep.fixed_rows) {
                F = sweep.log_a[i] - largest_exponent(cost, sweep);
                exponentials(cost, sweep, F, row);
            }
            double factor = 1;
            if (!sweep.fixed_rows) {
                // y = F - log a solves y + log(sum) - (F - log a) = -(eps / rho) y.
                const double y = sweep.lambda * (F - log(row.sum));
                sweep.F[i] = y + sweep.log_a[i];
                factor = sweep.lambda == 1 ? sweep.a[i] / row.sum : exp(sweep.F[i] - F);
            }
            sweep.row_mass[i] = row.sum * factor;
            scale_and_add(factor, row, columns);
            if (gathered != nullptr) {
                store.thin_out(sweep.row_mass + begin, i - begin, m);
                store.add_row(row, sweep.row_mass[i], m);
            }
        }
        if (gathered != nullptr) gathered->row_end[i - begin] = store.size;
    }
    if (gathered != nullptr) gathered->threshold = store.threshold;
}

}  // namespace

namespace CURVKERN_ISA_NAMESPACE {
const PassKernels& pass_kernels() {
    static const PassKernels table{sweep_block<float>, sweep_block<double>};
    return table;
}
}  // namespace CURVKERN_ISA_NAMESPACE

}  // namespace curvkern::newton
