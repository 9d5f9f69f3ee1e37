#include "bind/sinkhorn_device.hpp"

#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "bind/tensor_view.hpp"

namespace curvkern {
namespace sinkhorn::device {
namespace {

bool signalled() {
    const py::gil_scoped_acquire acquire;
    return PyErr_CheckSignals() != 0;
}

// The tensors of a call, all on one device, each checked for its shape and kept until the call
// is over.
class Tensors {
  public:
    Tensors(const char* op, dlpack::DeviceType where) : op_(op), where_(where) {}

    const TensorView& any(py::handle object, const char* name) {
        views_.push_back(std::make_unique<TensorView>(object, op_, name, where_));
        views_.back()->require_same_device(*views_.front());
        return *views_.back();
    }

    const TensorView& shaped(py::handle object, const char* name,
                             std::initializer_list<std::int64_t> shape) {
        const TensorView& view = any(object, name);
        bool same = view.ndim() == static_cast<int>(shape.size());
        std::string expected;
        int axis = 0;
        for (const std::int64_t size : shape) {
            expected += (axis == 0 ? "" : ", ") + std::to_string(size);
            same = same && view.shape(axis++) == size;
        }
        if (!same) throw py::value_error(label(name) + " must have shape (" + expected + ")");
        return view;
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
                                  std::to_string(needed) + " elements");
        }
        return data(view, "workspace");
    }

    double* data(const TensorView& view, const char* name) const {
        if (view.dtype() != Dtype::float64) {
            throw py::type_error(label(name) + " must be float64");
        }
        return view.view<double>().data;
    }

    int device_id() const { return views_.front()->device_id(); }
    std::string label(const char* name) const { return std::string(op_) + ": " + name; }

  private:
    const char* op_;
    dlpack::DeviceType where_;
    std::vector<std::unique_ptr<TensorView>> views_;
};

void set_kind(Batch& p, const std::string& kind, bool narrow) {
    if (kind == "dense") {
        p.kind = narrow ? Cost::dense32 : Cost::dense64;
    } else if (kind == "sqeuclidean" || kind == "half_sqeuclidean") {
        p.kind = Cost::sqeuclidean;
    } else if (kind == "euclidean" || kind == "l1") {
        p.kind = kind == "l1" ? Cost::l1 : Cost::euclidean;
    } else {
        throw py::value_error(
            "sinkhorn: cost must be one of dense, sqeuclidean, half_sqeuclidean, euclidean, "
            "l1, got '" +
            kind + "'");
    }
}

// From (a, b, cost, x, y transposed, kind, scale, eps, rho).
Batch make_batch(Tensors& tensors, const py::tuple& in) {
    const auto kind = in[5].cast<std::string>();
    Batch p{};
    p.scale = in[6].cast<double>() * (kind == "half_sqeuclidean" ? 0.5 : 1);
    const TensorView &a = tensors.any(in[0], "a"), &b = tensors.any(in[1], "b");
    if (a.ndim() != 2 || b.ndim() != 2) {
        throw py::value_error("sinkhorn: a and b must have 2 dimensions");
    }
    p.batch = a.shape(0);
    p.n = a.shape(1);
    p.m = b.shape(1);
    p.a = tensors.data(a, "a");
    p.b = tensors.float64(in[1], "b", {p.batch, p.m});
    if (kind == "dense") {
        const TensorView& cost = tensors.shaped(in[2], "cost", {p.batch, p.n, p.m});
        const bool narrow = cost.dtype() == Dtype::float32;
        set_kind(p, kind, narrow);
        p.cost = narrow ? static_cast<const void*>(cost.view<float>().data)
                        : cost.view<double>().data;
    } else {
        set_kind(p, kind, false);
        const TensorView& x = tensors.any(in[3], "x");
        if (x.ndim() != 3) throw py::value_error("sinkhorn: x must have 3 dimensions");
        p.dims = static_cast<int>(x.shape(2));
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
