// Arguments of sparse convolutions, wherever their tensors lie.
#pragma once

#include <array>
#include <initializer_list>
#include <string>

#include "bind/tensor_view.hpp"
#include "sparseconv/sparseconv.hpp"

namespace curvkern::sparseconv {

using Padding = std::array<std::int64_t, 4>;  // left, right, top, bottom

[[noreturn]] inline void refuse(const char* op, const std::string& what) {
    throw py::value_error(std::string(op) + ": " + what);
}

inline Storage storage_of(const TensorView& view) {
    return view.dtype() == Dtype::float64   ? Storage::float64
           : view.dtype() == Dtype::float32 ? Storage::float32
                                            : Storage::bfloat16;
}

inline Activation activation_of(const char* op, const std::string& name) {
    constexpr const char* names[] = {"none", "relu", "relu6", "silu", "hardswish"};
    for (int i = 0; i < 5; ++i) {
        if (name == names[i]) return static_cast<Activation>(i);
    }
    refuse(op, "activation must be none, relu, relu6, silu or hardswish, got '" + name + "'");
}

[[noreturn]] inline void refuse_shape(const TensorView& view, const char* op, const char* name,
                                      std::initializer_list<std::int64_t> expected) {
    std::string wanted, got;
    for (const std::int64_t size : expected) {
        wanted += (wanted.empty() ? "" : ", ") + std::to_string(size);
    }
    for (int axis = 0; axis < view.ndim(); ++axis) {
        got += (axis == 0 ? "" : ", ") + std::to_string(view.shape(axis));
    }
    refuse(op, std::string(name) + " must have shape (" + wanted + "), got (" + got + ")");
}

inline void require_shape(const TensorView& view, const char* op, const char* name,
                          std::initializer_list<std::int64_t> expected) {
    bool same = view.ndim() == static_cast<int>(expected.size());
    int axis = 0;
    for (const std::int64_t size : expected) same = same && view.shape(axis++) == size;
    if (!same) refuse_shape(view, op, name, expected);
}

}  // namespace curvkern::sparseconv
