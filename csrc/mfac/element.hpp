// One element of a window or a vector, whatever it is stored as, on the host and on the device.
#pragma once

#include <cstdint>

#include "core/hd.hpp"

namespace curvkern::mfac {
CURVKERN_PER_ISA {

struct Brain {  // bfloat16: the upper half of a float32
    std::uint16_t bits;
};

CURVKERN_HD double one(const double* source) {
    return *source;
}
CURVKERN_HD double one(const float* source) {
    return *source;
}
CURVKERN_HD double one(const Brain* source) {
    return __builtin_bit_cast(float, std::uint32_t{source->bits} << 16);
}

CURVKERN_HD void round_to(double x, double* target) {
    *target = x;
}
CURVKERN_HD void round_to(double x, float* target) {
    *target = static_cast<float>(x);
}
// To nearest, ties to even; NaN stays one, whatever its payload. x comes from float32 or is
// rounded to it first, as torch does.
CURVKERN_HD void round_to(double x, Brain* target) {
    const std::uint32_t word = __builtin_bit_cast(std::uint32_t, static_cast<float>(x));
    const std::uint32_t rounded = (word + 0x7fff + (word >> 16 & 1)) >> 16;
    target->bits = static_cast<std::uint16_t>(x == x ? rounded : 0x7fc0);
}

}  // namespace isa
}  // namespace curvkern::mfac
