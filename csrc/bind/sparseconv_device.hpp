#pragma once

#include <pybind11/pybind11.h>

#include "bind/dlpack.hpp"
#include "sparseconv/device.hpp"

namespace curvkern {

// Defines sparseconv_device_*: convolutions in the form of a GPU, on tensors of one kind of
// device.
void bind_sparseconv_device(pybind11::module_& module, const sparseconv::device::Calls& calls,
                            dlpack::DeviceType where);

}  // namespace curvkern
