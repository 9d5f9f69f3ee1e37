// What the operations on a window of gradients take, checked.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "bind/tensor_view.hpp"
#include "mfac/mfac.hpp"

namespace curvkern::mfac {

inline Storage storage_of(const TensorView& view) {
    return view.dtype() == Dtype::float64   ? Storage::float64
           : view.dtype() == Dtype::float32 ? Storage::float32
                                            : Storage::bfloat16;
}

[[noreturn]] inline void refuse(const char* op, const std::string& what) {
    throw py::value_error(std::string(op) + ": " + what);
}

inline void require_float64(const TensorView& view, const char* op, const char* name) {
    if (view.dtype() == Dtype::float64) return;
    throw py::type_error(std::string(op) + ": " + name + " must be float64");
}

// A matrix (m, d) and which of its rows take part, in their order.
struct WindowArgument {
    TensorView view;
    std::vector<std::int64_t> slot;

    WindowArgument(const char* op, py::handle window, std::vector<std::int64_t> slots,
                   dlpack::DeviceType where = dlpack::device_cpu)
        : view(window, op, "window", where, true, Layout::rows), slot(std::move(slots)) {
        if (view.ndim() != 2) {
            refuse(op, "window must have 2 dimensions, got " + std::to_string(view.ndim()));
        }
        for (const std::int64_t row : slot) {
            if (row < 0 || row >= view.shape(0)) {
                refuse(op, "slots must be rows of window, which has " +
                               std::to_string(view.shape(0)) + ", got " + std::to_string(row));
            }
        }
    }
    Window get() const {
        return {view.data(),       storage_of(view), view.shape(1),
                view.row_stride(), slot.data(),      static_cast<std::int64_t>(slot.size())};
    }
};

// (k, d), float32 or float64
inline Vectors vectors(const TensorView& view, std::int64_t d, const char* op,
                       const char* name) {
    if (view.ndim() != 2 || view.shape(1) != d) {
        refuse(op, std::string(name) + " must have rows of " + std::to_string(d) + " elements");
    }
    return {view.data(), view.dtype() == Dtype::float32, view.shape(0)};
}

inline void require_rows(const TensorView& view, std::int64_t k, std::int64_t count,
                         const char* op, const char* name) {
    require_float64(view, op, name);
    if (view.ndim() == 2 && view.shape(0) == k && view.shape(1) == count) return;
    refuse(op, std::string(name) + " must have shape (" + std::to_string(k) + ", " +
                   std::to_string(count) + ")");
}

}  // namespace curvkern::mfac
