// The tensors of a call of the transport family, and the names of its costs.
#pragma once

#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "bind/tensor_view.hpp"
#include "sinkhorn/sinkhorn.hpp"

namespace curvkern::sinkhorn {

// All on one device, each checked for its shape and kept until the call is over.
class Tensors {
  public:
    explicit Tensors(const char* op, dlpack::DeviceType where = dlpack::device_cpu)
        : op_(op), where_(where) {}

    const TensorView& any(py::handle object, const char* name) {
        views_.push_back(std::make_unique<TensorView>(object, op_, name, where_));
        views_.back()->require_same_device(*views_.front());
        return *views_.back();
    }

    const TensorView& ranked(py::handle object, const char* name, int dimensions) {
        const TensorView& view = any(object, name);
        if (view.ndim() == dimensions) return view;
        throw py::value_error(label(name) + " must have " + std::to_string(dimensions) +
                              " dimensions, got " + std::to_string(view.ndim()));
    }

    const TensorView& shaped(py::handle object, const char* name,
                             std::initializer_list<std::int64_t> shape) {
        const TensorView& view = any(object, name);
        std::vector<std::int64_t> got;
        for (int axis = 0; axis < view.ndim(); ++axis) got.push_back(view.shape(axis));
        if (got == std::vector<std::int64_t>(shape)) return view;
        throw py::value_error(label(name) + " must have shape (" + joined(shape) + "), got (" +
                              joined(got) + ")");
    }

    double* float64(py::handle object, const char* name,
                    std::initializer_list<std::int64_t> shape) {
        return data(shaped(object, name, shape), name);
    }

    double* optional(py::handle object, const char* name,
                     std::initializer_list<std::int64_t> shape) {
        return object.is_none() ? nullptr : float64(object, name, shape);
    }

    double* workspace(py::handle object, std::int64_t needed) {
        const TensorView& view = any(object, "workspace");
        if (view.size() < needed) {
            throw py::value_error(label("workspace") + " must have at least " +
                                  std::to_string(needed) + " elements, got " +
                                  std::to_string(view.size()));
        }
        return data(view, "workspace");
    }

    double* data(const TensorView& view, const char* name) const {
        if (view.dtype() == Dtype::float64) return view.view<double>().data;
        throw py::type_error(label(name) + " must be float64");
    }

    int device_id() const { return views_.front()->device_id(); }

  private:
    std::string label(const char* name) const { return std::string(op_) + ": " + name; }

    template <class Sizes>
    static std::string joined(const Sizes& sizes) {
        std::string text;
        for (const std::int64_t size : sizes) {
            text += (text.empty() ? "" : ", ") + std::to_string(size);
        }
        return text;
    }

    const char* op_;
    dlpack::DeviceType where_;
    std::vector<std::unique_ptr<TensorView>> views_;
};

// Of points; a factor of the name's own goes to `scale`.
inline Cost points_cost(const std::string& name, double& scale) {
    if (name == "half_sqeuclidean") scale *= 0.5;
    if (name == "sqeuclidean" || name == "half_sqeuclidean") return Cost::sqeuclidean;
    if (name == "euclidean") return Cost::euclidean;
    if (name == "l1") return Cost::l1;
    throw py::value_error(
        "sinkhorn: cost must be one of sqeuclidean, half_sqeuclidean, euclidean, l1, got '" +
        name + "'");
}

}  // namespace curvkern::sinkhorn
