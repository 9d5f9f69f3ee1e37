// The one place where an argument that should be a tensor is checked: kind, dtype, device,
// contiguity. How the shapes of several arguments relate is the binding's business.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "bind/dlpack.hpp"
#include "core/span.hpp"

namespace curvkern {

namespace py = pybind11;

enum class Dtype { float32, float64, bfloat16 };

// Whether all elements of a tensor follow each other, or those of each row of a matrix, as in
// some columns of a wider one; rows do not overlap.
enum class Layout { contiguous, rows };

// A float32 or float64 tensor on the wanted device, bfloat16 where the operation takes it;
// contiguous unless it takes rows. Borrows memory and shape from the Python object, which must
// outlive it.
class TensorView {
  public:
    // `op` and `name` are what error messages call the operation and its argument.
    TensorView(py::handle object, const char* op, const char* name,
               dlpack::DeviceType device = dlpack::device_cpu, bool takes_bfloat16 = false,
               Layout layout = Layout::contiguous);

    Dtype dtype() const { return dtype_; }
    int device_id() const { return tensor_.device.id; }
    std::int64_t size() const { return size_; }
    int ndim() const { return tensor_.ndim; }
    // From the start of a matrix' row to that of the next.
    std::int64_t row_stride() const;
    std::int64_t shape(int axis) const { return tensor_.shape[axis]; }

    // Throw TypeError or ValueError naming both arguments.
    void require_same_dtype(const TensorView& other) const;
    void require_same_shape(const TensorView& other) const;
    void require_same_device(const TensorView& other) const;

    void* data() const { return static_cast<char*>(tensor_.data) + tensor_.byte_offset; }

    // T must match dtype(); const T for an argument that is only read.
    template <class T>
    View<T> view() const {
        return {static_cast<T*>(data()), size_};
    }

  private:
    std::string label() const { return std::string(op_) + ": " + name_; }

    dlpack::Tensor tensor_{};
    py::object capsule_;  // owns the view where it came through __dlpack__
    const char* op_;
    const char* name_;
    std::int64_t size_ = 1;
    Dtype dtype_{};
};

}  // namespace curvkern
