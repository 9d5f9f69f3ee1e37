#include "core/queue_cuda.hpp"
#include "hutchinson/device_driver.hpp"

namespace curvkern::hutchinson::device {

const Calls& cuda_calls() {
    return calls_on<CudaQueue>;
}

}  // namespace curvkern::hutchinson::device
