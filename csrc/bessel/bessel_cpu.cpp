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

int count_code(const std::uint8_t* code, int n, std::uint8_t wanted) {
    int total = 0;
    for (int i = 0; i < n; i += 128) {
        std::uint8_t some = 0;  // as narrow as the codes: a vector holds more of them
        for (int j = i; j < (i + 128 < n ? i + 128 : n); ++j) {
            some = static_cast<std::uint8_t>(some + (code[j] == wanted ? 1 : 0));
        }
        total += some;
    }
    return total;
}

// Bit r: is there a code r?
std::uint32_t present_codes(const std::uint8_t* code, int n) {
    std::uint32_t present = 0;
    for (int i = 0; i < n; ++i) present |= std::uint32_t{1} << code[i];
    return present;
}

// n points of one region, in arrays that are padded to whole vectors
template <class T>
void run_one(const Plan<T>& plan, const T* v, const T* x, T* const* out, int n, Call<T> call) {
    if (plan.run[call.region] != nullptr) {
        plan.run[call.region](v, x, out, padded<T>(n), call);
        return;
    }
    if constexpr (!is_double<T>) {
        constexpr int width = Lanes<VectorDouble>::width;  // they take one register
        for (int from = 0; from < n; from += block) {
            const int count = n - from < block ? n - from : block;
            const int whole = (count + width - 1) / width * width;
            T* const target[3] = {out[0] + from, out[1] + from, out[2] + from};
            widened(v + from, x + from, target, plan.outputs, whole,
                    [&](const double* a, const double* b, auto y) {
                        plan.wider->run[call.region](a, b, y, whole, {call.region, call.scale});
                    });
        }
    }
}

// Points that wait until there are enough of them to be sorted by region.
template <class T>
struct Waiting {
    int count = 0;
    T v[2 * block], x[2 * block];
    std::uint8_t code[2 * block];
    std::int32_t place[2 * block];  // where their results belong
};

// The indices of the points with a code, in order: at index and, as rubbish, up to 15 behind
// them. Reads whole 16 codes.
int collect(const std::uint8_t* code, int n, int wanted, std::int32_t* index) {
    int found = 0;
#if defined(__AVX512BW__)
    const __m128i all = _mm_set1_epi8(static_cast<char>(wanted));
    __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int i = 0; i < n; i += 16) {
        const __m128i some = _mm_loadu_si128(reinterpret_cast<const __m128i*>(code + i));
        __mmask16 mask = _mm_cmpeq_epi8_mask(some, all);
        if (n - i < 16) mask &= static_cast<__mmask16>((1 << (n - i)) - 1);
        _mm512_storeu_si512(index + found, _mm512_maskz_compress_epi32(mask, lane));
        lane = _mm512_add_epi32(lane, _mm512_set1_epi32(16));
        found += __builtin_popcount(mask);
    }
#else
    for (int i = 0; i < n; ++i) {
        index[found] = i;
        found += code[i] == wanted;
    }
#endif
    return found;
}

// Evaluates up to two blocks of points region by region, each filled up to whole vectors with
// its first point, and puts their results where `place` tells, or in order.
template <class T>
CURVKERN_SHARED void run_sorted(const Plan<T>& plan, const T* v, const T* x,
                                const std::uint8_t* code, const std::int32_t* place,
                                T* const* out, int n, T scale) {
    constexpr int room = 2 * block + step<T>;
    alignas(64) T some_v[room], some_x[room], result[3][room];
    T* const target[3] = {result[0], result[1], result[2]};
    std::int32_t index[room + 16];
    const std::uint32_t present = present_codes(code, n);
    for (int r = 0; r < region_count; ++r) {
        if ((present >> r & 1) == 0) continue;
        const int count = collect(code, n, r, index), whole = padded<T>(count);
        for (int i = count; i < whole; ++i) index[i] = index[0];
        for (int i = 0; i < whole; ++i) {
            some_v[i] = v[index[i]];
            some_x[i] = x[index[i]];
        }
        run_one(plan, some_v, some_x, target, count, {r, scale});
        if (place != nullptr) {
            for (int i = 0; i < count; ++i) index[i] = place[index[i]];
        }
        for (int o = 0; o < plan.outputs; ++o) {
            for (int i = 0; i < count; ++i) out[o][index[i]] = result[o][i];
        }
    }
}

// The codes of n points. (A whole number of vectors is read.)
template <class T>
void classify_block(const Plan<T>& plan, const T* v, const T* x, std::uint8_t* code, int n,
                    Bounds<T> bounds) {
    if (n % step<T> == 0) return plan.classify(v, x, code, n, bounds);
    alignas(64) T padded_v[block] = {}, padded_x[block] = {};
    for (int i = 0; i < n; ++i) {
        padded_v[i] = v[i];
        padded_x[i] = x[i];
    }
    plan.classify(padded_v, padded_x, code, padded<T>(n), bounds);
}

template <class T>
void wait(Waiting<T>& waiting, const T* v, const T* x, const std::uint8_t* code, int common,
          int from, int n) {
    const int before = waiting.count;
    int found = before;
    for (int i = 0; i < n; ++i) {
        waiting.place[found] = from + i;
        found += code[i] != common;
    }
    for (int i = before; i < found; ++i) {
        const int at = waiting.place[i] - from;
        waiting.v[i] = v[at];
        waiting.x[i] = x[at];
        waiting.code[i] = code[at];
    }
    waiting.count = found;
}

// Up to a block of points, whose results begin at out + from. Where most of them share a region
// whose formula has no loop that depends on the data, all are evaluated in place as if they lay
// there, and the others wait to be evaluated once more.
template <class T>
CURVKERN_SHARED void run_block(const Plan<T>& plan, const T* v, const T* x, T* const* out,
                               int from, int n, T scale, Waiting<T>& waiting) {
    std::uint8_t code[block];
    classify_block(plan, v, x, code, n, plan.bounds[scale != 0]);
    T* const target[3] = {out[0] + from, plan.outputs > 1 ? out[1] + from : nullptr,
                          plan.outputs > 2 ? out[2] + from : nullptr};
    const std::uint8_t common = code[n / 2];
    const int alike = count_code(code, n, common);
    if (!is_straight<T>(common) || n % step<T> != 0 || 4 * alike < 3 * n) {
        run_sorted<T>(plan, v, x, code, nullptr, target, n, scale);
        return;
    }
    run_one(plan, v, x, target, n, {common, scale});
    if (alike < n) wait(waiting, v, x, code, common, from, n);
}

// Any number of points, block after block.
template <class T>
CURVKERN_SHARED void run_points(const Plan<T>& plan, const T* v, const T* x, T* const* out,
                                int n, T scale) {
    Waiting<T> some;
    for (int from = 0; from < n; from += block) {
        const int count = n - from < block ? n - from : block;
        run_block(plan, v + from, x + from, out, from, count, scale, some);
        if (some.count > block || from + block >= n) {
            run_sorted(plan, some.v, some.x, some.code, some.place, out, some.count, scale);
            some.count = 0;
        }
    }
}

template <Function F, int Order, class T>
void run(const T* v, const T* x, T* const* out, std::int64_t n) {
    // a term linear in x has no second derivative
    const T scale = is_scaled(F) && Order < 2 ? 1 : 0;
    constexpr bool wide = !is_double<T> && (is_fallback || Order == 2);
    constexpr int span = wide ? block : 1 << 16;
    for (std::int64_t i = 0; i < n; i += span) {
        T* const target[3] = {out[0] + i, Order > 0 ? out[1] + i : nullptr,
                              Order > 1 ? out[2] + i : nullptr};
        const int count = static_cast<int>(n - i < span ? n - i : span);
        if constexpr (wide) {
            const Plan<double>& plan = plan_of<plain(F), Order, double>;
            widened(v + i, x + i, target, plan.outputs, count,
                    [&](const double* a, const double* b, auto y) {
                        run_points<double>(plan, a, b, y, count, scale);
                    });
        } else {
            run_points(plan_of<plain(F), Order, T>, v + i, x + i, target, count, scale);
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
