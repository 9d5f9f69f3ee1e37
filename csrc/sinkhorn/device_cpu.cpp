// The kernels of the GPU, block after block on the host: what the tests compare with the
// solvers of the CPU, for nobody's use.
#include "sinkhorn/device_driver.hpp"

namespace curvkern::sinkhorn::device {

CURVKERN_DEVICE_PASSES(HostQueue)

const Calls& host_calls() {
    return calls_on<HostQueue>;
}

}  // namespace curvkern::sinkhorn::device
