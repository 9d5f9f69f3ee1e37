#include "bessel/bessel_cuda.hpp"

namespace curvkern::bessel {
namespace {

template <class T>
__global__ void stand_in(int order, const T* v, const T* x, T* out0, T* out1, T* out2,
                         std::int64_t n) {
    const std::int64_t stride = std::int64_t{blockDim.x} * gridDim.x;
    for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n;
         i += stride) {
        if (order == 0) out0[i] = v[i] * v[i] * x[i] + 2 * x[i];
        if (order == 1) out0[i] = 2 * v[i] * x[i], out1[i] = v[i] * v[i] + 2;
        if (order == 2) out0[i] = 2 * x[i], out1[i] = 2 * v[i], out2[i] = 0;
    }
}

}  // namespace

template <class T>
cudaError_t launch(Function, int order, const T* v, const T* x, T* const* out, std::int64_t n,
                   cudaStream_t stream) {
    stand_in<<<256, 256, 0, stream>>>(order, v, x, out[0], out[1], out[2], n);
    return cudaGetLastError();
}

template cudaError_t launch(Function, int, const double*, const double*, double* const*,
                            std::int64_t, cudaStream_t);
template cudaError_t launch(Function, int, const float*, const float*, float* const*,
                            std::int64_t, cudaStream_t);

}  // namespace curvkern::bessel
