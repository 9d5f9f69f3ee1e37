// One full Sinkhorn iteration in the log domain that reads every cost once and takes one
// exponential an entry, or reads every stored entry once and takes none.
//
// Entries are made with base potentials, p_i and q_j; for a row i
//
//     e_ij = 2^(p_i + q_j - slope C_ij + log2 mass_b),   r_i = sum_j b_j 2^(psi_j - q_j) e_ij,
//     phi_i' = damping_a (p_i - log2 r_i),               s_j += a_i 2^(phi_i' - p_i) e_ij,
//
// and when all rows are done psi_j' = damping_b (q_j - log2 (s_j mass_a / mass_b)). The base
// potentials are those of the last iteration, or, where there is room to store the entries,
// those of an earlier one that are still within some powers of two of them (Schmitzer,
// "Stabilized sparse scaling algorithms for entropy regularized transport problems", 2019,
// absorbs scalings in this way). Hard marginals have damping 1, and r_i and s_j are then the
// marginals over the weights: near 1 from the second iteration on, so that nothing has to be
// shifted by a maximum. Where a sum is far from 1 (the first iterations, far clusters, costs of
// +inf, points without mass), its row or column is done again in the classical way: the largest
// exponent is found first, and becomes the base of the row.
//
// float32 arithmetic: d_ij = f_i + g_j - C_ij cancels to a number near eps, so it is formed
// from potentials in units of the cost, each as high + low with all `high` on one grid. Then
// f.high + g.high is exact, its difference to C is rounded relative to d_ij, and the low parts
// join last: the exponent is as good as float32 can hold it, whatever the cost over eps is.
#pragma once

#include "cost.hpp"

namespace curvkern::sinkhorn {
CURVKERN_PER_ISA {

// Sums within these are used as they are: entries that were raised to 2^lowest are nothing in
// them, and those that were cut at 2^highest are none of theirs.
template <class A>
struct Usable {
    static constexpr double row_low = is_double<A> ? 0x1p-500 : 0x1p-30;
    static constexpr double row_high = is_double<A> ? 0x1p500 : 0x1p60;
    static constexpr double column_low = is_double<A> ? 0x1p-200 : 0x1p-30;
    static constexpr double column_high = is_double<A> ? 0x1p200 : 0x1p60;
};

CURVKERN_HD bool within(double x, double low, double high) {
    return x > low && x < high;
}

// Four rows' exponents phi_i + log2 mass_b as numbers that can be replaced.
template <class A>
struct Shifts {
    double value[rows_at_once];
    float high[rows_at_once], low[rows_at_once];

    CURVKERN_HD Shifts(const Problem& p, std::int64_t i) {
        for (int r = 0; r < rows_at_once; ++r) {
            const std::int64_t row = smaller(i + r, p.a.size - 1);
            value[r] = p.a.base[row] + p.b.log2_mass;
            if constexpr (!is_double<A>) {
                high[r] = p.a.high[row];
                low[r] = p.a.low[row];
            }
        }
    }

    CURVKERN_HD void replace(const Problem& p, int r, double shift) {
        value[r] = shift;
        if constexpr (!is_double<A>) {
            high[r] = static_cast<float>(shift / p.slope);
            low[r] = static_cast<float>(shift / p.slope - high[r]);
        }
    }
};

// What the stored entries of a row that was shifted are made with. In float32 its shift is not
// on the grid of the potentials: entries that are less exact must not serve again.
template <class A>
CURVKERN_HD double shifted_base(double shift) {
    return is_double<A> ? shift : __builtin_huge_val();
}

// e_ij from costs.
template <class A>
class Entries;

template <>
class Entries<double> {
  public:
    CURVKERN_HD Entries(const Problem& p, const Shifts<double>& shifts)
        : psi_(p.b.base), shift_(broadcast(shifts.value)), slope_(p.slope) {}

    CURVKERN_HD Quad<double> operator()(std::int64_t j, Quad<double> cost) const {
        return exp2_clamped((shift_ + spread(load<double>(psi_ + j))) - slope_ * cost);
    }

  private:
    const double* psi_;
    Quad<double> shift_;
    double slope_;
};

template <>
class Entries<float> {
  public:
    CURVKERN_HD Entries(const Problem& p, const Shifts<float>& shifts)
        : g_high_(p.b.high),
          g_low_(p.b.low),
          high_(broadcast(shifts.high)),
          low_(broadcast(shifts.low)),
          slope_(static_cast<float>(p.slope)),
          slope_low_(static_cast<float>(p.slope - slope_)),
          lowest_(static_cast<float>(Exponents<float>::lowest / p.slope)),
          highest_(static_cast<float>(Exponents<float>::highest / p.slope)) {}

    CURVKERN_HD Quad<float> operator()(std::int64_t j, Quad<float> cost) const {
        using R = Quad<float>;
        const R sum = high_ + spread(load<float>(g_high_ + j));  // exact
        const R rest = low_ + spread(load<float>(g_low_ + j));
        const R d = bounded((sum - cost) + rest, c<R>(lowest_), c<R>(highest_));
        const R shifted = d * slope_ + c<R>(Float<R>::round_magic);
        const R n = shifted - c<R>(Float<R>::round_magic);
        const R r = (d * slope_ - n) + d * slope_low_;
        return scale_by_power(exp2_polynomial(r), bits(shifted));
    }

  private:
    const float *g_high_, *g_low_;
    Quad<float> high_, low_;
    float slope_, slope_low_, lowest_, highest_;
};

template <class A>
CURVKERN_HD const A* factors(const Side& side) {
    if constexpr (is_double<A>) {
        return side.factor;
    } else {
        return side.factor32;
    }
}

inline constexpr std::int64_t tile = 1024;  // columns: float32 sums are short

// Stores the entries of four rows one after the other and sums them, weighted, in float64.
//
// What follows is called, not inlined: the loops within are long, and the compiler is spared
// a copy of them for every cost.
template <class Rows, class A = typename Rows::Number>
CURVKERN_SHARED void fill_entries(const Problem& p, const Rows& rows, const Shifts<A>& shifts,
                                  A* entries, double (&sum)[rows_at_once]) {
    const Entries<A> entry(p, shifts);
    const A* b = factors<A>(p.b);
    const std::int64_t stride = padded(p.b.size);
    for (double& row : sum) row = 0;
    for (std::int64_t begin = 0; begin < p.b.size; begin += tile) {
        Quad<A> partial{};
        for_columns(rows, begin, smaller(begin + tile, p.b.size),
                    [&](std::int64_t j, Quad<A> cost) __attribute__((always_inline)) {
                        const Quad<A> e = entry(j, cost);
                        partial = e * spread(load<A>(b + j)) + partial;
                        store(entries + j, e.a.a);
                        store(entries + stride + j, e.a.b);
                        store(entries + 2 * stride + j, e.b.a);
                        store(entries + 3 * stride + j, e.b.b);
                    });
        sum_lanes(partial, sum);
    }
}

template <class A>
CURVKERN_HD Quad<A> load_rows(const A* entries, std::int64_t stride) {
    return {{load<A>(entries), load<A>(entries + stride)},
            {load<A>(entries + 2 * stride), load<A>(entries + 3 * stride)}};
}

template <class A>
CURVKERN_HD Vector<A> add_rows(const A* w, Quad<A> e, Vector<A> sum) {
    return w[3] * e.b.b + (w[2] * e.b.a + (w[1] * e.a.b + (w[0] * e.a.a + sum)));
}

// The sums of rows whose entries are stored.
template <class A>
CURVKERN_SHARED void sum_entries(const Problem& p, const A* entries,
                                 double (&sum)[rows_at_once]) {
    const A* b = factors<A>(p.b);
    const std::int64_t stride = padded(p.b.size);
    for (double& row : sum) row = 0;
    for (std::int64_t begin = 0; begin < p.b.size; begin += tile) {
        Quad<A> partial{};
        const std::int64_t end = smaller(begin + tile, p.b.size);
        for (std::int64_t j = begin; j < end; j += width<A>) {
            const Quad<A> e = load_rows<A>(entries + j, stride);
            partial = e * spread(load<A>(b + j)) + partial;
        }
        sum_lanes(partial, sum);
    }
}

// max over j with mass of psi_j - slope C_ij, for four rows
template <class Rows>
CURVKERN_SHARED void largest_exponents(const Problem& p, std::int64_t i,
                                       double (&top)[rows_at_once]) {
    using R = Quad<double>;
    R most = c<R>(-__builtin_huge_val());
    for_columns(Rows(p, i), 0, p.b.size, [&](std::int64_t j, R cost) {
        const VectorDouble mass = load<double>(p.b.weight + j);
        const R t = spread(load<double>(p.b.potential + j)) - p.slope * cost;
        const R ignored = c<R>(-__builtin_huge_val());
        most = max(most, select(spread(mass) > c<R>(0), t, ignored));
    });
    top[0] = largest(most.a.a);
    top[1] = largest(most.a.b);
    top[2] = largest(most.b.a);
    top[3] = largest(most.b.b);
}

// Numbers of four rows for arithmetic on whole vectors.
struct alignas(64) PerRow {
    double value[rows_at_once < width<double> ? width<double> : rows_at_once] = {};
    double& operator[](int r) { return value[r]; }
};

template <class Body>
CURVKERN_HD void for_row_vectors(Body body) {
    for (int r = 0; r < rows_at_once; r += width<double>) body(r);
}

// Four rows whose entries are there.
struct Filled {
    double shift[rows_at_once];  // the base of their potentials
    double sum[rows_at_once];
    bool reachable[rows_at_once] = {true, true, true, true};
    bool shifted[rows_at_once] = {};  // by their largest exponents
};

template <class Rows, class A = typename Rows::Number>
CURVKERN_HD Filled fill_rows(const Problem& p, std::int64_t i, A* entries) {
    using U = Usable<A>;
    const Rows rows(p, i);
    Shifts<A> shifts(p, i);
    Filled filled;
    if (p.stored) {
        sum_entries(p, entries, filled.sum);
    } else {
        fill_entries(p, rows, shifts, entries, filled.sum);
    }
    bool again = false;
    for (double s : filled.sum) again |= !within(s, U::row_low, U::row_high);
    if (again) {
        double top[rows_at_once];
        largest_exponents<typename Rows::Exact>(p, i, top);
        for (int r = 0; r < rows_at_once; ++r) {
            if (within(filled.sum[r], U::row_low, U::row_high)) continue;
            filled.reachable[r] = abs(top[r]) < __builtin_huge_val();
            filled.shifted[r] = filled.reachable[r];
            if (filled.shifted[r]) shifts.replace(p, r, -top[r]);
        }
        fill_entries(p, rows, shifts, entries, filled.sum);
    }
    for (int r = 0; r < rows_at_once; ++r) filled.shift[r] = shifts.value[r] - p.b.log2_mass;
    return filled;
}

// The new potentials of four rows, and their share of the column sums.
template <class A, bool Check>
CURVKERN_SHARED void update_rows(const Problem& p, std::int64_t i, int live,
                                 const Filled& filled, const A* entries, A* after, A* before) {
    using V = VectorDouble;
    const Side& a = p.a;
    PerRow total, shift, old, next, weight, weight_after, weight_before;
    for (int r = 0; r < rows_at_once; ++r) {
        total[r] = filled.reachable[r] && filled.sum[r] > 0 ? filled.sum[r] : 1;
        shift[r] = filled.shift[r];
        old[r] = a.potential[smaller(i + r, a.size - 1)];
        weight[r] = r < live && filled.reachable[r] ? a.weight[i + r] : 0;
    }
    for_row_vectors([&](int r) {
        const V rest = load<double>(shift.value + r), s = load<double>(total.value + r);
        const V free = rest - log2_positive(s);
        store(next.value + r, a.damping * free);
        const V w = load<double>(weight.value + r);
        const V ratio = a.damping == 1 ? 1 / s : exp2_clamped(a.damping * free - rest);
        store(weight_after.value + r, w * ratio);
        if constexpr (Check) {
            const V phi = load<double>(old.value + r);
            const V scale = exp2_clamped(phi - rest);
            store(weight_before.value + r, w * scale);
            store(total.value + r, abs(s * scale - exp2_clamped(-a.inverse_rho * phi)));
        }
    });
    A w[rows_at_once], w_before[rows_at_once];
    for (int r = 0; r < rows_at_once; ++r) {
        w[r] = static_cast<A>(weight_after[r]);
        w_before[r] = static_cast<A>(weight_before[r]);
        if (r >= live) continue;
        const bool reachable = filled.reachable[r];
        a.next[i + r] = reachable ? next[r] : 0;
        if (p.store != nullptr && filled.shifted[r]) a.base[i + r] = shifted_base<A>(shift[r]);
        if constexpr (Check) {
            a.residual[i + r] = reachable ? total[r] : exp2_clamped(-a.inverse_rho * old[r]);
        }
    }
    const std::int64_t stride = padded(p.b.size);
    for (std::int64_t j = 0; j < p.b.size; j += width<A>) {
        const Quad<A> e = load_rows<A>(entries + j, stride);
        store(after + j, add_rows(w, e, load<A>(after + j)));
        if constexpr (Check) store(before + j, add_rows(w_before, e, load<A>(before + j)));
    }
}

template <class Rows, class A = typename Rows::Number>
void sweep(const Problem& p, std::int64_t begin, std::int64_t end, int slot, bool clear,
           bool check) {
    const std::int64_t stride = padded(p.b.size);
    A* at_work = static_cast<A*>(p.entries) + slot * rows_at_once * stride;
    A* after = static_cast<A*>(p.sums) + slot * 2 * stride;
    A* before = after + stride;
    if (clear) __builtin_memset(after, 0, 2 * stride * sizeof(A));
    for (std::int64_t i = begin; i < end; i += rows_at_once) {
        const int live = static_cast<int>(smaller(rows_at_once, end - i));
        A* entries = p.store != nullptr ? static_cast<A*>(p.store) + i * stride : at_work;
        const Filled filled = fill_rows<Rows>(p, i, entries);
        if (check) {
            update_rows<A, true>(p, i, live, filled, entries, after, before);
        } else {
            update_rows<A, false>(p, i, live, filled, entries, after, before);
        }
    }
}

// Columns are finished, and rescued, so many vectors at a time: a stored row is then visited
// once for a few cache lines.
inline constexpr int column_vectors = 64 / width<double>;

// next = -damping_b log2 sum_i a_i 2^(phi_i' - slope C_ij) for columns j, ... by their largest
// exponents; 0 where no row with mass has a finite cost.
template <class Rows>
CURVKERN_SHARED void rescue_columns(const Problem& p, std::int64_t j, int vectors,
                                    VectorDouble* next) {
    using V = VectorDouble;
    using R = Quad<double>;
    V top[column_vectors], sum[column_vectors];
    for (int k = 0; k < vectors; ++k) {
        top[k] = c<V>(-__builtin_huge_val());
        sum[k] = c<V>(0);
    }
    for (int pass = 0; pass < 2; ++pass) {
        const bool summing = pass == 1;
        for (std::int64_t i = 0; i < p.a.size; i += rows_at_once) {
            const Rows rows(p, i);
            double phi[rows_at_once], weight[rows_at_once];
            for (int r = 0; r < rows_at_once; ++r) {
                const bool live = i + r < p.a.size;
                phi[r] = live ? p.a.next[i + r] : 0;
                weight[r] = live ? p.a.weight[i + r] : 0;
            }
            const R w = broadcast(weight);
            for (int k = 0; k < vectors; ++k) {
                const std::int64_t at = j + k * width<double>;
                const R cost = at < rows.whole ? rows.at(at) : rows.tail(at);
                R t = broadcast(phi) - p.slope * cost;
                if (summing) {
                    t = w * exp2_clamped(t - spread(top[k]));
                    sum[k] = sum[k] + ((t.a.a + t.a.b) + (t.b.a + t.b.b));
                } else {
                    t = select(w > c<R>(0), t, c<R>(-__builtin_huge_val()));
                    top[k] = max(top[k], max(max(t.a.a, t.a.b), max(t.b.a, t.b.b)));
                }
            }
        }
    }
    for (int k = 0; k < vectors; ++k) {
        const auto reachable = abs(top[k]) < infinity<V>();
        const V s = log2_positive(select(reachable, sum[k], c<V>(1)));
        next[k] = select(reachable, -p.b.damping * (top[k] + s + p.a.log2_mass), c<V>(0));
    }
}

template <class Rows, class A = typename Rows::Number>
void finish_columns(const Problem& p, std::int64_t begin, std::int64_t end, bool check) {
    using V = VectorDouble;
    using U = Usable<A>;
    const Side& b = p.b;
    const std::int64_t stride = padded(b.size);
    const double log2_masses = p.a.log2_mass - b.log2_mass;
    const double masses = exp2_clamped(log2_masses);
    const A* sums = static_cast<const A*>(p.sums);
    for (; begin < end; begin += 64) {
        const std::int64_t size = smaller(64, end - begin);
        const int vectors = static_cast<int>((size + width<double> - 1) / width<double>);
        V sum[column_vectors], next[column_vectors], residual[column_vectors];
        bool again = false;
        for (int k = 0; k < vectors; ++k) {
            const std::int64_t j = begin + k * width<double>;
            V after = c<V>(0), before = c<V>(0);
            for (int slot = 0; slot < p.slots; ++slot) {
                after = after + load<double>(sums + slot * 2 * stride + j);
                if (check) before = before + load<double>(sums + (slot * 2 + 1) * stride + j);
            }
            const V psi = load<double>(b.potential + j), base = load<double>(b.base + j);
            const auto usable = (after > c<V>(U::column_low)) & (after < c<V>(U::column_high));
            again |= any(~usable);
            sum[k] = select(usable, after, c<V>(0));
            const V s = log2_positive(select(usable, after, c<V>(1)));
            next[k] = b.damping * (base - (s + log2_masses));
            residual[k] = abs(before * (masses * exp2_clamped(psi - base)) -
                              exp2_clamped(-b.inverse_rho * psi));
        }
        if (again) {
            V rescued[column_vectors];
            rescue_columns<typename Rows::Exact>(p, begin, vectors, rescued);
            for (int k = 0; k < vectors; ++k) {
                next[k] = select(sum[k] > c<V>(0), next[k], rescued[k]);
            }
        }
        __builtin_memcpy(b.next + begin, next, size * sizeof(double));
        if (check) __builtin_memcpy(b.residual + begin, residual, size * sizeof(double));
    }
}

// log2 sum_i weight_i 2^(-factor potential_i)
CURVKERN_HD double log2_sum(const Side& side, const double* potential, double factor) {
    using V = VectorDouble;
    const V none = c<V>(-__builtin_huge_val());
    V most = none, total = c<V>(0);
    for (std::int64_t i = 0; i < side.size; i += width<double>) {
        const V w = load<double>(side.weight + i);
        most = max(most, select(w > c<V>(0), -factor * load<double>(potential + i), none));
    }
    const double top = largest(most);
    for (std::int64_t i = 0; i < side.size; i += width<double>) {
        const V t = -factor * load<double>(potential + i) - top;
        total = load<double>(side.weight + i) * exp2_clamped(t) + total;
    }
    return top + log2_positive(sum_lanes(total)) + side.log2_mass;
}

CURVKERN_HD double drift(const Side& side) {
    using V = VectorDouble;
    V most = c<V>(0);
    for (std::int64_t j = 0; j < side.size; j += width<double>) {
        const V d = load<double>(side.potential + j) - load<double>(side.base + j);
        most = max(most, abs(d));
        if (side.factor == nullptr) continue;
        const V factor = load<double>(side.weight + j) * exp2_clamped(d);
        store(side.factor + j, factor);
        if (side.factor32 == nullptr) continue;
        for (int lane = 0; lane < width<double>; ++lane) {
            side.factor32[j + lane] = static_cast<float>(factor[lane]);
        }
    }
    return largest(most);
}

CURVKERN_HD void split_side(const Side& side, double shift, double slope, double magic) {
    for (std::int64_t i = 0; i < side.size; ++i) {
        const double value = (side.potential[i] + shift) / slope;
        const double high = (value + magic) - magic;
        side.high[i] = static_cast<float>(high);
        side.low[i] = static_cast<float>(value - high);
    }
}

CURVKERN_HD double most_of(const Side& side, double shift) {
    double most = 0;
    for (std::int64_t i = 0; i < side.size; ++i) {
        most = max(most, abs(side.potential[i] + shift));
    }
    return most;
}

// The grid has 2^23 steps up to the largest potential, so two of them add up to 24 bits.
CURVKERN_HD void split_potentials(const Problem& p) {
    const double most = max(most_of(p.a, p.b.log2_mass), most_of(p.b, 0)) / p.slope;
    const double power = from_bits<double>(bits(most) & 0x7ff0000000000000u);  // <= most
    const double magic = 0x1.8p52 * (power * 0x1p-22);
    split_side(p.a, p.b.log2_mass, p.slope, magic);
    split_side(p.b, 0, p.slope, magic);
}

}  // namespace isa
}  // namespace curvkern::sinkhorn
