#include "bind/sinkhorn_device.hpp"

#include <exception>
#include <string>

#include "bind/signals.hpp"
#include "bind/sinkhorn_tensors.hpp"

namespace curvkern {
namespace sinkhorn::device {
namespace {

// From (a, b, cost, x, y transposed, kind, scale, eps, rho).
Batch make_batch(Tensors& tensors, const py::tuple& in) {
    const auto kind = in[5].cast<std::string>();
    Batch p{};
    p.scale = in[6].cast<double>();
    const TensorView &a = tensors.ranked(in[0], "a", 2), &b = tensors.ranked(in[1], "b", 2);
    p.batch = a.shape(0);
    p.n = a.shape(1);
    p.m = b.shape(1);
    p.a = tensors.data(a, "a");
    p.b = tensors.float64(in[1], "b", {p.batch, p.m});
    if (kind == "dense") {
        const TensorView& cost = tensors.shaped(in[2], "cost", {p.batch, p.n, p.m});
        p.kind = cost.dtype() == Dtype::float32 ? Cost::dense32 : Cost::dense64;
        p.cost = cost.data();
    } else {
        p.kind = points_cost(kind, p.scale);
        p.dims = static_cast<int>(tensors.ranked(in[3], "x", 3).shape(2));
        p.x = tensors.float64(in[3], "x", {p.batch, p.n, p.dims});
        p.y_transposed = tensors.float64(in[4], "y", {p.batch, p.dims, p.m});
    }
    checked_multiply(checked_multiply(p.batch, p.n), p.m);
    p.eps = tensors.float64(in[7], "eps", {p.batch});
    p.rho = tensors.float64(in[8], "rho", {p.batch, 2});
    return p;
}

class Bindings {
  public:
    Bindings(const Calls& calls, dlpack::DeviceType where) : calls_(calls), where_(where) {}

    void solve(const py::tuple& in, py::handle extent, py::handle f0, py::handle g0,
               py::handle workspace, py::handle f, py::handle g, py::handle info,
               py::handle errors, std::int64_t max_iter, double tol, std::int64_t check_every,
               bool translate, bool anneal, bool symmetric, const py::function& checked,
               std::uintptr_t stream) const {
        Tensors tensors("sinkhorn", where_);
        Batch p = make_batch(tensors, in);
        p.extent = tensors.optional(extent, "extent", {p.batch});
        p.f = tensors.optional(f0, "f", {p.batch, p.n});
        p.g = tensors.optional(g0, "g", {p.batch, p.m});
        const Results results{tensors.float64(f, "f", {p.batch, p.n}),
                              tensors.float64(g, "g", {p.batch, p.m}),
                              tensors.float64(info, "info", {p.batch, 3}),
                              tensors.float64(errors, "errors", {p.batch})};
        double* memory = tensors.workspace(workspace, workspace_size(p, 0));
        std::exception_ptr raised;
        const Hooks hooks{signalled, [&](std::int64_t iteration, double largest) {
                              const py::gil_scoped_acquire acquire;
                              try {
                                  checked(iteration, largest);
                              } catch (...) {
                                  raised = std::current_exception();
                              }
                              return raised == nullptr && PyErr_CheckSignals() == 0;
                          }};
        bool finished;
        {
            const py::gil_scoped_release release;
            finished = calls_.solve({tensors.device_id(), stream}, p,
                                    {max_iter, tol, check_every, translate, anneal, symmetric},
                                    hooks, results, memory);
        }
        if (raised) std::rethrow_exception(raised);
        if (!finished) throw py::error_already_set();
    }

    void products(const py::tuple& in, py::handle f, py::handle g, py::handle v, py::handle u,
                  py::handle workspace, py::handle pv, py::handle ptu, py::handle totals,
                  std::int64_t count, std::uintptr_t stream) const {
        Tensors tensors("sinkhorn_products", where_);
        Batch p = make_batch(tensors, in);
        p.f = tensors.float64(f, "f", {p.batch, p.n});
        p.g = tensors.float64(g, "g", {p.batch, p.m});
        Products out{};
        out.count = count;
        out.v = tensors.optional(v, "v", {p.batch, p.m, count});
        out.u = tensors.optional(u, "u", {p.batch, p.n, count});
        out.pv = tensors.optional(pv, "pv", {p.batch, p.n, count});
        out.ptu = tensors.optional(ptu, "ptu", {p.batch, p.m, count});
        out.totals = tensors.float64(totals, "totals", {p.batch, 2});
        double* memory = tensors.workspace(workspace, workspace_size(p, count + 1));
        const py::gil_scoped_release release;
        calls_.products({tensors.device_id(), stream}, p, out, memory);
    }

    void gradient(const py::tuple& in, py::handle f, py::handle g, py::handle u, py::handle w,
                  py::handle workspace, py::handle out, std::uintptr_t stream) const {
        Tensors tensors("sinkhorn_points_gradient", where_);
        Batch p = make_batch(tensors, in);
        p.f = tensors.float64(f, "f", {p.batch, p.n});
        p.g = tensors.float64(g, "g", {p.batch, p.m});
        const Gradient to{tensors.float64(u, "u", {p.batch, p.n}),
                          tensors.float64(w, "w", {p.batch, p.m}),
                          tensors.float64(out, "out", {p.batch, p.n, p.dims})};
        double* memory = tensors.workspace(workspace, workspace_size(p, 0));
        const py::gil_scoped_release release;
        calls_.gradient({tensors.device_id(), stream}, p, to, memory);
    }

    void newton(const py::tuple& in, py::handle extent, py::handle workspace, py::handle f,
                py::handle g, py::handle info, py::handle trace, std::int64_t max_iter,
                double tol, bool warm_start, std::uintptr_t stream) const {
        Tensors tensors("sinkhorn_newton", where_);
        Batch p = make_batch(tensors, in);
        constexpr std::int64_t most = std::int64_t{1} << 31;  // numbers of rows and columns
        if (p.n >= most || p.m >= most) {
            throw py::value_error("sinkhorn_newton: too large: " + std::to_string(p.n) + " x " +
                                  std::to_string(p.m) + " costs");
        }
        p.extent = tensors.optional(extent, "extent", {p.batch});
        Tensors host("sinkhorn_newton", dlpack::device_cpu);
        const TensorView& errors = host.any(trace, "trace");
        const std::int64_t trace_size = errors.ndim() == 2 ? errors.shape(1) : 0;
        const NewtonResults results{
            tensors.float64(f, "f", {p.batch, p.n}), tensors.float64(g, "g", {p.batch, p.m}),
            tensors.float64(info, "info", {p.batch, 3}),
            host.float64(trace, "trace", {p.batch, trace_size}), trace_size};
        double* memory = tensors.workspace(workspace, calls_.newton_workspace(p.n, p.m));
        bool finished;
        {
            const py::gil_scoped_release release;
            finished = calls_.newton({tensors.device_id(), stream}, p,
                                     {tol, max_iter, warm_start}, signalled, results, memory);
        }
        if (!finished) throw py::error_already_set();
    }

    std::int64_t newton_workspace(std::int64_t n, std::int64_t m) const {
        return calls_.newton_workspace(n, m);
    }

  private:
    Calls calls_;
    dlpack::DeviceType where_;
};

std::int64_t workspace_of(std::int64_t batch, std::int64_t n, std::int64_t m,
                          std::int64_t count) {
    Batch shape{};
    shape.batch = batch;
    shape.n = n;
    shape.m = m;
    return workspace_size(shape, count);
}

}  // namespace
}  // namespace sinkhorn::device

void bind_sinkhorn_device(py::module_& module, const sinkhorn::device::Calls& calls,
                          dlpack::DeviceType where) {
    using namespace sinkhorn::device;
    using py::arg;
    const Bindings on(calls, where);
    module.def("sinkhorn_device_workspace", workspace_of, arg("batch"), arg("n"), arg("m"),
               arg("count"));
    module.def(
        "sinkhorn_device_solve",
        [on](const py::tuple& in, py::handle extent, py::handle f0, py::handle g0,
             py::handle workspace, py::handle f, py::handle g, py::handle info,
             py::handle errors, std::int64_t max_iter, double tol, std::int64_t check_every,
             bool translate, bool anneal, bool symmetric, const py::function& checked,
             std::uintptr_t stream) {
            on.solve(in, extent, f0, g0, workspace, f, g, info, errors, max_iter, tol,
                     check_every, translate, anneal, symmetric, checked, stream);
        },
        arg("inputs"), arg("extent"), arg("f0"), arg("g0"), arg("workspace"), arg("f"),
        arg("g"), arg("info"), arg("errors"), arg("max_iter"), arg("tol"), arg("check_every"),
        arg("translate"), arg("anneal"), arg("symmetric"), arg("checked"), arg("stream"));
    module.def(
        "sinkhorn_device_products",
        [on](const py::tuple& in, py::handle f, py::handle g, py::handle v, py::handle u,
             py::handle workspace, py::handle pv, py::handle ptu, py::handle totals,
             std::int64_t count, std::uintptr_t stream) {
            on.products(in, f, g, v, u, workspace, pv, ptu, totals, count, stream);
        },
        arg("inputs"), arg("f"), arg("g"), arg("v"), arg("u"), arg("workspace"), arg("pv"),
        arg("ptu"), arg("totals"), arg("count"), arg("stream"));
    module.def(
        "sinkhorn_device_gradient",
        [on](const py::tuple& in, py::handle f, py::handle g, py::handle u, py::handle w,
             py::handle workspace, py::handle out,
             std::uintptr_t stream) { on.gradient(in, f, g, u, w, workspace, out, stream); },
        arg("inputs"), arg("f"), arg("g"), arg("u"), arg("w"), arg("workspace"), arg("out"),
        arg("stream"));
    module.def(
        "sinkhorn_device_newton_workspace",
        [on](std::int64_t n, std::int64_t m) { return on.newton_workspace(n, m); }, arg("n"),
        arg("m"));
    module.def(
        "sinkhorn_device_newton",
        [on](const py::tuple& in, py::handle extent, py::handle workspace, py::handle f,
             py::handle g, py::handle info, py::handle trace, std::int64_t max_iter, double tol,
             bool warm_start, std::uintptr_t stream) {
            on.newton(in, extent, workspace, f, g, info, trace, max_iter, tol, warm_start,
                      stream);
        },
        arg("inputs"), arg("extent"), arg("workspace"), arg("f"), arg("g"), arg("info"),
        arg("trace"), arg("max_iter"), arg("tol"), arg("warm_start"), arg("stream"));
}

}  // namespace curvkern
