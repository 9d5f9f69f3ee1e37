// The kernels of the GPU, block after block on the host: what the tests compare with the passes
// of the CPU, for nobody's use.
#include "mfac/device_driver.hpp"

namespace curvkern::mfac::device {

const Calls& host_calls() {
    return calls_on<HostQueue>;
}

}  // namespace curvkern::mfac::device
