// What the log-Bessel family offers to the binding layer: a table of kernels per instruction
// set.
#pragma once

#include <cstdint>

#include "core/isa.hpp"

namespace curvkern::bessel {

enum class Function {
    log_iv,
    log_kv,
    log_ive,
    log_kve,
    iv_ratio,
    kv_ratio,
    log_hyp0f1,
    matern,
    count
};

inline constexpr int function_count = static_cast<int>(Function::count);
inline constexpr int derivative_orders = 3;

// Evaluates v[i], x[i] for i < n. out has 1 array at order 0 (value), 2 at order 1 (d/dv,
// d/dx), 3 at order 2 (d2/dv2, d2/dvdx, d2/dx2).
template <class T>
using Kernel = void (*)(const T* v, const T* x, T* const* out, std::int64_t n);

struct Kernels {
    Kernel<double> f64[function_count][derivative_orders];
    Kernel<float> f32[function_count][derivative_orders];
};

#define CURVKERN_DECLARE(isa) \
    namespace isa {           \
    const Kernels& kernels(); \
    }
CURVKERN_FOR_EACH_ISA(CURVKERN_DECLARE)
#undef CURVKERN_DECLARE

}  // namespace curvkern::bessel
