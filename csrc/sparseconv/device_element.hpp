// Elements as they are stored and as they are summed, loads of several at once, and the end of
// a row: bias, residual and activation. See device_product.hpp for what the kernels wait for.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/block.hpp"
#include "core/element.hpp"
#include "core/math.hpp"
#include "sparseconv/device.hpp"

namespace curvkern::sparseconv::device {
CURVKERN_PER_ISA {

inline std::int64_t divided(std::int64_t a, std::int64_t b) {
    return (a + b - 1) / b;
}
CURVKERN_HD std::int64_t smaller(std::int64_t a, std::int64_t b) {
    return a < b ? a : b;
}

inline constexpr int usual_warps = 8, usual_threads = usual_warps * warp_size;
inline constexpr int widest = 16;                       // bytes of a load
inline constexpr std::int64_t enough_blocks = 4 * 132;  // for the multiprocessors of an H100

// a / b and what remains. Most fit 32 bits, where a GPU divides in a fifth of the time.
struct Quotient {
    std::int64_t value, rest;
};
CURVKERN_HD Quotient divide(std::int64_t a, std::int64_t b) {
    if (((a | b) >> 32) == 0) {
        const auto n = static_cast<std::uint32_t>(a), d = static_cast<std::uint32_t>(b);
        return {n / d, n % d};
    }
    return {a / b, a % b};
}

// What sums of an element are in.
template <class S>
struct Summed {
    using Type = float;
};
template <>
struct Summed<double> {
    using Type = double;
};
template <class S>
using Sum = typename Summed<S>::Type;

// N elements that one load brings, or two where they are 32 bytes.
template <class T, int N>
struct alignas(N * sizeof(T)) [[gnu::may_alias]] Pack {
    T value[N];
};
template <int N, class T>
CURVKERN_HD Pack<T, N> load_pack(const T* source) {
    return *reinterpret_cast<const Pack<T, N>*>(source);
}

// N sums in registers.
template <class A, int N>
struct Sums {
    A value[N] = {};
    CURVKERN_HD A& operator[](int i) { return value[i]; }
    CURVKERN_HD A operator[](int i) const { return value[i]; }
};

// NaN stays NaN.
template <class A>
CURVKERN_HD A activate(A z, Activation activation) {
    const auto clamp = [](A y) { return y < A(0) ? A(0) : y > A(6) ? A(6) : y; };
    switch (activation) {
        case Activation::none:
            return z;
        case Activation::relu:
            return z < A(0) ? A(0) : z;
        case Activation::relu6:
            return clamp(z);
        case Activation::silu:
            return z / (A(1) + exp(-z));
        case Activation::hardswish:
            return z * clamp(z + A(3)) / A(6);
    }
    return z;
}

// row[at] .. row[at + N - 1] = act(z + bias + residual[at] ..)
template <int N, class S, class A>
CURVKERN_HD void finish(const A* z, A bias, const S* residual, S* out, Activation activation) {
    Pack<S, N> y, r;
    if (residual != nullptr) r = load_pack<N>(residual);
    CURVKERN_IN_REGISTERS
    for (int e = 0; e < N; ++e) {
        A sum = z[e] + bias;
        if (residual != nullptr) sum += widened(r.value[e]);
        round_to(activate(sum, activation), &y.value[e]);
    }
    *reinterpret_cast<Pack<S, N>*>(out) = y;
}

// Threads of a block: fewer where there would not be blocks for all multiprocessors. Kernels
// cut their work by threads or warps, so that results are the same.
inline int threads_for(std::int64_t threads) {
    int wanted = usual_threads;
    while (wanted > 2 * warp_size && divided(threads, wanted) < enough_blocks) wanted /= 2;
    return wanted;
}

// run.operator()<S>()
template <class Run>
void with_storage(Storage storage, Run run) {
    switch (storage) {
        case Storage::float64:
            return run.template operator()<double>();
        case Storage::float32:
            return run.template operator()<float>();
        case Storage::bfloat16:
            return run.template operator()<Brain>();
    }
}

// out[q] = sum of partial[q parts ..], rounded: a thread for each, in their order.
template <class S>
struct AddParts {
    static constexpr int threads_at_most = usual_threads, blocks_at_once = 4;
    const double* partial;
    S* out;
    std::int64_t outputs, parts;

    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        block.alone([&](int thread) {
            const std::int64_t q = id * block.threads() + thread;
            if (q >= outputs) return;
            double total = 0;
            for (std::int64_t p = 0; p < parts; ++p) total += partial[p * outputs + q];
            round_to(total, out + q);
        });
    }
};

}  // namespace isa
}  // namespace curvkern::sparseconv::device
