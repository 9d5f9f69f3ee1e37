// The CPU loops: sort a block of points by region, evaluate each region on full vectors.
//
// Compiled once per instruction set with CURVKERN_ISA_NAMESPACE = v2, v3, v4. Everything here
// but kernels() has internal linkage or is always inlined, so no symbol can leak between the
// builds.
#include "edges.hpp"
#include "functions.hpp"

namespace curvkern::bessel {
namespace {

constexpr int block = 512;

template <class T>
using Vector = std::conditional_t<is_double<T>, VectorDouble, VectorFloat>;
// Second derivatives are rarely in a hot loop: one register at a time is half the code.
template <class T, int Order>
using Wide = std::conditional_t<Order == 2, Vector<T>, Twin<Vector<T>>>;
template <class T>
inline constexpr int step = Lanes<Wide<T, 0>>::width;

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
    using Run = void (*)(const T* v, const T* x, T* const* out, int n);
    int outputs;
    void (*classify)(const T* v, const T* x, std::uint8_t* code, int n);
    Run run[region_count];  // edges: any n; the others: whole vectors
};

template <Function F, int Order, class T>
void classify(const T* v, const T* x, std::uint8_t* code, int n) {
    using R = Vector<T>;
    constexpr int width = Lanes<R>::width;
    alignas(64) T number[block];
    const int whole = n - n % width;
    for (int i = 0; i < whole; i += width) {
        store(number + i, region_of<F, Order>(load<R>(v + i), load<R>(x + i)));
    }
    for (int i = whole; i < n; ++i) number[i] = region_of<F, Order>(v[i], x[i]);
    for (int i = 0; i < n; ++i) code[i] = static_cast<std::uint8_t>(number[i]);
}

template <Function F, int Order, int Code, class T>
void run_region(const T* v, const T* x, T* const* out, int n) {
    using R = std::conditional_t<Code == edge, T, Wide<T, Order>>;
    for (int i = 0; i < n; i += Lanes<R>::width) {
        R y[3] = {};
        if constexpr (Code == edge) {
            evaluate_edge<F, Order>(v[i], x[i], y);
        } else {
            evaluate<F, Order, Code>(load<R>(v + i), load<R>(x + i), y);
        }
        for (int o = 0; o <= Order; ++o) store(out[o] + i, y[o]);
    }
}

template <Function F, int Order, int Code, class T>
constexpr void fill_regions(Plan<T>& plan) {
    if constexpr (Code < region_count) {
        plan.run[Code] = run_region<F, Order, Code, T>;
        fill_regions<F, Order, Code + 1>(plan);
    }
}

template <Function F, int Order, class T>
constexpr Plan<T> make_plan() {
    Plan<T> plan{Order + 1, classify<F, Order, T>, {}};
    fill_regions<F, Order, 0>(plan);
    return plan;
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

// Orders n points by region, every region padded to whole vectors, and evaluates them.
template <class T>
void run_sorted(const Plan<T>& plan, const T* v, const T* x, const std::uint8_t* code,
                T* const* out, int n) {
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
        plan.run[r](sorted_v + from, sorted_x + from, target, count);
    }
    for (int o = 0; o < plan.outputs; ++o) {
        for (int i = 0; i < n; ++i) out[o][i] = sorted_out[o][position[i]];
    }
}

// The points that do not lie in the common region, picked out of a block and put back.
template <class T>
void run_rest(const Plan<T>& plan, const T* v, const T* x, const std::uint8_t* code, int common,
              T* const* out, int n) {
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
    run_sorted(plan, some_v, some_x, some_code, target, found);
    for (int o = 0; o < plan.outputs; ++o) {
        for (int i = 0; i < found; ++i) out[o][index[i]] = some_out[o][i];
    }
}

template <class T>
void run_block(const Plan<T>& plan, const T* v, const T* x, T* const* out, int n) {
    std::uint8_t code[block];
    plan.classify(v, x, code, n);
    // Where most points share a region whose formula has no loop that depends on the data,
    // evaluate all of them in place as if they lay there, then the others once more.
    const int common = code[n / 2], alike = count_code(code, 0, n, common);
    if (!is_straight<T>(common) || n % step<T> != 0 || 4 * alike < 3 * n) {
        run_sorted(plan, v, x, code, out, n);
        return;
    }
    plan.run[common](v, x, out, n);
    if (alike < n) run_rest(plan, v, x, code, common, out, n);
}

template <Function F, int Order, class T>
void run(const T* v, const T* x, T* const* out, std::int64_t n) {
    static constexpr Plan<T> plan = make_plan<F, Order, T>();
    for (std::int64_t i = 0; i < n; i += block) {
        T* const target[3] = {out[0] + i, Order > 0 ? out[1] + i : nullptr,
                              Order > 1 ? out[2] + i : nullptr};
        run_block(plan, v + i, x + i, target, static_cast<int>(n - i < block ? n - i : block));
    }
}

template <Function F, class T>
void fill(Kernel<T> (&table)[function_count][derivative_orders]) {
    auto& row = table[static_cast<int>(F)];
    row[0] = run<F, 0, T>;
    row[1] = run<F, 1, T>;
    // a term linear in x has no second derivative: the scaled functions share the kernels
    constexpr Function plain = F == Function::log_ive   ? Function::log_iv
                               : F == Function::log_kve ? Function::log_kv
                                                        : F;
    row[2] = run<plain, 2, T>;
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
