// Python names of the log-Bessel operations: [function][derivative order].
#pragma once

#include "bessel/bessel.hpp"

namespace curvkern {

#define CURVKERN_NAMES(name) {#name, #name "_grad", #name "_hess"}
inline constexpr const char* bessel_names[][3] = {
    CURVKERN_NAMES(log_iv),     CURVKERN_NAMES(log_kv),   CURVKERN_NAMES(log_ive),
    CURVKERN_NAMES(log_kve),    CURVKERN_NAMES(iv_ratio), CURVKERN_NAMES(kv_ratio),
    CURVKERN_NAMES(log_hyp0f1), CURVKERN_NAMES(matern)};
#undef CURVKERN_NAMES

inline constexpr int bessel_count = static_cast<int>(bessel::Function::count);
static_assert(sizeof(bessel_names) / sizeof(bessel_names[0]) == bessel_count);

}  // namespace curvkern
