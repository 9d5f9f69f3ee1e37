// The kernels of Newton steps, block after block on the host: for tests alone.
#include "sinkhorn/device_newton_driver.hpp"

namespace curvkern::sinkhorn::device {

CURVKERN_DEVICE_NEWTON(HostQueue)

}  // namespace curvkern::sinkhorn::device
