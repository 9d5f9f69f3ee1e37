#pragma once

#include <cuda_runtime_api.h>

#include "bessel/bessel.hpp"

namespace curvkern::bessel {

template <class T>
cudaError_t launch(Function function, int order, const T* v, const T* x, T* const* out,
                   std::int64_t n, cudaStream_t stream);

}  // namespace curvkern::bessel
