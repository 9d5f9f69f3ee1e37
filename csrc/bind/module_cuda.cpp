// curvkern._cuda: the operations on CUDA tensors. Loaded on the first CUDA tensor; importing it
// creates no CUDA context. `stream` is the address of the stream to launch on.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include "bind/families.hpp"
#include "bind/hutchinson_device.hpp"
#include "bind/mfac_device.hpp"
#include "bind/sinkhorn_device.hpp"
#include "bind/sparseconv_device.hpp"

PYBIND11_MODULE(_cuda, module) {
    module.def("runtime_version", [] { return CUDART_VERSION; });
    curvkern::bind_bessel_cuda(module);
    curvkern::bind_hutchinson_device(module, curvkern::hutchinson::device::cuda_calls(),
                                     curvkern::dlpack::device_cuda);
    curvkern::bind_mfac_device(module, curvkern::mfac::device::cuda_calls(),
                               curvkern::dlpack::device_cuda);
    curvkern::bind_sparsemax_cuda(module);
    curvkern::bind_sinkhorn_device(module, curvkern::sinkhorn::device::cuda_calls(),
                                   curvkern::dlpack::device_cuda);
    curvkern::bind_sparseconv_device(module, curvkern::sparseconv::device::cuda_calls(),
                                     curvkern::dlpack::device_cuda);
}
