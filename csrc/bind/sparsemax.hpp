// The arguments of the row projections, checked: the same on both devices.
#pragma once

#include "bind/tensor_view.hpp"

namespace curvkern::sparsemax {

inline void require_float64(const TensorView& view, const char* op, const char* name) {
    if (view.dtype() == Dtype::float64) return;
    throw py::type_error(std::string(op) + ": " + name + " must be float64");
}

inline std::int64_t row_length(const TensorView& view, const char* op, const char* name) {
    if (view.ndim() > 0 && view.shape(view.ndim() - 1) > 0) return view.shape(view.ndim() - 1);
    throw py::value_error(std::string(op) + ": " + name + " has empty rows");
}

struct ProjectArguments {
    TensorView z, mass, p, tau, support;
    std::int64_t n, rows;

    ProjectArguments(const char* op, dlpack::DeviceType device, py::handle z_object,
                     py::handle mass_object, std::int64_t k, py::handle p_object,
                     py::handle tau_object, py::handle support_object)
        : z(z_object, op, "z", device),
          mass(mass_object, op, "mass", device),
          p(p_object, op, "p", device),
          tau(tau_object, op, "tau", device),
          support(support_object, op, "support", device),
          n(row_length(z, op, "z")),
          rows(z.size() / n) {
        p.require_same_dtype(z);
        p.require_same_shape(z);
        require_float64(mass, op, "mass");
        require_float64(tau, op, "tau");
        require_float64(support, op, "support");
        tau.require_same_shape(mass);
        support.require_same_shape(mass);
        for (const TensorView* view : {&mass, &p, &tau, &support}) view->require_same_device(z);
        if (mass.size() != rows) {
            throw py::value_error(std::string(op) + ": z has " + std::to_string(rows) +
                                  " rows but mass has " + std::to_string(mass.size()) +
                                  " entries");
        }
        if (k < 1) {
            throw py::value_error(std::string(op) + ": k must be at least 1, got " +
                                  std::to_string(k));
        }
    }
};

struct JacobianArguments {
    TensorView p, grad, out;
    std::int64_t n, rows;

    JacobianArguments(const char* op, dlpack::DeviceType device, py::handle p_object,
                      py::handle grad_object, py::handle out_object)
        : p(p_object, op, "p", device),
          grad(grad_object, op, "grad", device),
          out(out_object, op, "out", device),
          n(row_length(p, op, "p")),
          rows(p.size() / n) {
        for (const TensorView* view : {&grad, &out}) {
            view->require_same_dtype(p);
            view->require_same_shape(p);
            view->require_same_device(p);
        }
    }
};

}  // namespace curvkern::sparsemax
