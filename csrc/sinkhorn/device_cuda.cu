#include "core/queue_cuda.hpp"
#include "sinkhorn/device_driver.hpp"

namespace curvkern::sinkhorn::device {

const Calls& cuda_calls() {
    return calls_on<CudaQueue>;
}

}  // namespace curvkern::sinkhorn::device
