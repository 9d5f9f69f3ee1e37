#include <pybind11/stl.h>

#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "bind/families.hpp"
#include "bind/signals.hpp"
#include "bind/sinkhorn_tensors.hpp"
#include "sinkhorn/plan_pass.hpp"
#include "sinkhorn/solver.hpp"

namespace curvkern {
namespace sinkhorn {
namespace {

// From what every operation is given first: (a, b, cost, x, y, kind, scale, eps, rho).
Batch make_batch(Tensors& tensors, const py::tuple& in) {
    Batch batch{};
    batch.scale = in[6].cast<double>();
    if (!in[2].is_none()) {
        const TensorView& cost = tensors.ranked(in[2], "cost", 3);
        batch.batch = cost.shape(0);
        batch.n = cost.shape(1);
        batch.m = cost.shape(2);
        batch.kind = cost.dtype() == Dtype::float64 ? Cost::dense64 : Cost::dense32;
        batch.cost = cost.data();
    } else {
        const TensorView& x = tensors.ranked(in[3], "x", 3);
        batch.batch = x.shape(0);
        batch.n = x.shape(1);
        batch.dims = static_cast<int>(x.shape(2));
        const TensorView& y = tensors.ranked(in[4], "y", 3);
        y.require_same_dtype(x);
        batch.m = y.shape(1);
        tensors.shaped(in[4], "y", {batch.batch, batch.m, batch.dims});
        batch.kind = points_cost(in[5].cast<std::string>(), batch.scale);
        batch.narrow = x.dtype() == Dtype::float32;
        batch.x = x.data();
        batch.y = y.data();
    }
    checked_multiply(checked_multiply(batch.batch, batch.n), batch.m);
    batch.a = tensors.float64(in[0], "a", {batch.batch, batch.n});
    batch.b = tensors.float64(in[1], "b", {batch.batch, batch.m});
    batch.eps = tensors.float64(in[7], "eps", {batch.batch});
    batch.rho = tensors.float64(in[8], "rho", {batch.batch, 2});
    return batch;
}

Batch shape_only(const std::string& kind, bool narrow, std::int64_t batch, std::int64_t n,
                 std::int64_t m, std::int64_t dims) {
    Batch shape{};
    shape.kind = kind != "dense" ? points_cost(kind, shape.scale)
                 : narrow        ? Cost::dense32
                                 : Cost::dense64;
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
    Tensors tensors("sinkhorn");
    const Batch batch = make_batch(tensors, in);
    const double* start_f = tensors.optional(f0, "f", {batch.batch, batch.n});
    const double* start_g = tensors.optional(g0, "g", {batch.batch, batch.m});
    double* out_f = tensors.float64(f, "f", {batch.batch, batch.n});
    double* out_g = tensors.float64(g, "g", {batch.batch, batch.m});
    double* out_info = tensors.float64(info, "info", {batch.batch, 3});
    double* out_errors = tensors.float64(errors, "errors", {batch.batch});
    double* memory = tensors.workspace(workspace, solver_workspace_size(batch));

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
        Hooks hooks{signalled, [&](std::int64_t iteration, double largest) {
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
    Tensors tensors("sinkhorn_apply");
    const Batch batch = make_batch(tensors, in);
    PlanArguments arguments{};
    arguments.f = tensors.float64(f, "f", {batch.batch, batch.n});
    arguments.g = tensors.float64(g, "g", {batch.batch, batch.m});
    arguments.count = count;
    arguments.v = tensors.optional(v, "v", {batch.batch, batch.m, count});
    arguments.u = tensors.optional(u, "u", {batch.batch, batch.n, count});
    arguments.pv = tensors.optional(pv, "pv", {batch.batch, batch.n, count});
    arguments.ptu = tensors.optional(ptu, "ptu", {batch.batch, batch.m, count});
    arguments.totals = tensors.optional(totals, "totals", {batch.batch, 2});
    double* memory = tensors.workspace(workspace, plan_workspace_size(batch, count));
    bool finished;
    {
        const py::gil_scoped_release release;
        finished = plan_products(batch, arguments, signalled, memory);
    }
    if (!finished) throw py::error_already_set();
}

void gradient(const py::tuple& in, py::object f, py::object g, py::object u, py::object w,
              py::object workspace, py::object out) {
    Tensors tensors("sinkhorn_points_gradient");
    const Batch batch = make_batch(tensors, in);
    const double* pf = tensors.float64(f, "f", {batch.batch, batch.n});
    const double* pg = tensors.float64(g, "g", {batch.batch, batch.m});
    const double* pu = tensors.float64(u, "u", {batch.batch, batch.n});
    const double* pw = tensors.float64(w, "w", {batch.batch, batch.m});
    double* target = tensors.float64(out, "out", {batch.batch, batch.n, batch.dims});
    double* memory = tensors.workspace(workspace, plan_workspace_size(batch, 1));
    bool finished;
    {
        const py::gil_scoped_release release;
        finished = points_gradient(batch, pf, pg, pu, pw, target, signalled, memory);
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
