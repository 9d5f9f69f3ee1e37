// The CUDA loops: one thread per element, the region chosen per thread.
//
// Warps diverge only where neighbouring elements lie in different regions; arguments that vary
// smoothly, as in practice, rarely do.
#include "bessel/bessel_cuda.hpp"
#include "bessel/edges.hpp"
#include "bessel/functions.hpp"

namespace curvkern::bessel {
namespace {

template <class T>
struct Outputs {
    T* array[derivative_orders];
};

template <Function F, int Order, int Code, class T>
__device__ __noinline__ void evaluate_region(T v, T x, Call<T> call, T* y) {
    evaluate<F, Order, Code>(v, x, call, y);
}

template <Function F, int Order, int Code, class T>
__device__ void evaluate_from(T v, T x, Call<T> call, T* y) {
    if constexpr (Code < region_count) {
        if constexpr (has_formula(F, Order, Code)) {
            if (formula_of(F, Order, call.region) == Code) {
                return evaluate_region<F, Order, Code>(v, x, call, y);
            }
        }
        evaluate_from<F, Order, Code + 1>(v, x, call, y);
    }
}

template <Function F, int Order, class T>
__global__ void bessel_kernel(const T* v, const T* x, Outputs<T> out, std::int64_t n, T scale) {
    const Bounds<T> bounds = bounds_of<T>(F, Order, scale);
    const std::int64_t stride = std::int64_t{blockDim.x} * gridDim.x;
    std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    for (; i < n; i += stride) {
        T y[derivative_orders] = {};
        const int region = static_cast<int>(region_of<F, Order>(v[i], x[i], bounds));
        if (region == edge) {
            evaluate_edge<F, Order>(v[i], x[i], scale, y);
        } else {
            evaluate_from<F, Order, 1>(v[i], x[i], {region, scale}, y);
        }
        for (int o = 0; o <= Order; ++o) out.array[o][i] = y[o];
    }
}

template <Function F, int Order, class T>
cudaError_t launch_one(const T* v, const T* x, T* const* out, std::int64_t n,
                       cudaStream_t stream) {
    Outputs<T> outputs{};
    for (int o = 0; o <= Order; ++o) outputs.array[o] = out[o];
    constexpr int threads = 128;
    const std::int64_t blocks = (n + threads - 1) / threads;
    constexpr std::int64_t most = 1 << 16;
    const auto grid = static_cast<unsigned>(blocks < most ? blocks : most);
    // a term linear in x has no second derivative
    const T scale = is_scaled(F) && Order < 2 ? 1 : 0;
    bessel_kernel<plain(F), Order, T><<<grid, threads, 0, stream>>>(v, x, outputs, n, scale);
    return cudaGetLastError();
}

template <Function F, class T>
cudaError_t launch_order(int order, const T* v, const T* x, T* const* out, std::int64_t n,
                         cudaStream_t stream) {
    if (order == 0) return launch_one<F, 0>(v, x, out, n, stream);
    if (order == 1) return launch_one<F, 1>(v, x, out, n, stream);
    return launch_one<F, 2>(v, x, out, n, stream);
}

}  // namespace

template <class T>
cudaError_t launch(Function function, int order, const T* v, const T* x, T* const* out,
                   std::int64_t n, cudaStream_t stream) {
    switch (function) {
        case Function::log_iv:
            return launch_order<Function::log_iv>(order, v, x, out, n, stream);
        case Function::log_kv:
            return launch_order<Function::log_kv>(order, v, x, out, n, stream);
        case Function::log_ive:
            return launch_order<Function::log_ive>(order, v, x, out, n, stream);
        case Function::log_kve:
            return launch_order<Function::log_kve>(order, v, x, out, n, stream);
        case Function::iv_ratio:
            return launch_order<Function::iv_ratio>(order, v, x, out, n, stream);
        case Function::kv_ratio:
            return launch_order<Function::kv_ratio>(order, v, x, out, n, stream);
        case Function::log_hyp0f1:
            return launch_order<Function::log_hyp0f1>(order, v, x, out, n, stream);
        case Function::matern:
            return launch_order<Function::matern>(order, v, x, out, n, stream);
        case Function::count:
            break;
    }
    return cudaErrorInvalidValue;
}

template cudaError_t launch(Function, int, const double*, const double*, double* const*,
                            std::int64_t, cudaStream_t);
template cudaError_t launch(Function, int, const float*, const float*, float* const*,
                            std::int64_t, cudaStream_t);

}  // namespace curvkern::bessel
