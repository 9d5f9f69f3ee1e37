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
template <class T>
using TwinOf = Twin<typename VectorOf<T>::type>;

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

// n points of one region; n is padded to whole vectors, the arrays have room for it.
template <Function F, int Order, int Code, class T>
__attribute__((noinline)) void run_region(const T* v, const T* x, T* const* out, int n) {
    using R = TwinOf<T>;
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

template <class T>
inline constexpr int step = Lanes<TwinOf<T>>::width;

template <class T>
constexpr int padded(int n) {
    return (n + step<T> - 1) / step<T> * step<T>;
}

// Points, the codes of their regions, their results.
template <class T>
struct Block {
    alignas(64) T v[block], x[block], out[3][block];
    std::uint8_t code[block];
};

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
template <Function F, int Order, class T>
void run_sorted(const T* v, const T* x, const std::uint8_t* code, T* const* out, int n) {
    static constexpr Dispatch<F, Order, T> dispatch{};
    constexpr int room = block + region_count * step<T>;
    alignas(64) T sorted_v[room], sorted_x[room], sorted_out[3][room];
    std::int16_t position[block];
    // Four streams advance side by side, each with its own cursors: a cursor that the point
    // before has just moved is not known for some cycles.
    constexpr int streams = 4;
    const int share = n / streams;
    int cursor[streams][region_count], start[region_count + 1];
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
        const int from = start[r], end = cursor[streams - 1][r], count = end - from;
        if (count == 0) continue;
        if (r == edge) {
            for (int i = from; i < end; ++i) {
                T y[3];
                evaluate_edge<F, Order>(sorted_v[i], sorted_x[i], y);
                for (int o = 0; o <= Order; ++o) sorted_out[o][i] = y[o];
            }
            continue;
        }
        for (int i = end; i < from + padded<T>(count); ++i) {
            sorted_v[i] = sorted_v[from];
            sorted_x[i] = sorted_x[from];
        }
        T* const target[3] = {sorted_out[0] + from, sorted_out[1] + from, sorted_out[2] + from};
        dispatch.run[r](sorted_v + from, sorted_x + from, target, padded<T>(count));
    }
    for (int o = 0; o <= Order; ++o) {
        for (int i = 0; i < n; ++i) out[o][i] = sorted_out[o][position[i]];
    }
}

template <Function F, int Order, class T>
void run_block(const T* v, const T* x, T* const* out, int n) {
    static constexpr Dispatch<F, Order, T> dispatch{};
    using R = typename VectorOf<T>::type;
    constexpr int width = Lanes<R>::width;
    alignas(64) T number[block];
    std::uint8_t code[block];
    const int whole = n - n % width;
    for (int i = 0; i < whole; i += width) {
        store(number + i, region_of<F, Order>(load<R>(v + i), load<R>(x + i)));
    }
    for (int i = whole; i < n; ++i) number[i] = region_of<F, Order>(v[i], x[i]);
    for (int i = 0; i < n; ++i) code[i] = static_cast<std::uint8_t>(number[i]);

    // Where most points share a Debye region, evaluate all of them in place as if they lay
    // there (no loop of that formula depends on the data), then the others once more.
    const int common = code[n / 2], alike = count_code(code, 0, n, common);
    const bool straight = common == hankel || (common >= debye && common < debye + Limits<T>::tiers);
    if (!straight || n % step<T> != 0 || 4 * alike < 3 * n) {
        run_sorted<F, Order>(v, x, code, out, n);
        return;
    }
    dispatch.run[common](v, x, out, n);
    if (alike == n) return;
    Block<T> rest;
    std::int16_t index[block];
    int found = 0;
    for (int i = 0; i < n; ++i) {
        index[found] = static_cast<std::int16_t>(i);
        found += code[i] != common;
    }
    for (int i = 0; i < found; ++i) {
        rest.v[i] = v[index[i]];
        rest.x[i] = x[index[i]];
        rest.code[i] = code[index[i]];
    }
    T* const target[3] = {rest.out[0], rest.out[1], rest.out[2]};
    run_sorted<F, Order>(rest.v, rest.x, rest.code, target, found);
    for (int o = 0; o <= Order; ++o) {
        for (int i = 0; i < found; ++i) out[o][index[i]] = rest.out[o][i];
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
