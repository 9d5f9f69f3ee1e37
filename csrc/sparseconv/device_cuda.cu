#include "core/queue_cuda.hpp"
#include "sparseconv/device_driver.hpp"

namespace curvkern::sparseconv::device {

const Calls& cuda_calls() {
    return calls_on<CudaQueue>;
}

}  // namespace curvkern::sparseconv::device
