#include "core/queue_cuda.hpp"
#include "sinkhorn/device_newton_driver.hpp"

namespace curvkern::sinkhorn::device {

CURVKERN_DEVICE_NEWTON(CudaQueue)

}  // namespace curvkern::sinkhorn::device
