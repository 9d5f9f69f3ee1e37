// Kernels on a CUDA stream; see queue.hpp.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "bind/cuda_call.hpp"
#include "core/queue.hpp"

namespace curvkern {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::threads_at_most, Kernel::blocks_at_once)
    run_kernel(const Kernel kernel, std::int64_t blocks) {
    extern __shared__ __align__(16) double shared[];
    Block block(shared);
    for (std::int64_t id = blockIdx.x; id < blocks; id += gridDim.x) {
        kernel(block, id);
        __syncthreads();  // before the next one uses the shared memory
    }
}

class CudaQueue {
  public:
    CudaQueue(const Place& place, const char* op)
        : guard_(place.device, op), stream_(stream_at(place.stream)), op_(op) {
        int bytes;
        check_cuda(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                          place.device),
                   op);
        shared_limit_ = (bytes - reserved_bytes) / static_cast<int>(sizeof(double));
    }

    std::int64_t shared_limit() const { return shared_limit_; }

    template <class Kernel>
    void run(const Kernel& kernel, std::int64_t blocks, int threads, std::int64_t shared = 0) {
        if (blocks == 0) return;
        const auto bytes = static_cast<int>(shared * static_cast<std::int64_t>(sizeof(double)));
        if (bytes > ordinary_bytes) {
            check_cuda(cudaFuncSetAttribute(run_kernel<Kernel>,
                                            cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                       op_);
        }
        const auto grid = static_cast<unsigned>(std::min(blocks, most_blocks));
        run_kernel<Kernel><<<grid, threads, bytes, stream_>>>(kernel, blocks);
        check_cuda(cudaGetLastError(), op_);
    }

    // Whether all kernels so far have ended.
    bool is_idle() const {
        const cudaError_t status = cudaStreamQuery(stream_);
        if (status != cudaErrorNotReady) {
            check_cuda(status, op_);
            return true;
        }
        static_cast<void>(cudaGetLastError());  // which remembers it, as if it were an error
        return false;
    }

    template <class T>
    void read(T* target, const T* source, std::int64_t count) {
        check_cuda(
            cudaMemcpyAsync(target, source, count * sizeof(T), cudaMemcpyDeviceToHost, stream_),
            op_);
        check_cuda(cudaStreamSynchronize(stream_), op_);
    }

    template <class T>
    void write(T* target, const T* source, std::int64_t count) {
        check_cuda(
            cudaMemcpyAsync(target, source, count * sizeof(T), cudaMemcpyHostToDevice, stream_),
            op_);
        check_cuda(cudaStreamSynchronize(stream_), op_);
    }

  private:
    // What a block needs beside: the reductions'. Beyond `ordinary` a kernel has to ask.
    static constexpr int reserved_bytes = 4096, ordinary_bytes = 40 * 1024;
    static constexpr std::int64_t most_blocks = (std::int64_t{1} << 31) - 1;

    DeviceGuard guard_;
    cudaStream_t stream_;
    const char* op_;
    std::int64_t shared_limit_ = 0;
};

}  // namespace curvkern
