#include "core/queue_cuda.hpp"
#include "mfac/device_driver.hpp"

namespace curvkern::mfac::device {

const Calls& cuda_calls() {
    return calls_on<CudaQueue>;
}

}  // namespace curvkern::mfac::device
