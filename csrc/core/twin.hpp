// Two registers side by side, as one number type.
//
// The formulas are long chains of dependent operations: one vector alone waits for most of the
// time. With Twin every operator issues two independent instructions, so the one fills the
// waits of the other. (A GCC vector of twice the register does not do: GCC 12 splits its
// selections and shifts through memory.)
#pragma once

#include <type_traits>

#include "simd.hpp"

#if defined(__GNUC__) && !defined(__CUDACC__)
namespace curvkern {
CURVKERN_PER_ISA {

template <class V>
struct Twin {
    V a, b;
};

template <class V>
inline constexpr bool is_twin<Twin<V>> = true;

template <class V>
struct Lanes<Twin<V>> {
    using Scalar = typename Lanes<V>::Scalar;
    using Bits = Twin<typename Lanes<V>::Bits>;
    static constexpr int width = 2 * Lanes<V>::width;
};

#define CURVKERN_TWIN_OPERATOR(op)                                 \
    template <class V>                                             \
    CURVKERN_HD auto operator op(Twin<V> x, Twin<V> y) {           \
        return Twin<decltype(x.a op y.a)>{x.a op y.a, x.b op y.b}; \
    }                                                              \
    template <class V, class S>                                    \
        requires std::is_arithmetic_v<S>                           \
    CURVKERN_HD auto operator op(Twin<V> x, S y) {                 \
        return Twin<decltype(x.a op y)>{x.a op y, x.b op y};       \
    }                                                              \
    template <class V, class S>                                    \
        requires std::is_arithmetic_v<S>                           \
    CURVKERN_HD auto operator op(S x, Twin<V> y) {                 \
        return Twin<decltype(x op y.a)>{x op y.a, x op y.b};       \
    }
CURVKERN_TWIN_OPERATOR(+)
CURVKERN_TWIN_OPERATOR(-)
CURVKERN_TWIN_OPERATOR(*)
CURVKERN_TWIN_OPERATOR(/)
CURVKERN_TWIN_OPERATOR(&)
CURVKERN_TWIN_OPERATOR(|)
CURVKERN_TWIN_OPERATOR(<<)
CURVKERN_TWIN_OPERATOR(>>)
CURVKERN_TWIN_OPERATOR(<)
CURVKERN_TWIN_OPERATOR(>)
CURVKERN_TWIN_OPERATOR(<=)
CURVKERN_TWIN_OPERATOR(>=)
CURVKERN_TWIN_OPERATOR(==)
#undef CURVKERN_TWIN_OPERATOR

template <class V>
CURVKERN_HD Twin<V> operator-(Twin<V> x) {
    return {-x.a, -x.b};
}

template <class M, class V>
CURVKERN_HD Twin<V> select(Twin<M> mask, Twin<V> yes, Twin<V> no) {
    return {select(mask.a, yes.a, no.a), select(mask.b, yes.b, no.b)};
}

template <class V>
CURVKERN_HD Bits<Twin<V>> bits(Twin<V> x) {
    return {bits(x.a), bits(x.b)};
}

template <class R>
    requires is_twin<R>
CURVKERN_HD R from_bits(Bits<R> x) {
    using V = decltype(R::a);
    return {from_bits<V>(x.a), from_bits<V>(x.b)};
}

#define CURVKERN_TWIN_FUNCTION(f)      \
    template <class V>                 \
    CURVKERN_HD Twin<V> f(Twin<V> x) { \
        return {f(x.a), f(x.b)};       \
    }
CURVKERN_TWIN_FUNCTION(sqrt)
CURVKERN_TWIN_FUNCTION(inverse)
CURVKERN_TWIN_FUNCTION(inverse_sqrt)
CURVKERN_TWIN_FUNCTION(rough_inverse)
#undef CURVKERN_TWIN_FUNCTION

#if defined(CURVKERN_HAS_FMA)
template <class V>
CURVKERN_HD Twin<V> fma_exact(Twin<V> x, Twin<V> y, Twin<V> z) {
    return {fma_exact(x.a, y.a, z.a), fma_exact(x.b, y.b, z.b)};
}
#endif

template <class M>
CURVKERN_HD bool any(Twin<M> mask) {
    return any(mask.a | mask.b);
}

template <class V>
CURVKERN_HD Scalar<V> largest(Twin<V> x) {
    return largest(max(x.a, x.b));
}

}  // namespace isa
}  // namespace curvkern
#endif
