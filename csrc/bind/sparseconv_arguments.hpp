// What convolutions of a GPU take, checked: shapes among each other, and that all lies on one
// device. What indices say was checked when their pattern was made.
#pragma once

#include <initializer_list>
#include <optional>
#include <utility>

#include "bind/sparseconv_checks.hpp"
#include "sparseconv/device.hpp"

namespace curvkern::sparseconv::device {

using Extent = std::pair<std::int64_t, std::int64_t>;

// The tensors of a call: each of the dtype and on the device of the first.
class Tensors {
  public:
    Tensors(const char* op, dlpack::DeviceType where, py::handle first, const char* name)
        : op_(op), where_(where), first_(first, op, name, where, true) {}

    const TensorView& first() const { return first_; }
    Storage storage() const { return storage_of(first_); }
    Place place(std::uintptr_t stream) const { return {first_.device_id(), stream}; }

    void* of_shape(py::handle object, const char* name,
                   std::initializer_list<std::int64_t> shape) const {
        const TensorView view = beside(object, name);
        view.require_same_dtype(first_);
        require_shape(view, op_, name, shape);
        return view.data();
    }
    const void* optional(py::handle object, const char* name,
                         std::initializer_list<std::int64_t> shape) const {
        return object.is_none() ? nullptr : of_shape(object, name, shape);
    }

    // Whole numbers, which travel as floating point numbers of the same bits.
    template <class T>
    const T* numbers(py::handle object, const char* name, std::int64_t size) const {
        const TensorView view = beside(object, name);
        if (view.dtype() != (sizeof(T) == 8 ? Dtype::float64 : Dtype::float32)) {
            throw py::type_error(std::string(op_) + ": " + name + " must hold numbers of " +
                                 std::to_string(8 * sizeof(T)) + " bits");
        }
        require_shape(view, op_, name, {size});
        return static_cast<const T*>(view.data());
    }

    double* workspace(py::handle object, std::int64_t size) const {
        const TensorView view = beside(object, "workspace");
        if (view.dtype() != Dtype::float64) {
            throw py::type_error(std::string(op_) + ": workspace must be float64");
        }
        if (view.size() < size) {
            refuse(op_, "workspace must have at least " + std::to_string(size) +
                            " elements, got " + std::to_string(view.size()));
        }
        return static_cast<double*>(view.data());
    }

    TensorView beside(py::handle object, const char* name) const {
        TensorView view(object, op_, name, where_, true);
        view.require_same_device(first_);
        return view;
    }

    void require_rank(const TensorView& view, const char* name, int rank) const {
        if (view.ndim() == rank) return;
        refuse(op_, std::string(name) + " must have " + std::to_string(rank) +
                        " dimensions, got " + std::to_string(view.ndim()));
    }

    void require_aligned(const void* data, const char* name) const {
        if (reinterpret_cast<std::uintptr_t>(data) % 32 == 0) return;
        refuse(op_, std::string(name) + " must begin at a multiple of 32 bytes");
    }

  private:
    const char* op_;
    dlpack::DeviceType where_;
    TensorView first_;
};

// (crow, col, order), and for a product of two images (row, first) of its tiles
inline Blocks blocks_of(const char* op, const Tensors& tensors, const py::tuple& matrix,
                        Extent block) {
    if (matrix.size() < 3) refuse(op, "matrix must be (crow, col, order)");
    if (block.first < 1 || block.second < 1) refuse(op, "block must be positive");
    const std::int64_t rows = tensors.beside(matrix[2], "order").size();
    const std::int64_t count = tensors.beside(matrix[1], "col").size();
    const Blocks found{tensors.numbers<std::int64_t>(matrix[0], "crow", rows + 1),
                       tensors.numbers<std::int32_t>(matrix[1], "col", count),
                       tensors.numbers<std::int32_t>(matrix[2], "order", rows),
                       rows,
                       count,
                       block.first,
                       block.second};
    tensors.require_aligned(found.col, "col");
    return found;
}

inline Window window_of(const char* op, Extent size, Extent out, Extent kernel,
                        std::int64_t stride, const Padding& padding, std::int64_t dilation) {
    if (stride < 1 || dilation < 1) refuse(op, "stride and dilation must be positive");
    const auto expected = [&](std::int64_t n, std::int64_t before, std::int64_t after,
                              std::int64_t taps) {
        return (n + before + after - dilation * (taps - 1) - 1) / stride + 1;
    };
    const Extent fits{expected(size.first, padding[2], padding[3], kernel.first),
                      expected(size.second, padding[0], padding[1], kernel.second)};
    if (out != fits) {
        refuse(op, "the result must be " + std::to_string(fits.first) + " x " +
                       std::to_string(fits.second) + ", got " + std::to_string(out.first) +
                       " x " + std::to_string(out.second));
    }
    return {size.first,    size.second, out.first, out.second, kernel.first,
            kernel.second, stride,      dilation,  padding[0], padding[2]};
}

}  // namespace curvkern::sparseconv::device
