// One function per family and module; each defines the family's operations in `module`.
#pragma once

#include <pybind11/pybind11.h>

namespace curvkern {

void bind_elementary(pybind11::module_& module);
void bind_bessel(pybind11::module_& module);
void bind_hutchinson(pybind11::module_& module);
void bind_tangents(pybind11::module_& module);
void bind_mfac(pybind11::module_& module);
void bind_sparseconv(pybind11::module_& module);
void bind_sparseconv_chain(pybind11::module_& module);
void bind_sparsemax(pybind11::module_& module);
void bind_sinkhorn_newton(pybind11::module_& module);
void bind_bessel_cuda(pybind11::module_& module);
void bind_sparsemax_cuda(pybind11::module_& module);
void bind_sinkhorn(pybind11::module_& module);

}  // namespace curvkern
