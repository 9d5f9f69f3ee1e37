#include "bind/families.hpp"
#include "bind/signals.hpp"
#include "bind/sinkhorn_tensors.hpp"
#include "sinkhorn/newton.hpp"

namespace curvkern {
namespace newton {
namespace {

constexpr const char* op = "sinkhorn_newton";

void solve(py::handle a, py::handle b, py::handle cost, py::handle eps, py::handle rho,
           py::handle f, py::handle g, py::handle result, py::handle trace,
           std::int64_t max_iter, double tol, bool warm_start) {
    sinkhorn::Tensors tensors(op);
    const TensorView& costs = tensors.ranked(cost, "cost", 3);
    const std::int64_t size = costs.shape(0), n = costs.shape(1), m = costs.shape(2);
    const std::int64_t trace_size = tensors.ranked(trace, "trace", 2).shape(1);
    const DenseBatch batch{size,
                           n,
                           m,
                           tensors.float64(a, "a", {size, n}),
                           tensors.float64(b, "b", {size, m}),
                           costs.data(),
                           costs.dtype() == Dtype::float32,
                           tensors.float64(eps, "eps", {size}),
                           tensors.float64(rho, "rho", {size, 2}),
                           tensors.float64(f, "f", {size, n}),
                           tensors.float64(g, "g", {size, m}),
                           tensors.float64(result, "result", {size, 3}),
                           tensors.float64(trace, "trace", {size, trace_size}),
                           trace_size};
    if (size == 0 || n == 0 || m == 0) return;
    bool finished;
    {
        const py::gil_scoped_release release;
        finished = solve_newton_batch(batch, {tol, max_iter, warm_start}, signalled);
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
