#pragma once

#include <pybind11/pybind11.h>

#include "bind/dlpack.hpp"
#include "mfac/device.hpp"

namespace curvkern {

// Defines mfac_device_*: the passes over a window in the form of a GPU, on tensors of one kind
// of device.
void bind_mfac_device(pybind11::module_& module, const mfac::device::Calls& calls,
                      dlpack::DeviceType where);

}  // namespace curvkern
