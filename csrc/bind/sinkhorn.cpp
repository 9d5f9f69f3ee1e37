#include <pybind11/stl.h>

#include <cmath>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "bind/chunks.hpp"
#include "bind/families.hpp"
#include "bind/tensor_view.hpp"
#include "sinkhorn/plan_pass.hpp"
#include "sinkhorn/solver.hpp"

namespace curvkern {
namespace sinkhorn {
namespace {

bool interrupted() {
    const py::gil_scoped_acquire acquire;
    return PyErr_CheckSignals() != 0;
}

// The tensors of a call: each checked for its shape, kept until the call is over.
class Call {
  public:
    explicit Call(const char* op) : op_(op) {}

    const TensorView& tensor(py::handle object, const char* name,
                             std::initializer_list<std::int64_t> shape) {
        views_.push_back(std::make_unique<TensorView>(object, op_, name));
        const TensorView& view = *views_.back();
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
        const TensorView& view = tensor(object, name, shape);
        if (view.dtype() != Dtype::float64)
            throw py::type_error(label(name) + " must be float64");
        return view.view<double>().data;
    }

    double* optional_float64(py::handle object, const char* name,
                             std::initializer_list<std::int64_t> shape) {
        return object.is_none() ? nullptr : float64(object, name, shape);
    }

    double* workspace(py::handle object, std::int64_t needed) {
        views_.push_back(std::make_unique<TensorView>(object, op_, "workspace"));
        const TensorView& view = *views_.back();
        if (view.dtype() != Dtype::float64 || view.size() < needed) {
            throw py::value_error(label("workspace") + " must be float64 and have at least " +
                                  std::to_string(needed) + " elements");
        }
        return view.view<double>().data;
    }

    std::string label(const char* name) const { return std::string(op_) + ": " + name; }

  private:
    const char* op_;
    std::vector<std::unique_ptr<TensorView>> views_;
};

Cost cost_kind(const std::string& name) {
    if (name == "sqeuclidean" || name == "half_sqeuclidean") return Cost::sqeuclidean;
    if (name == "euclidean") return Cost::euclidean;
    if (name == "l1") return Cost::l1;
    throw py::value_error(
        "sinkhorn: cost must be one of sqeuclidean, half_sqeuclidean, euclidean, l1, got '" +
        name + "'");
}

// What every operation is given first: (a, b, cost or (x, y, kind, scale), eps, rho).
struct Inputs {
    py::object a, b, cost, x, y;
    std::string kind;
    double scale;
    py::object eps, rho;
};

Batch make_batch(Call& call, const py::tuple& inputs) {
    const Inputs in{inputs[0],
                    inputs[1],
                    inputs[2],
                    inputs[3],
                    inputs[4],
                    inputs[5].cast<std::string>(),
                    inputs[6].cast<double>(),
                    inputs[7],
                    inputs[8]};
    Batch batch{};
    batch.scale = in.scale;
    if (!in.cost.is_none()) {
        const TensorView shape(in.cost, "sinkhorn", "cost");
        if (shape.ndim() != 3) throw py::value_error("sinkhorn: cost must have 3 dimensions");
        batch.batch = shape.shape(0);
        batch.n = shape.shape(1);
        batch.m = shape.shape(2);
        const bool wide = shape.dtype() == Dtype::float64;
        batch.kind = wide ? Cost::dense64 : Cost::dense32;
        const TensorView& cost = call.tensor(in.cost, "cost", {batch.batch, batch.n, batch.m});
        batch.cost =
            wide ? static_cast<const void*>(cost.view<double>().data) : cost.view<float>().data;
    } else {
        const TensorView shape(in.x, "sinkhorn", "x"), other(in.y, "sinkhorn", "y");
        if (shape.ndim() != 3 || other.ndim() != 3) {
            throw py::value_error("sinkhorn: x and y must have 3 dimensions");
        }
        other.require_same_dtype(shape);
        batch.batch = shape.shape(0);
        batch.n = shape.shape(1);
        batch.m = other.shape(1);
        batch.dims = static_cast<int>(shape.shape(2));
        batch.kind = cost_kind(in.kind);
        if (in.kind == "half_sqeuclidean") batch.scale *= 0.5;
        batch.narrow = shape.dtype() == Dtype::float32;
        const TensorView& x = call.tensor(in.x, "x", {batch.batch, batch.n, batch.dims});
        const TensorView& y = call.tensor(in.y, "y", {batch.batch, batch.m, batch.dims});
        batch.x = batch.narrow ? static_cast<const void*>(x.view<float>().data)
                               : x.view<double>().data;
        batch.y = batch.narrow ? static_cast<const void*>(y.view<float>().data)
                               : y.view<double>().data;
    }
    checked_multiply(checked_multiply(batch.batch, batch.n), batch.m);
    batch.a = call.float64(in.a, "a", {batch.batch, batch.n});
    batch.b = call.float64(in.b, "b", {batch.batch, batch.m});
    batch.eps = call.float64(in.eps, "eps", {batch.batch});
    batch.rho = call.float64(in.rho, "rho", {batch.batch, 2});
    return batch;
}

Batch shape_only(const std::string& kind, bool narrow, std::int64_t batch, std::int64_t n,
                 std::int64_t m, std::int64_t dims) {
    Batch shape{};
    shape.kind = kind == "dense" ? (narrow ? Cost::dense32 : Cost::dense64) : cost_kind(kind);
    shape.narrow = narrow;
    shape.batch = batch;
    shape.n = n;
    shape.m = m;
    shape.dims = static_cast<int>(dims);
    return shape;
}

// history = sinkhorn_solve(inputs..., f0, g0, workspace, f, g, info, errors, ...)
py::list solve(const py::tuple& in, py::object f0, py::object g0, py::object workspace,
               py::object f, py::object g, py::object info, py::object errors,
               std::int64_t max_iter, double tol, std::int64_t check_every, bool translate,
               bool anneal, bool symmetric, std::size_t most_checks, py::object callback) {
    Call call("sinkhorn");
    const Batch batch = make_batch(call, in);
    const double* start_f = call.optional_float64(f0, "f", {batch.batch, batch.n});
    const double* start_g = call.optional_float64(g0, "g", {batch.batch, batch.m});
    double* out_f = call.float64(f, "f", {batch.batch, batch.n});
    double* out_g = call.float64(g, "g", {batch.batch, batch.m});
    double* out_info = call.float64(info, "info", {batch.batch, 3});
    double* out_errors = call.float64(errors, "errors", {batch.batch});
    double* memory = call.workspace(workspace, solver_workspace_size(batch));

    // Of more checks than there is room for, every second one is kept, then every fourth, ...
    std::vector<std::pair<std::int64_t, double>> history;
    std::int64_t checks = 0, keep_every = 1;
    const auto record = [&](std::int64_t iteration, double largest) {
        if (checks++ % keep_every != 0) return;
        if (history.size() == most_checks) {
            for (std::size_t i = 0; 2 * i < history.size(); ++i) history[i] = history[2 * i];
            history.resize((history.size() + 1) / 2);
            keep_every *= 2;
            if ((checks - 1) % keep_every != 0) return;
        }
        history.emplace_back(iteration, largest);
    };
    std::exception_ptr raised;
    bool finished;
    {
        const py::gil_scoped_release release;
        Solver* running = nullptr;
        Hooks hooks{interrupted, [&](std::int64_t iteration, double largest) {
                        record(iteration, largest);
                        if (callback.is_none()) return true;
                        running->write_errors(out_errors);
                        const py::gil_scoped_acquire acquire;
                        try {
                            callback(iteration);
                        } catch (...) {
                            raised = std::current_exception();
                            return false;
                        }
                        return true;
                    }};
        Solver solver(batch, {max_iter, tol, check_every, translate, anneal, symmetric}, hooks,
                      memory);
        running = &solver;
        if (start_f != nullptr && start_g != nullptr) solver.start_from(start_f, start_g);
        finished = solver.run();
        if (finished) solver.write(out_f, out_g, out_info);
    }
    if (raised) std::rethrow_exception(raised);
    if (!finished) throw py::error_already_set();
    return py::cast(history);
}

void products(const py::tuple& in, py::object f, py::object g, py::object v, py::object u,
              py::object workspace, py::object pv, py::object ptu, py::object totals,
              std::int64_t count) {
    Call call("sinkhorn_apply");
    const Batch batch = make_batch(call, in);
    PlanArguments arguments{};
    arguments.f = call.float64(f, "f", {batch.batch, batch.n});
    arguments.g = call.float64(g, "g", {batch.batch, batch.m});
    arguments.count = count;
    arguments.v = call.optional_float64(v, "v", {batch.batch, batch.m, count});
    arguments.u = call.optional_float64(u, "u", {batch.batch, batch.n, count});
    arguments.pv = call.optional_float64(pv, "pv", {batch.batch, batch.n, count});
    arguments.ptu = call.optional_float64(ptu, "ptu", {batch.batch, batch.m, count});
    arguments.totals = call.optional_float64(totals, "totals", {batch.batch, 2});
    double* memory = call.workspace(workspace, plan_workspace_size(batch, count));
    bool finished;
    {
        const py::gil_scoped_release release;
        finished = plan_products(batch, arguments, interrupted, memory);
    }
    if (!finished) throw py::error_already_set();
}

void gradient(const py::tuple& in, py::object f, py::object g, py::object u, py::object w,
              py::object workspace, py::object out) {
    Call call("sinkhorn_points_gradient");
    const Batch batch = make_batch(call, in);
    const double* pf = call.float64(f, "f", {batch.batch, batch.n});
    const double* pg = call.float64(g, "g", {batch.batch, batch.m});
    const double* pu = call.float64(u, "u", {batch.batch, batch.n});
    const double* pw = call.float64(w, "w", {batch.batch, batch.m});
    double* target = call.float64(out, "out", {batch.batch, batch.n, batch.dims});
    double* memory = call.workspace(workspace, plan_workspace_size(batch, 1));
    bool finished;
    {
        const py::gil_scoped_release release;
        finished = points_gradient(batch, pf, pg, pu, pw, target, interrupted, memory);
    }
    if (!finished) throw py::error_already_set();
}

}  // namespace
}  // namespace sinkhorn

// Every operation takes its problems as (a, b, cost, x, y, kind, scale, eps, rho): a matrix
// `cost`, or None and points x, y.
void bind_sinkhorn(py::module_& module) {
    using namespace sinkhorn;
    using py::arg;
    module.def(
        "sinkhorn_workspace",
        [](const std::string& kind, bool narrow, std::int64_t batch, std::int64_t n,
           std::int64_t m, std::int64_t dims, std::int64_t count) {
            const Batch shape = shape_only(kind, narrow, batch, n, m, dims);
            return count == 0 ? solver_workspace_size(shape)
                              : plan_workspace_size(shape, count);
        },
        arg("kind"), arg("narrow"), arg("batch"), arg("n"), arg("m"), arg("dims"),
        arg("count"));
    module.def("sinkhorn_solve", solve, arg("inputs"), arg("f0"), arg("g0"), arg("workspace"),
               arg("f"), arg("g"), arg("info"), arg("errors"), arg("max_iter"), arg("tol"),
               arg("check_every"), arg("translate"), arg("anneal"), arg("symmetric"),
               arg("most_checks"), arg("callback"));
    module.def("sinkhorn_products", products, arg("inputs"), arg("f"), arg("g"), arg("v"),
               arg("u"), arg("workspace"), arg("pv"), arg("ptu"), arg("totals"), arg("count"));
    module.def("sinkhorn_points_gradient", gradient, arg("inputs"), arg("f"), arg("g"),
               arg("u"), arg("w"), arg("workspace"), arg("out"));
}

}  // namespace curvkern
