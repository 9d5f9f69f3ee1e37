// One pass over the plan without storing it: its products with vectors, its cost, its entropy,
// and the gradient of a weighted sum of costs through the points.
#pragma once

#include "sweep.hpp"

namespace curvkern::sinkhorn {
CURVKERN_PER_ISA {

CURVKERN_HD double dot(const double* x, const double* y, std::int64_t n) {
    VectorDouble total{};
    for (std::int64_t j = 0; j < n; j += width<double>) {
        total = load<double>(x + j) * load<double>(y + j) + total;
    }
    return sum_lanes(total);
}

// entries = b_j 2^(phi_i + psi_j - slope C_ij) for four rows. Weights: zero where nothing may
// be.
template <class Rows, bool Totals>
CURVKERN_HD void fill_plan(const Problem& p, std::int64_t i, double* entries,
                           double (&linear)[rows_at_once], double (&entropy)[rows_at_once]) {
    using R = Quad<double>;
    const Shifts<double> shifts(p, i);
    const R shift = broadcast(shifts.value);
    const std::int64_t stride = padded(p.b.size);
    R costs{}, exponents{};
    for_columns(Rows(p, i), 0, p.b.size, [&](std::int64_t j, R cost) {
        const R t = (shift + spread(load<double>(p.b.potential + j))) - p.slope * cost;
        const R e = exp2_entry(t) * spread(load<double>(p.b.weight + j));
        store(entries + j, e.a.a);
        store(entries + stride + j, e.a.b);
        store(entries + 2 * stride + j, e.b.a);
        store(entries + 3 * stride + j, e.b.b);
        if constexpr (Totals) {
            const auto present = e > c<R>(0x1p-900);  // not where the cost may be infinite
            costs = costs + select(present, e * cost, c<R>(0));
            exponents = exponents + select(present, e * (t - c<R>(p.b.log2_mass)), c<R>(0));
        }
    });
    if constexpr (Totals) {
        for (int r = 0; r < rows_at_once; ++r) linear[r] = entropy[r] = 0;
        sum_lanes(costs, linear);
        sum_lanes(exponents, entropy);
    }
}

template <class Rows>
void plan_products(const Problem& p, const Products& out, std::int64_t begin, std::int64_t end,
                   int slot, bool clear) {
    const std::int64_t stride = padded(p.b.size), column_stride = padded(p.a.size);
    double* entries = static_cast<double*>(p.entries) + slot * rows_at_once * stride;
    double* ptu = out.ptu + (out.u == nullptr ? 0 : slot * out.count * stride);
    if (clear && out.u != nullptr)
        __builtin_memset(ptu, 0, out.count * stride * sizeof(double));
    for (std::int64_t i = begin; i < end; i += rows_at_once) {
        const int live = static_cast<int>(smaller(rows_at_once, end - i));
        double linear[rows_at_once], entropy[rows_at_once];
        if (out.totals != nullptr) {
            fill_plan<Rows, true>(p, i, entries, linear, entropy);
        } else {
            fill_plan<Rows, false>(p, i, entries, linear, entropy);
        }
        for (int r = 0; r < live; ++r) {
            const double weight = p.a.weight[i + r] * p.a.mass;
            const double* row = entries + r * stride;
            if (out.totals != nullptr) {
                out.totals[i + r] = weight * linear[r];
                out.totals[p.a.size + i + r] = weight * entropy[r];
            }
            for (int q = 0; q < out.count; ++q) {
                if (out.v != nullptr) {
                    out.pv[q * column_stride + i + r] =
                        weight * dot(row, out.v + q * stride, p.b.size);
                }
                if (out.u == nullptr) continue;
                const double factor = weight * out.u[q * column_stride + i + r];
                double* sums = ptu + q * stride;
                for (std::int64_t j = 0; j < p.b.size; j += width<double>) {
                    store(sums + j, factor * load<double>(row + j) + load<double>(sums + j));
                }
            }
        }
    }
}

// d/dx_ik of sum_k |x_ik - y_jk|^2 is 2 (x_ik - y_jk); of its root (x_ik - y_jk) / C_ij, 0 at
// C_ij = 0; of sum_k |x_ik - y_jk| the sign.
template <Cost Kind>
void points_gradient(const Problem& p, const double* u, const double* w, double* out,
                     std::int64_t begin, std::int64_t end, int slot) {
    using V = VectorDouble;
    const std::int64_t stride = padded(p.b.size);
    double* entries = static_cast<double*>(p.entries) + slot * rows_at_once * stride;
    for (std::int64_t i = begin; i < end; i += rows_at_once) {
        const int live = static_cast<int>(smaller(rows_at_once, end - i));
        double none[rows_at_once];
        fill_plan<PointRows<Kind, double>, false>(p, i, entries, none, none);
        for (int r = 0; r < live; ++r) {
            const double* x = p.x + (i + r) * p.dims;
            double* row = entries + r * stride;
            const double weight = p.a.weight[i + r] * p.a.mass;
            for (std::int64_t j = 0; j < p.b.size; j += width<double>) {
                V factor = load<double>(row + j) * (u[i + r] + load<double>(w + j)) * weight;
                if constexpr (Kind == Cost::sqeuclidean) factor = factor * c<V>(2);
                if constexpr (Kind == Cost::euclidean) {
                    V square = c<V>(0);
                    for (int k = 0; k < p.dims; ++k) {
                        const V d = x[k] - load<double>(p.y_transposed + k * stride + j);
                        square = d * d + square;
                    }
                    factor = select(square > c<V>(0), factor / sqrt(square), c<V>(0));
                }
                store(row + j, factor);
            }
            for (int k = 0; k < p.dims; ++k) {
                V total = c<V>(0);
                for (std::int64_t j = 0; j < p.b.size; j += width<double>) {
                    V d = x[k] - load<double>(p.y_transposed + k * stride + j);
                    if constexpr (Kind == Cost::l1) {
                        d = select(d > c<V>(0), c<V>(1), select(d < c<V>(0), c<V>(-1), d));
                    }
                    total = load<double>(row + j) * d + total;
                }
                out[(i + r) * p.dims + k] = sum_lanes(total);
            }
        }
    }
}

template <class T>
void dense_range(const Problem& p, std::int64_t begin, std::int64_t end, double* out) {
    const T* cost = static_cast<const T*>(p.cost);
    T least = static_cast<T>(__builtin_huge_val()), most = -least;
    const T huge = least;
    for (std::int64_t at = begin * p.b.size; at < end * p.b.size; ++at) {
        const T value = cost[at];
        least = value < least ? value : least;
        most = value > most && value < huge ? value : most;
    }
    out[0] = least;
    out[1] = most;
}

}  // namespace isa
}  // namespace curvkern::sinkhorn
