// The number type of the formula headers: a scalar (CUDA, and every test by hand) or a SIMD
// vector.
//
// Formulas are templates on R. On the CPU R is a GCC vector type as wide as a register of the
// instruction set, so loops with a uniform trip count and long Horner chains stay in registers
// without asking anything of the auto-vectoriser. On the device R is float or double.
// Operators come from the language; this header adds what it lacks: select, fma, sqrt, bits.
#pragma once

#include <cmath>
#include <cstdint>

#include "hd.hpp"
#if defined(__x86_64__) && !defined(__CUDACC__)
#include <immintrin.h>
#endif

namespace curvkern {
CURVKERN_PER_ISA {

// Bytes in a register of the instruction set this translation unit is compiled for.
#if defined(__AVX512F__)
inline constexpr int register_bytes = 64;
#elif defined(__AVX2__)
inline constexpr int register_bytes = 32;
#else
inline constexpr int register_bytes = 16;
#endif

template <class R>
struct Lanes;  // Scalar: one element; Bits: unsigned integers of its width; width: elements

template <>
struct Lanes<double> {
    using Scalar = double;
    using Bits = std::uint64_t;
    static constexpr int width = 1;
};

template <>
struct Lanes<float> {
    using Scalar = float;
    using Bits = std::uint32_t;
    static constexpr int width = 1;
};

#if defined(__GNUC__) && !defined(__CUDACC__)
typedef double VectorDouble __attribute__((vector_size(register_bytes)));
typedef float VectorFloat __attribute__((vector_size(register_bytes)));
typedef std::uint64_t VectorBits64 __attribute__((vector_size(register_bytes)));
typedef std::uint32_t VectorBits32 __attribute__((vector_size(register_bytes)));

template <>
struct Lanes<VectorDouble> {
    using Scalar = double;
    using Bits = VectorBits64;
    static constexpr int width = register_bytes / 8;
};

template <>
struct Lanes<VectorFloat> {
    using Scalar = float;
    using Bits = VectorBits32;
    static constexpr int width = register_bytes / 4;
};
#endif

template <class R>
using Scalar = typename Lanes<R>::Scalar;
template <class R>
using Bits = typename Lanes<R>::Bits;
template <class R>
inline constexpr bool is_double = sizeof(Scalar<R>) == 8;

// A constant in every lane. Formulas write c<R>(0.5), never a bare double literal.
template <class R>
CURVKERN_HD R c(double value) {
    return R{} + static_cast<Scalar<R>>(value);
}

template <class M, class R>
CURVKERN_HD R select(M mask, R yes, R no) {
    return mask ? yes : no;
}

template <class R>
CURVKERN_HD Bits<R> bits(R x) {
    return __builtin_bit_cast(Bits<R>, x);
}

template <class R>
inline constexpr bool is_twin = false;  // two registers as one number, see twin.hpp

template <class R>
    requires(!is_twin<R>)
CURVKERN_HD R from_bits(Bits<R> x) {
    return __builtin_bit_cast(R, x);
}

template <class R>
CURVKERN_HD R abs(R x) {
    return select(x < c<R>(0), -x, x);
}

template <class R>
CURVKERN_HD R min(R a, R b) {
    return select(b < a, b, a);
}

template <class R>
CURVKERN_HD R max(R a, R b) {
    return select(a < b, b, a);
}

CURVKERN_HD double sqrt(double x) {
    return ::sqrt(x);
}
CURVKERN_HD float sqrt(float x) {
    return ::sqrtf(x);
}

// fma_exact is for error-free transforms only; it exists where the hardware rounds once.
#if defined(__FMA__) || defined(__CUDA_ARCH__)
#define CURVKERN_HAS_FMA 1
CURVKERN_HD double fma_exact(double a, double b, double d) {
    return __builtin_fma(a, b, d);
}
CURVKERN_HD float fma_exact(float a, float b, float d) {
    return __builtin_fmaf(a, b, d);
}
#endif

#if defined(__AVX512F__) && !defined(__CUDACC__)
CURVKERN_HD VectorDouble sqrt(VectorDouble x) {
    return (VectorDouble)_mm512_sqrt_pd((__m512d)x);
}
CURVKERN_HD VectorFloat sqrt(VectorFloat x) {
    return (VectorFloat)_mm512_sqrt_ps((__m512)x);
}
CURVKERN_HD VectorDouble fma_exact(VectorDouble a, VectorDouble b, VectorDouble d) {
    return (VectorDouble)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)d);
}
CURVKERN_HD VectorFloat fma_exact(VectorFloat a, VectorFloat b, VectorFloat d) {
    return (VectorFloat)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)d);
}
#elif defined(__AVX2__) && !defined(__CUDACC__)
CURVKERN_HD VectorDouble sqrt(VectorDouble x) {
    return (VectorDouble)_mm256_sqrt_pd((__m256d)x);
}
CURVKERN_HD VectorFloat sqrt(VectorFloat x) {
    return (VectorFloat)_mm256_sqrt_ps((__m256)x);
}
CURVKERN_HD VectorDouble fma_exact(VectorDouble a, VectorDouble b, VectorDouble d) {
    return (VectorDouble)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)d);
}
CURVKERN_HD VectorFloat fma_exact(VectorFloat a, VectorFloat b, VectorFloat d) {
    return (VectorFloat)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)d);
}
#elif defined(__x86_64__) && !defined(__CUDACC__)
CURVKERN_HD VectorDouble sqrt(VectorDouble x) {
    return (VectorDouble)_mm_sqrt_pd((__m128d)x);
}
CURVKERN_HD VectorFloat sqrt(VectorFloat x) {
    return (VectorFloat)_mm_sqrt_ps((__m128)x);
}
#elif defined(__GNUC__) && !defined(__CUDACC__)
template <class R>
CURVKERN_HD R sqrt(R x) {
    for (int lane = 0; lane < Lanes<R>::width; ++lane) x[lane] = sqrt(x[lane]);
    return x;
}
#endif

// 1/x and 1/sqrt(x) to about an ulp, and 1/x to 2^-12, for x and results that are normal
// numbers (zeros and infinities give NaN). AVX-512 estimates both to 2^-14, and Newton's steps
// from there leave the divider alone: log I of large arguments became 6 % quicker.
template <class R>
CURVKERN_HD R inverse(R x) {
    return c<R>(1) / x;
}
template <class R>
CURVKERN_HD R inverse_sqrt(R x) {
    return c<R>(1) / sqrt(x);
}
template <class R>
CURVKERN_HD R rough_inverse(R x) {
    return c<R>(1) / x;
}
#if defined(__AVX512F__) && !defined(__CUDACC__)
CURVKERN_HD VectorDouble rough_inverse(VectorDouble x) {
    return (VectorDouble)_mm512_rcp14_pd((__m512d)x);
}
CURVKERN_HD VectorFloat rough_inverse(VectorFloat x) {
    return (VectorFloat)_mm512_rcp14_ps((__m512)x);
}
CURVKERN_HD VectorDouble inverse(VectorDouble x) {
    VectorDouble y = rough_inverse(x), rest = c<VectorDouble>(1) - x * y;
    y = y + y * (rest + rest * rest);  // to 2^-42
    return y + y * (c<VectorDouble>(1) - x * y);
}
CURVKERN_HD VectorFloat inverse(VectorFloat x) {
    VectorFloat y = rough_inverse(x);
    return y + y * (c<VectorFloat>(1) - x * y);
}
CURVKERN_HD VectorDouble inverse_sqrt(VectorDouble x) {
    VectorDouble y = (VectorDouble)_mm512_rsqrt14_pd((__m512d)x);
    const auto half = c<VectorDouble>(0.5), three_eighths = c<VectorDouble>(0.375);
    VectorDouble rest = c<VectorDouble>(1) - (x * y) * y;
    y = y + y * (rest * (half + three_eighths * rest));  // to 2^-42
    rest = c<VectorDouble>(1) - (x * y) * y;
    return y + y * (half * rest);
}
CURVKERN_HD VectorFloat inverse_sqrt(VectorFloat x) {
    VectorFloat y = (VectorFloat)_mm512_rsqrt14_ps((__m512)x);
    VectorFloat rest = c<VectorFloat>(1) - (x * y) * y;
    return y + y * (c<VectorFloat>(0.5) * rest);
}
#endif

// Does the condition hold in any lane? The only place where lanes decide together: loop exits.
CURVKERN_HD bool any(bool mask) {
    return mask;
}
#if defined(__GNUC__) && !defined(__CUDACC__)
template <class M>
CURVKERN_HD bool any(M mask) {
    std::uint64_t words[sizeof(M) / 8], folded = 0;
    __builtin_memcpy(words, &mask, sizeof(M));
    for (std::uint64_t word : words) folded |= word;
    return folded != 0;
}
#endif

template <class R>
CURVKERN_HD Scalar<R> largest(R x) {
    if constexpr (Lanes<R>::width == 1) {
        return x;
    } else {
        Scalar<R> top = x[0];
        for (int lane = 1; lane < Lanes<R>::width; ++lane) top = x[lane] > top ? x[lane] : top;
        return top;
    }
}

}  // namespace isa
}  // namespace curvkern
