// The CPU loops: sort a block of points by region, evaluate each region on full vectors.
//
// Compiled once per instruction set with CURVKERN_ISA_NAMESPACE = v4, v3, v2. Everything here
// but kernels() has internal linkage or is always inlined, so no symbol can leak between the
// builds.
#include "edges.hpp"
#include "functions.hpp"

namespace curvkern::bessel {
namespace {

constexpr int block = 512;

template <class T>
using Vector = std::conditional_t<is_double<T>, VectorDouble, VectorFloat>;

// The fallback for old processors is compiled for size: one register at a time, and float32 by
// way of float64.
#if defined(CURVKERN_FALLBACK)
inline constexpr bool is_fallback = true;
#else
inline constexpr bool is_fallback = false;
#endif

// Formulas that hardly ever are the hot ones take one register at a time, which is half the
// code, and float32 by way of float64.
constexpr bool is_rare(Function f, int order, int code) {
    if (is_fallback || order == 2) return true;
    const bool near_zero = code == small_low || code == small_high;
    if (code == careful) return !has_zero_band(f, order);
    if (is_k(f) && near_zero) return true;
    if (is_ratio(f) && code != debye) return true;
    return code == kv_power || code == hyp_wide || (is_hyp(f) && code == debye_gamma);
}

// Formulas so long that two registers at a time gain little.
constexpr bool is_long(Function f, int order, int code) {
    return is_matern(f) && order == 1 && (code == debye || code == small_low);
}

template <class T, bool Narrow>
using Wide = std::conditional_t<Narrow, Vector<T>, Twin<Vector<T>>>;
template <class T>
inline constexpr int step = Lanes<Wide<T, is_fallback>>::width;

template <class T>
constexpr int padded(int n) {
    return (n + step<T> - 1) / step<T> * step<T>;
}

template <class R, class T>
CURVKERN_HD R load(const T* source) {
    if constexpr (is_twin<R>) {
        using V = decltype(R::a);
        return {load<V>(source), load<V>(source + Lanes<V>::width)};
    } else {
        R y;
        __builtin_memcpy(&y, source, sizeof(R));
        return y;
    }
}

template <class R, class T>
CURVKERN_HD void store(T* target, R y) {
    if constexpr (is_twin<R>) {
        store(target, y.a);
        store(target + Lanes<decltype(R::a)>::width, y.b);
    } else {
        __builtin_memcpy(target, &y, sizeof(R));
    }
}

// What the loops know of a function and an order of derivative.
template <class T>
struct Plan {
    using Run = void (*)(const T* v, const T* x, T* const* out, int n, Call<T> call);
    int outputs;
    void (*classify)(const T* v, const T* x, std::uint8_t* code, int n, Bounds<T> bounds);
    Bounds<T> bounds[2];        // plain, scaled
    Run run[region_count];      // edges: any n; the others: whole vectors
    const Plan<double>* wider;  // runs the regions that have no kernel of type T
};

template <Function F, int Order, class T>
void classify(const T* v, const T* x, std::uint8_t* code, int n, Bounds<T> bounds) {
    using R = Vector<T>;
    constexpr int width = Lanes<R>::width;
    alignas(64) T number[block];
    for (int i = 0; i < n; i += width) {
        store(number + i, region_of<F, Order>(load<R>(v + i), load<R>(x + i), bounds));
    }
    for (int i = 0; i < n; ++i) code[i] = static_cast<std::uint8_t>(number[i]);
}

template <Function F, int Order, int Code, class T>
void run_region(const T* v, const T* x, T* const* out, int n, Call<T> call) {
    constexpr bool narrow = is_rare(F, Order, Code) || is_long(F, Order, Code);
    using R = std::conditional_t<Code == edge, T, Wide<T, narrow>>;
    for (int i = 0; i < n; i += Lanes<R>::width) {
        R y[3] = {};
        if constexpr (Code == edge) {
            evaluate_edge<F, Order>(v[i], x[i], call.scale, y);
        } else {
            evaluate<F, Order, Code>(load<R>(v + i), load<R>(x + i), call, y);
        }
        for (int o = 0; o <= Order; ++o) store(out[o] + i, y[o]);
    }
}

template <Function F, int Order, int Code, class T>
constexpr void fill_regions(Plan<T>& plan) {
    if constexpr (Code < region_count) {
        constexpr int formula = formula_of(F, Order, Code);
        constexpr bool narrow = !is_double<T> && Code != edge && is_rare(F, Order, formula);
        if constexpr (has_formula(F, Order, formula) && !narrow) {
            plan.run[Code] = run_region<F, Order, formula, T>;
        }
        fill_regions<F, Order, Code + 1>(plan);
    }
}

template <Function F, int Order, class T>
constexpr Plan<T> make_plan();

template <Function F, int Order, class T>
constexpr Plan<T> plan_of = make_plan<F, Order, T>();

template <Function F, int Order, class T>
constexpr Plan<T> make_plan() {
    constexpr int regions = order_of_regions(F, Order);
    Plan<T> plan{Order + 1,
                 classify<F, regions, T>,
                 {bounds_of<T>(F, Order, 0), bounds_of<T>(F, Order, 1)},
                 {},
                 nullptr};
    fill_regions<F, Order, 0>(plan);
    if constexpr (!is_double<T>) plan.wider = &plan_of<F, Order, double>;
    return plan;
}

// body(v, x, out) on float64 copies of up to a block of float32 numbers
template <class Body>
void widened(const float* v, const float* x, float* const* out, int outputs, int n, Body body) {
    alignas(64) double wide_v[block], wide_x[block], wide_out[3][block];
    for (int i = 0; i < n; ++i) {
        wide_v[i] = v[i];
        wide_x[i] = x[i];
    }
    double* const target[3] = {wide_out[0], wide_out[1], wide_out[2]};
    body(wide_v, wide_x, target);
    for (int o = 0; o < outputs; ++o) {
        for (int i = 0; i < n; ++i) out[o][i] = static_cast<float>(wide_out[o][i]);
    }
}

int count_code(const std::uint8_t* code, int begin, int end, int wanted) {
    int total = 0;
    for (int i = begin; i < end; i += 128) {
        std::uint8_t some = 0;  // as narrow as the codes: a vector holds more of them
        for (int j = i; j < (i + 128 < end ? i + 128 : end); ++j) some += code[j] == wanted;
        total += some;
    }
    return total;
}

// n points of one region, in arrays that are padded to whole vectors
template <class T>
void run_one(const Plan<T>& plan, const T* v, const T* x, T* const* out, int n, Call<T> call) {
    if constexpr (!is_double<T>) {
        if (plan.run[call.region] == nullptr) {
            constexpr int width = Lanes<VectorDouble>::width;  // they take one register
            const int whole = (n + width - 1) / width * width;
            widened(v, x, out, plan.outputs, whole,
                    [&](const double* a, const double* b, auto y) {
                        plan.wider->run[call.region](a, b, y, whole, {call.region, call.scale});
                    });
            return;
        }
    }
    plan.run[call.region](v, x, out, padded<T>(n), call);
}

// Orders n points by region, every region padded to whole vectors, and evaluates them.
template <class T>
void run_sorted(const Plan<T>& plan, const T* v, const T* x, const std::uint8_t* code,
                T* const* out, int n, T scale) {
    constexpr int room = block + region_count * step<T>;
    alignas(64) T sorted_v[room], sorted_x[room], sorted_out[3][room];
    std::int16_t position[block];
    // Four streams advance side by side, each with its own cursors: a cursor that the point
    // before has just moved is not known for some cycles.
    constexpr int streams = 4;
    const int share = n / streams;
    int cursor[streams][region_count], start[region_count];
    int next = 0;
    for (int r = 0; r < region_count; ++r) {
        start[r] = next;
        for (int s = 0; s < streams; ++s) {
            cursor[s][r] = next;
            next += count_code(code, s * share, s + 1 < streams ? (s + 1) * share : n, r);
        }
        next = start[r] + padded<T>(next - start[r]);
    }
    auto place = [&](int i, int s) {
        const int at = cursor[s][code[i]]++;
        position[i] = static_cast<std::int16_t>(at);
        sorted_v[at] = v[i];
        sorted_x[at] = x[i];
    };
    for (int i = 0; i < share; ++i) {
        for (int s = 0; s < streams; ++s) place(s * share + i, s);
    }
    for (int i = streams * share; i < n; ++i) place(i, streams - 1);

    for (int r = 0; r < region_count; ++r) {
        const int from = start[r], end = cursor[streams - 1][r], count = padded<T>(end - from);
        if (count == 0) continue;
        for (int i = end; i < from + count; ++i) {
            sorted_v[i] = sorted_v[from];
            sorted_x[i] = sorted_x[from];
        }
        T* const target[3] = {sorted_out[0] + from, sorted_out[1] + from, sorted_out[2] + from};
        run_one(plan, sorted_v + from, sorted_x + from, target, end - from, {r, scale});
    }
    for (int o = 0; o < plan.outputs; ++o) {
        for (int i = 0; i < n; ++i) out[o][i] = sorted_out[o][position[i]];
    }
}

// The points that do not lie in the common region, picked out of a block and put back.
template <class T>
void run_rest(const Plan<T>& plan, const T* v, const T* x, const std::uint8_t* code, int common,
              T* const* out, int n, T scale) {
    T some_v[block], some_x[block], some_out[3][block];
    std::uint8_t some_code[block];
    std::int16_t index[block];
    int found = 0;
    for (int i = 0; i < n; ++i) {
        index[found] = static_cast<std::int16_t>(i);
        found += code[i] != common;
    }
    for (int i = 0; i < found; ++i) {
        some_v[i] = v[index[i]];
        some_x[i] = x[index[i]];
        some_code[i] = code[index[i]];
    }
    T* const target[3] = {some_out[0], some_out[1], some_out[2]};
    run_sorted(plan, some_v, some_x, some_code, target, found, scale);
    for (int o = 0; o < plan.outputs; ++o) {
        for (int i = 0; i < found; ++i) out[o][index[i]] = some_out[o][i];
    }
}

template <class T>
CURVKERN_SHARED void run_block(const Plan<T>& plan, const T* v, const T* x, T* const* out,
                               int n, T scale) {
    std::uint8_t code[block];
    const bool whole = n % step<T> == 0;
    const Bounds<T> bounds = plan.bounds[scale != 0];
    if (whole) {
        plan.classify(v, x, code, n, bounds);
    } else {
        alignas(64) T padded_v[block] = {}, padded_x[block] = {};
        for (int i = 0; i < n; ++i) {
            padded_v[i] = v[i];
            padded_x[i] = x[i];
        }
        plan.classify(padded_v, padded_x, code, padded<T>(n), bounds);
    }
    // Where most points share a region whose formula has no loop that depends on the data,
    // evaluate all of them in place as if they lay there, then the others once more.
    const int common = code[n / 2], alike = count_code(code, 0, n, common);
    if (!is_straight<T>(common) || !whole || 4 * alike < 3 * n) {
        run_sorted(plan, v, x, code, out, n, scale);
        return;
    }
    run_one(plan, v, x, out, n, {common, scale});
    if (alike < n) run_rest(plan, v, x, code, common, out, n, scale);
}

void run_wide_block(const Plan<double>& plan, const float* v, const float* x, float* const* out,
                    int n, float scale) {
    widened(v, x, out, plan.outputs, n, [&](const double* a, const double* b, auto y) {
        run_block<double>(plan, a, b, y, n, scale);
    });
}

template <Function F, int Order, class T>
void run(const T* v, const T* x, T* const* out, std::int64_t n) {
    // a term linear in x has no second derivative
    const T scale = is_scaled(F) && Order < 2 ? 1 : 0;
    for (std::int64_t i = 0; i < n; i += block) {
        T* const target[3] = {out[0] + i, Order > 0 ? out[1] + i : nullptr,
                              Order > 1 ? out[2] + i : nullptr};
        const int count = static_cast<int>(n - i < block ? n - i : block);
        if constexpr (!is_double<T> && (is_fallback || Order == 2)) {
            run_wide_block(plan_of<plain(F), Order, double>, v + i, x + i, target, count,
                           scale);
        } else {
            run_block(plan_of<plain(F), Order, T>, v + i, x + i, target, count, scale);
        }
    }
}

template <Function F, class T>
void fill(Kernel<T> (&table)[function_count][derivative_orders]) {
    auto& row = table[static_cast<int>(F)];
    row[0] = run<F, 0, T>;
    row[1] = run<F, 1, T>;
    row[2] = run<F, 2, T>;
}

template <class T>
void fill_all(Kernel<T> (&table)[function_count][derivative_orders]) {
    fill<Function::log_iv>(table);
    fill<Function::log_kv>(table);
    fill<Function::log_ive>(table);
    fill<Function::log_kve>(table);
    fill<Function::iv_ratio>(table);
    fill<Function::kv_ratio>(table);
    fill<Function::log_hyp0f1>(table);
    fill<Function::matern>(table);
}

}  // namespace

namespace CURVKERN_ISA_NAMESPACE {
const Kernels& kernels() {
    static const Kernels table = [] {
        Kernels k{};
        fill_all<double>(k.f64);
        fill_all<float>(k.f32);
        return k;
    }();
    return table;
}
}  // namespace CURVKERN_ISA_NAMESPACE

}  // namespace curvkern::bessel
