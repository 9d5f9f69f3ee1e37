#include "core/queue_cuda.hpp"
#include "sinkhorn/device_driver.hpp"

namespace curvkern::sinkhorn::device {

CURVKERN_DEVICE_PASSES(CudaQueue)

const Calls& cuda_calls() {
    return calls_on<CudaQueue>;
}

}  // namespace curvkern::sinkhorn::device
