// What every binding of a CUDA kernel needs around its launch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace curvkern {

inline void check_cuda(cudaError_t status, const char* op) {
    if (status == cudaSuccess) return;
    throw std::runtime_error(std::string(op) + ": CUDA: " + cudaGetErrorString(status));
}

// A stream from its address, as torch hands it over.
inline cudaStream_t stream_at(std::uintptr_t address) {
    return reinterpret_cast<cudaStream_t>(address);
}

// Makes a device current for a scope.
class DeviceGuard {
  public:
    DeviceGuard(int device, const char* op) {
        check_cuda(cudaGetDevice(&previous_), op);
        changed_ = previous_ != device;
        if (changed_) check_cuda(cudaSetDevice(device), op);
    }
    ~DeviceGuard() {
        if (changed_) cudaSetDevice(previous_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

  private:
    int previous_ = 0;
    bool changed_ = false;
};

}  // namespace curvkern
