// The functions of math.hpp on arrays, so that their error bounds can be tested per
// instruction set.
#pragma once

#include <cstdint>

#include "core/isa.hpp"

namespace curvkern::elementary {

inline constexpr const char* names[] = {"exp", "expm1", "log", "log1p", "lgamma"};
inline constexpr int count = 5;

struct Functions {
    void (*f64[count])(const double* x, double* out, std::int64_t n);
    void (*f32[count])(const float* x, float* out, std::int64_t n);
};

#define CURVKERN_DECLARE(isa)     \
    namespace isa {               \
    const Functions& functions(); \
    }
CURVKERN_FOR_EACH_ISA(CURVKERN_DECLARE)
#undef CURVKERN_DECLARE

}  // namespace curvkern::elementary
