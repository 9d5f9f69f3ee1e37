// Tangents and gradients through normalization and GELU. Shapes are checked here.
#include "hutchinson/tangents.hpp"

#include <optional>

#include "bind/families.hpp"
#include "bind/tensor_view.hpp"

namespace curvkern {
namespace hutchinson {
namespace {

using Maybe = std::optional<py::object>;

// A tensor of a dtype and as many elements.
const void* part(const char* op, const char* name, py::handle object, const TensorView& x,
                 std::int64_t size) {
    const TensorView view(object, op, name);
    view.require_same_dtype(x);
    if (view.size() != size) {
        throw py::value_error(std::string(op) + ": " + name + " has " +
                              std::to_string(view.size()) + " elements, expected " +
                              std::to_string(size));
    }
    return view.data();
}

const void* part(const char* op, const char* name, const Maybe& object, const TensorView& x,
                 std::int64_t size) {
    return object ? part(op, name, py::handle(*object), x, size) : nullptr;
}

Norm norm_of(const char* op, const TensorView& x, py::handle xd, const Maybe& w,
             const Maybe& wd, const Maybe& bd, py::handle mean, py::handle r,
             std::int64_t groups, std::int64_t inner, bool by_channel) {
    // Not groups * inner, which may overflow.
    if (groups < 1 || inner < 1 || x.size() % groups != 0 || x.size() / groups % inner != 0 ||
        (!by_channel && groups != 1)) {
        throw py::value_error(std::string(op) + ": x does not consist of groups of " +
                              std::to_string(inner) + " elements");
    }
    const std::int64_t outer = x.size() / groups / inner;
    const std::int64_t width = by_channel ? groups : inner, stats = by_channel ? groups : outer;
    return {x.data(),
            part(op, "xd", xd, x, x.size()),
            part(op, "w", w, x, width),
            part(op, "wd", wd, x, width),
            part(op, "bd", bd, x, width),
            part(op, "mean", mean, x, stats),
            part(op, "r", r, x, stats),
            outer,
            groups,
            inner,
            by_channel};
}

void run_tangent(py::handle x_object, py::handle xd, const Maybe& w, const Maybe& wd,
                 const Maybe& bd, py::handle mean, py::handle r, std::int64_t groups,
                 std::int64_t inner, bool by_channel, py::handle y_object) {
    constexpr const char* op = "norm_tangent";
    const TensorView x(x_object, op, "x"), y(y_object, op, "y");
    y.require_same_dtype(x);
    y.require_same_shape(x);
    const Norm norm = norm_of(op, x, xd, w, wd, bd, mean, r, groups, inner, by_channel);
    const py::gil_scoped_release release;
    norm_tangent(norm, x.dtype() == Dtype::float64, y.data());
}

void run_reverse(py::handle x_object, py::handle xd, const Maybe& w, const Maybe& wd,
                 py::handle mean, py::handle r, std::int64_t groups, std::int64_t inner,
                 bool by_channel, py::handle g, py::handle gd, const Maybe& xbar,
                 py::handle xbard, py::handle sums) {
    constexpr const char* op = "norm_reverse";
    const TensorView x(x_object, op, "x");
    const Norm norm =
        norm_of(op, x, xd, w, wd, std::nullopt, mean, r, groups, inner, by_channel);
    const std::int64_t chunks =
        by_channel ? groups : (norm.outer + row_chunk - 1) / row_chunk * inner;
    const NormReverse reverse = {norm,
                                 part(op, "g", g, x, x.size()),
                                 part(op, "gd", gd, x, x.size()),
                                 const_cast<void*>(part(op, "xbar", xbar, x, x.size())),
                                 const_cast<void*>(part(op, "xbard", xbard, x, x.size())),
                                 const_cast<void*>(part(op, "sums", sums, x, 4 * chunks))};
    const py::gil_scoped_release release;
    norm_reverse(reverse, x.dtype() == Dtype::float64);
}

void run_gelu_bend(py::handle x_object, py::handle t, py::handle g, py::handle xbard) {
    constexpr const char* op = "gelu_bend";
    const TensorView x(x_object, op, "x");
    const Bend bend = {x.data(), part(op, "t", t, x, x.size()), part(op, "g", g, x, x.size()),
                       const_cast<void*>(part(op, "xbard", xbard, x, x.size()))};
    const py::gil_scoped_release release;
    gelu_bend(bend, x.size(), x.dtype() == Dtype::float64);
}

}  // namespace
}  // namespace hutchinson

void bind_tangents(py::module_& module) {
    using py::arg;
    module.def("norm_tangent", hutchinson::run_tangent, arg("x"), arg("xd"), arg("w"),
               arg("wd"), arg("bd"), arg("mean"), arg("r"), arg("groups"), arg("inner"),
               arg("by_channel"), arg("y"));
    module.def("norm_reverse", hutchinson::run_reverse, arg("x"), arg("xd"), arg("w"),
               arg("wd"), arg("mean"), arg("r"), arg("groups"), arg("inner"), arg("by_channel"),
               arg("g"), arg("gd"), arg("xbar"), arg("xbard"), arg("sums"));
    module.def("gelu_bend", hutchinson::run_gelu_bend, arg("x"), arg("t"), arg("g"),
               arg("xbard"));
}

}  // namespace curvkern
