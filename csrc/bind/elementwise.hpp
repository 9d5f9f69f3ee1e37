// Shared by the bindings of elementwise functions f(v, x) and their derivatives.
//
// `order` counts derivatives: the arguments are (v, x, out) for 0, (v, x, dv, dx) for 1 and
// (v, x, dvv, dvx, dxx) for 2. All have one dtype, shape and device.
#pragma once

#include <initializer_list>
#include <vector>

#include "bind/tensor_view.hpp"

namespace curvkern {

inline constexpr const char* elementwise_arguments[][5] = {
    {"v", "x", "out"}, {"v", "x", "dv", "dx"}, {"v", "x", "dvv", "dvx", "dxx"}};

// The arguments as checked views, in their order.
inline std::vector<TensorView> elementwise_views(const char* op, int order,
                                                 dlpack::DeviceType device,
                                                 std::initializer_list<py::handle> objects) {
    std::vector<TensorView> views;
    views.reserve(objects.size());
    for (const py::handle object : objects) {
        views.emplace_back(object, op, elementwise_arguments[order][views.size()], device);
        views.back().require_same_device(views.front());
        views.back().require_same_dtype(views.front());
        views.back().require_same_shape(views.front());
    }
    return views;
}

// Pointers to the 1, 2 or 3 outputs behind the two inputs.
template <class T>
struct Outputs {
    T* data[3] = {};

    explicit Outputs(const std::vector<TensorView>& views) {
        for (std::size_t i = 2; i < views.size(); ++i) data[i - 2] = views[i].view<T>().data;
    }
};

}  // namespace curvkern
