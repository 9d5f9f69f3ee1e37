#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace curvkern::sparsemax {

template <class T>
cudaError_t launch_project(const T* z, const double* mass, std::int64_t k, T* p, double* tau,
                           double* support, std::int64_t rows, std::int64_t n,
                           cudaStream_t stream);

template <class T>
cudaError_t launch_jacobian(const T* p, const T* grad, T* out, std::int64_t rows,
                            std::int64_t n, cudaStream_t stream);

}  // namespace curvkern::sparsemax
