// Four registers as one number type: four rows of the cost against one vector of columns.
#pragma once

#include "exp2.hpp"

namespace curvkern::sinkhorn {
CURVKERN_PER_ISA {

template <class A>
using Vector = std::conditional_t<is_double<A>, VectorDouble, VectorFloat>;
template <class A>
inline constexpr int width = Lanes<Vector<A>>::width;

// Nothing below is as wide as its columns are far: psi and b are loaded once for four rows, and
// a column sum is stored once, while four independent chains keep the multipliers busy.
template <class A>
using Quad = Twin<Twin<Vector<A>>>;

template <class V>
CURVKERN_HD Twin<Twin<V>> spread(V v) {
    return {{v, v}, {v, v}};
}

template <class A>
CURVKERN_HD Quad<A> broadcast(const A* rows) {
    using V = Vector<A>;
    return {{V{} + rows[0], V{} + rows[1]}, {V{} + rows[2], V{} + rows[3]}};
}

typedef float HalfFloat __attribute__((vector_size(register_bytes / 2)));

// A vector of A from numbers of type T; `count` of them, the others zero.
template <class A, class T>
CURVKERN_HD Vector<A> load(const T* source) {
    if constexpr (sizeof(A) == sizeof(T)) {
        Vector<A> y;
        __builtin_memcpy(&y, source, sizeof(y));
        return y;
    } else if constexpr (is_double<A>) {
        HalfFloat y;
        __builtin_memcpy(&y, source, sizeof(y));
        return __builtin_convertvector(y, VectorDouble);
    }
}

template <class A, class T>
CURVKERN_HD Vector<A> load(const T* source, std::int64_t count) {
    T part[width<A>] = {};
    for (std::int64_t i = 0; i < count; ++i) part[i] = source[i];
    return load<A>(part);
}

template <class V, class A>
CURVKERN_HD void store(A* target, V y) {
    __builtin_memcpy(target, &y, sizeof(y));
}

template <class V>
CURVKERN_HD double sum_lanes(V v) {
    double total = 0;
    for (int lane = 0; lane < Lanes<V>::width; ++lane) total += static_cast<double>(v[lane]);
    return total;
}

template <class V>
CURVKERN_HD void sum_lanes(Twin<Twin<V>> v, double (&total)[4]) {
    total[0] += sum_lanes(v.a.a);
    total[1] += sum_lanes(v.a.b);
    total[2] += sum_lanes(v.b.a);
    total[3] += sum_lanes(v.b.b);
}

}  // namespace isa
}  // namespace curvkern::sinkhorn
