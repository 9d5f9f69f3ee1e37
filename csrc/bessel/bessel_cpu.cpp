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
struct VectorOf;
template <>
struct VectorOf<double> {
    using type = VectorDouble;
};
template <>
struct VectorOf<float> {
    using type = VectorFloat;
};

template <class R, class T>
CURVKERN_HD R load(const T* source) {
    R y;
    __builtin_memcpy(&y, source, sizeof(R));
    return y;
}

template <class R, class T>
CURVKERN_HD void store(T* target, R y) {
    __builtin_memcpy(target, &y, sizeof(R));
}

// n points of one region; n is padded to whole vectors, the arrays have room for it.
template <Function F, int Order, int Code, class T>
__attribute__((noinline)) void run_region(const T* v, const T* x, T* const* out, int n) {
    using R = typename VectorOf<T>::type;
    constexpr int width = Lanes<R>::width;
    for (int i = 0; i < n; i += width) {
        R y[3] = {};
        evaluate<F, Order, Code>(load<R>(v + i), load<R>(x + i), y);
        for (int o = 0; o <= Order; ++o) store(out[o] + i, y[o]);
    }
}

template <Function F, int Order, class T>
struct Dispatch {
    using Run = void (*)(const T*, const T*, T* const*, int);
    Run run[region_count];

    constexpr Dispatch() : run{} { fill<1>(); }
    template <int Code>
    constexpr void fill() {
        if constexpr (Code < region_count) {
            run[Code] = run_region<F, Order, Code, T>;
            fill<Code + 1>();
        }
    }
};

template <Function F, int Order, class T>
void run_block(const T* v, const T* x, T* const* out, int n) {
    static constexpr Dispatch<F, Order, T> dispatch{};
    using R = typename VectorOf<T>::type;
    constexpr int width = Lanes<R>::width;
    constexpr int room = block + region_count * width;
    alignas(64) T code[block];
    alignas(64) T sorted_v[room], sorted_x[room], sorted_out[3][room];
    std::int16_t position[block];

    int whole = n - n % width;
    for (int i = 0; i < whole; i += width) {
        store(code + i, region_of<F, Order>(load<R>(v + i), load<R>(x + i)));
    }
    for (int i = whole; i < n; ++i) code[i] = region_of<F, Order>(v[i], x[i]);

    int count[region_count] = {}, start[region_count];
    for (int i = 0; i < n; ++i) ++count[static_cast<int>(code[i])];
    int first = static_cast<int>(code[0]);
    if (count[first] == n && n == whole && first != edge) {
        dispatch.run[first](v, x, out, n);
        return;
    }
    int next = 0;
    for (int r = 0; r < region_count; ++r) {
        start[r] = next;
        next += (count[r] + width - 1) / width * width;
    }
    int cursor[region_count];
    for (int r = 0; r < region_count; ++r) cursor[r] = start[r];
    for (int i = 0; i < n; ++i) {
        int at = cursor[static_cast<int>(code[i])]++;
        position[i] = static_cast<std::int16_t>(at);
        sorted_v[at] = v[i];
        sorted_x[at] = x[i];
    }
    for (int r = 1; r < region_count; ++r) {
        if (count[r] == 0) continue;
        int padded = (count[r] + width - 1) / width * width;
        for (int i = count[r]; i < padded; ++i) {
            sorted_v[start[r] + i] = sorted_v[start[r]];
            sorted_x[start[r] + i] = sorted_x[start[r]];
        }
        T* const target[3] = {sorted_out[0] + start[r], sorted_out[1] + start[r],
                              sorted_out[2] + start[r]};
        dispatch.run[r](sorted_v + start[r], sorted_x + start[r], target, padded);
    }
    for (int i = 0; i < count[edge]; ++i) {
        T y[3];
        evaluate_edge<F, Order>(sorted_v[start[edge] + i], sorted_x[start[edge] + i], y);
        for (int o = 0; o <= Order; ++o) sorted_out[o][start[edge] + i] = y[o];
    }
    for (int o = 0; o <= Order; ++o) {
        for (int i = 0; i < n; ++i) out[o][i] = sorted_out[o][position[i]];
    }
}

template <Function F, int Order, class T>
void run(const T* v, const T* x, T* const* out, std::int64_t n) {
    for (std::int64_t i = 0; i < n; i += block) {
        T* const target[3] = {out[0] + i, Order > 0 ? out[1] + i : nullptr,
                              Order > 1 ? out[2] + i : nullptr};
        run_block<F, Order>(v + i, x + i, target,
                            static_cast<int>(n - i < block ? n - i : block));
    }
}

template <Function F, class T>
void fill(Kernel<T> (&row)[derivative_orders]) {
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
    fill<Function::log_iv, T>(table[0]);
    fill<Function::log_kv, T>(table[1]);
    fill<Function::log_ive, T>(table[2]);
    fill<Function::log_kve, T>(table[3]);
    fill<Function::iv_ratio, T>(table[4]);
    fill<Function::kv_ratio, T>(table[5]);
    fill<Function::log_hyp0f1, T>(table[6]);
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
