// The kernels of the GPU, block after block on the host: what the tests compare with plain
// formulas, for nobody's use.
#include "sparseconv/device_driver.hpp"

namespace curvkern::sparseconv::device {

const Calls& host_calls() {
    return calls_on<HostQueue>;
}

}  // namespace curvkern::sparseconv::device
