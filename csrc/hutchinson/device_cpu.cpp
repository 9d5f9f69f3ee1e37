// The kernels of the GPU, block after block on the host: what the tests compare with the steps
// of the CPU, for nobody's use.
#include "hutchinson/device_driver.hpp"

namespace curvkern::hutchinson::device {

const Calls& host_calls() {
    return calls_on<HostQueue>;
}

}  // namespace curvkern::hutchinson::device
