// Elements as registers of the type that is computed in: float64 of float64, float32 of float32
// and bfloat16. Included by sources that are compiled once per instruction set.
#pragma once

#include "core/element.hpp"
#include "core/simd.hpp"

namespace curvkern::hutchinson {
CURVKERN_PER_ISA {

template <class S>
struct Computed {  // of a storage: registers, and the state's elements
    using R = VectorFloat;
    using State = float;
};
template <>
struct Computed<double> {
    using R = VectorDouble;
    using State = double;
};

typedef std::uint16_t Halves __attribute__((vector_size(register_bytes / 2)));

// `count` elements, the rest of the register is zero; all of it where count is its width.
template <class R, class S>
CURVKERN_HD R load(const S* source, std::int64_t count = Lanes<R>::width) {
    R y = {};
    if (count == Lanes<R>::width) {
        __builtin_memcpy(&y, source, sizeof(R));
    } else {
        __builtin_memcpy(&y, source, sizeof(S) * static_cast<std::size_t>(count));
    }
    return y;
}
template <class R>
CURVKERN_HD R load(const Brain* source, std::int64_t count = Lanes<R>::width) {
    Halves halves = {};
    if (count == Lanes<R>::width) {
        __builtin_memcpy(&halves, source, sizeof(halves));
    } else {
        __builtin_memcpy(&halves, source, sizeof(Brain) * static_cast<std::size_t>(count));
    }
#if defined(__AVX512F__)
    return (R)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)halves), 16);
#elif defined(__AVX2__)
    return (R)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)halves), 16);
#else
    return __builtin_bit_cast(R, __builtin_convertvector(halves, VectorBits32) << 16);
#endif
}

template <class R, class S>
CURVKERN_HD void store(S* target, R y, std::int64_t count = Lanes<R>::width) {
    if (count == Lanes<R>::width) {
        __builtin_memcpy(target, &y, sizeof(R));
    } else {
        __builtin_memcpy(target, &y, sizeof(S) * static_cast<std::size_t>(count));
    }
}
// To nearest, ties to even, as torch rounds; NaN stays one.
template <class R>
CURVKERN_HD void store(Brain* target, R y, std::int64_t count = Lanes<R>::width) {
    const VectorBits32 word = __builtin_bit_cast(VectorBits32, y);
    VectorBits32 rounded = (word + 0x7fff + (word >> 16 & 1)) >> 16;
    rounded = y == y ? rounded : VectorBits32{} + 0x7fc0;
    const Halves halves = __builtin_convertvector(rounded, Halves);
    if (count == Lanes<R>::width) {
        __builtin_memcpy(target, &halves, sizeof(halves));
    } else {
        __builtin_memcpy(target, &halves, sizeof(Brain) * static_cast<std::size_t>(count));
    }
}

// visit(start, count) for registers of `size` elements; the last may be a part of one.
template <class R, class Visit>
CURVKERN_HD void for_registers(std::int64_t size, Visit visit) {
    constexpr std::int64_t width = Lanes<R>::width;
    std::int64_t i = 0;
    for (; i + width <= size; i += width) visit(i, width);
    if (i < size) visit(i, size - i);
}

}  // namespace isa
}  // namespace curvkern::hutchinson
