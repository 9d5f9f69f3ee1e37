#pragma once

#include <pybind11/pybind11.h>

#include "bind/dlpack.hpp"
#include "hutchinson/device.hpp"

namespace curvkern {

// Defines hutchinson_device_*: the steps in the form of a GPU, on tensors of one kind of
// device.
void bind_hutchinson_device(pybind11::module_& module, const hutchinson::device::Calls& calls,
                            dlpack::DeviceType where);

}  // namespace curvkern
