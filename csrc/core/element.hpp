// An element of a tensor: as it is stored, as it is computed with, and back, on the host and on
// the device. bfloat16 is computed in float32.
#pragma once

#include <cstdint>

#include "core/hd.hpp"

namespace curvkern {
CURVKERN_PER_ISA {

struct Brain {  // bfloat16: the upper half of a float32
    std::uint16_t bits;
};

CURVKERN_HD double widened(double x) {
    return x;
}
CURVKERN_HD float widened(float x) {
    return x;
}
CURVKERN_HD float widened(Brain x) {
    return __builtin_bit_cast(float, std::uint32_t{x.bits} << 16);
}

CURVKERN_HD void round_to(double x, double* target) {
    *target = x;
}
CURVKERN_HD void round_to(double x, float* target) {
    *target = static_cast<float>(x);
}
CURVKERN_HD void round_to(float x, float* target) {
    *target = x;
}
// To nearest, ties to even, as torch rounds. NaN stays one, whatever its payload: adding to it
// could make it a zero.
CURVKERN_HD void round_to(float x, Brain* target) {
    const std::uint32_t word = __builtin_bit_cast(std::uint32_t, x);
    const std::uint32_t rounded = (word + 0x7fff + (word >> 16 & 1)) >> 16;
    target->bits = static_cast<std::uint16_t>(x == x ? rounded : 0x7fc0);
}
// By way of float32, as torch does.
CURVKERN_HD void round_to(double x, Brain* target) {
    round_to(static_cast<float>(x), target);
}

}  // namespace isa
}  // namespace curvkern
