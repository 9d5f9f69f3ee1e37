#pragma once

#include <pybind11/pybind11.h>

#include "bind/dlpack.hpp"
#include "sinkhorn/device.hpp"

namespace curvkern {

// Defines sinkhorn_device_*: the transport operations in the form of a GPU, on tensors of one
// kind of device.
void bind_sinkhorn_device(pybind11::module_& module, const sinkhorn::device::Calls& calls,
                          dlpack::DeviceType where);

}  // namespace curvkern
