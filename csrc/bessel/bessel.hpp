#pragma once

#include <cstdint>

#include "core/isa.hpp"

namespace curvkern::bessel {

enum class Function { log_iv, log_kv, log_ive, log_kve, iv_ratio, kv_ratio, log_hyp0f1, count };

template <class T>
using Kernel = void (*)(const T* v, const T* x, T* const* out, std::int64_t n);

struct Kernels {
    Kernel<double> f64[7][3];
    Kernel<float> f32[7][3];
};

#define CURVKERN_DECLARE(isa) \
    namespace isa {           \
    const Kernels& kernels(); \
    }
CURVKERN_FOR_EACH_ISA(CURVKERN_DECLARE)
#undef CURVKERN_DECLARE

}  // namespace curvkern::bessel
