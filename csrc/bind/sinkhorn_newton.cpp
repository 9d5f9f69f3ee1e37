#include "bind/families.hpp"
#include "bind/tensor_view.hpp"
#include "sinkhorn/newton.hpp"

namespace curvkern {
namespace newton {
namespace {

constexpr const char* op = "sinkhorn_newton";

TensorView float64_view(py::handle object, const char* name,
                        std::initializer_list<std::int64_t> shape) {
    TensorView view(object, op, name);
    if (view.dtype() != Dtype::float64) {
        throw py::type_error(std::string(op) + ": " + name + " must be float64");
    }
    bool same = view.ndim() == static_cast<int>(shape.size());
    int axis = 0;
    for (const std::int64_t size : shape) {
        same = same && view.shape(axis++) == size;
    }
    if (!same) {
        throw py::value_error(std::string(op) + ": " + name + " does not fit cost's shape");
    }
    return view;
}

void solve(py::handle a, py::handle b, py::handle cost, py::handle eps, py::handle rho,
           py::handle f, py::handle g, py::handle result, py::handle trace,
           std::int64_t max_iter, double tol, bool warm_start) {
    const TensorView cost_view(cost, op, "cost");
    if (cost_view.ndim() != 3) {
        throw py::value_error("sinkhorn_newton: cost must have shape (batch, n, m), got " +
                              std::to_string(cost_view.ndim()) + " dimensions");
    }
    const std::int64_t size = cost_view.shape(0), n = cost_view.shape(1),
                       m = cost_view.shape(2);
    const TensorView trace_view(trace, op, "trace");
    const std::int64_t trace_size = trace_view.ndim() == 2 ? trace_view.shape(1) : 0;
    const bool single = cost_view.dtype() == Dtype::float32;
    const DenseBatch batch{size,
                           n,
                           m,
                           float64_view(a, "a", {size, n}).view<const double>().data,
                           float64_view(b, "b", {size, m}).view<const double>().data,
                           single ? static_cast<const void*>(cost_view.view<const float>().data)
                                  : cost_view.view<const double>().data,
                           single,
                           float64_view(eps, "eps", {size}).view<const double>().data,
                           float64_view(rho, "rho", {size, 2}).view<const double>().data,
                           float64_view(f, "f", {size, n}).view<double>().data,
                           float64_view(g, "g", {size, m}).view<double>().data,
                           float64_view(result, "result", {size, 3}).view<double>().data,
                           float64_view(trace, "trace", {size, trace_size}).view<double>().data,
                           trace_size};
    if (size == 0 || n == 0 || m == 0) return;
    bool finished;
    {
        const py::gil_scoped_release release;
        finished = solve_newton_batch(batch, {tol, max_iter, warm_start}, [] {
            const py::gil_scoped_acquire acquire;
            return PyErr_CheckSignals() != 0;
        });
    }
    if (!finished) throw py::error_already_set();
}

}  // namespace
}  // namespace newton

void bind_sinkhorn_newton(py::module_& module) {
    using py::arg;
    module.def(newton::op, newton::solve, arg("a"), arg("b"), arg("cost"), arg("eps"),
               arg("rho"), arg("f"), arg("g"), arg("result"), arg("trace"), arg("max_iter"),
               arg("tol"), arg("warm_start"));
}

}  // namespace curvkern
