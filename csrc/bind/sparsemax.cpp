#include "bind/sparsemax.hpp"

#include <pybind11/numpy.h>

#include <algorithm>
#include <limits>

#include "bind/chunks.hpp"
#include "bind/families.hpp"
#include "core/isa.hpp"
#include "sinkhorn/sparsemax_kernels.hpp"
#include "sinkhorn/support_graph.hpp"

namespace curvkern {
namespace sparsemax {
namespace {

const Kernels& table() {
    return CURVKERN_SELECT_ISA(sparsemax::, ::kernels());
}

// body(first, last) for `rows` rows of n entries: in place while short, else as for_chunks
// does.
template <class Body>
void for_rows(std::int64_t rows, std::int64_t n, Body body) {
    constexpr std::int64_t entries = 16384;
    if (rows == 0) return;
    if (rows * n <= entries / 4) return body(std::int64_t{0}, rows);
    bool finished;
    {
        const py::gil_scoped_release release;
        finished =
            parallel_chunks(rows, std::max<std::int64_t>(1, entries / n), signalled, body);
    }
    if (!finished) throw py::error_already_set();
}

void project(py::handle z, py::handle mass, std::int64_t k, py::handle p, py::handle tau,
             py::handle support) {
    const ProjectArguments views("sparsemax", dlpack::device_cpu, z, mass, k, p, tau, support);
    const auto run = [&]<class T>(Project<T> kernel) {
        const std::int64_t n = views.n;
        const T* from = views.z.view<const T>().data;
        T* to = views.p.view<T>().data;
        for_rows(views.rows, n, [&](std::int64_t begin, std::int64_t end) {
            kernel(from + begin * n, views.mass.view<const double>().data + begin, k,
                   to + begin * n, views.tau.view<double>().data + begin,
                   views.support.view<double>().data + begin, end - begin, n);
        });
    };
    if (views.z.dtype() == Dtype::float64) {
        run(table().project_f64);
    } else {
        run(table().project_f32);
    }
}

void jacobian(py::handle p, py::handle grad, py::handle out) {
    const JacobianArguments views("sparsemax_jacobian", dlpack::device_cpu, p, grad, out);
    const auto run = [&]<class T>(Jacobian<T> kernel) {
        const std::int64_t n = views.n;
        for_rows(views.rows, n, [&](std::int64_t begin, std::int64_t end) {
            kernel(views.p.view<const T>().data + begin * n,
                   views.grad.view<const T>().data + begin * n,
                   views.out.view<T>().data + begin * n, end - begin, n);
        });
    };
    if (views.p.dtype() == Dtype::float64) {
        run(table().jacobian_f64);
    } else {
        run(table().jacobian_f32);
    }
}

// One pass over the columns of a plan: their nonzeros, the sums of the rows, and for each
// column its threshold and the sum of its squares.
SupportGraph plan_columns(py::handle cost, py::handle f, py::handle mass, std::int64_t k,
                          py::handle marginal, py::handle tau, py::handle square) {
    constexpr const char* op = "plan_columns";
    const TensorView cost_view(cost, op, "cost"), f_view(f, op, "f"),
        mass_view(mass, op, "mass");
    const TensorView sums(marginal, op, "marginal"), tau_view(tau, op, "tau");
    const TensorView squares(square, op, "square");
    for (const TensorView* view :
         {&cost_view, &f_view, &mass_view, &sums, &tau_view, &squares}) {
        if (view->dtype() != Dtype::float64) {
            throw py::type_error(std::string(op) + ": expected float64 throughout");
        }
    }
    const std::int64_t n = f_view.size(), m = mass_view.size();
    if (cost_view.ndim() != 2 || cost_view.shape(0) != m || cost_view.shape(1) != n || k < 1) {
        throw py::value_error(std::string(op) + ": cost must have shape (mass, f), and k >= 1");
    }
    sums.require_same_shape(f_view);
    tau_view.require_same_shape(mass_view);
    squares.require_same_shape(mass_view);

    struct Chunk {
        SupportGraph graph;
        double *tau, *square;
    };
    // Each chunk has a graph of its own; their order is that of the columns, whatever the cuts.
    const std::int64_t most = n < 65536 / std::max<std::int64_t>(1, m) ? 1 : 32;
    const std::int64_t size = std::max<std::int64_t>(1, (m + most - 1) / most);
    std::vector<Chunk> chunks(static_cast<std::size_t>((m + size - 1) / size));
    const auto body = [&](std::int64_t begin, std::int64_t end) {
        std::vector<double> scratch(static_cast<std::size_t>(3 * n));
        std::vector<std::int64_t> rows(static_cast<std::size_t>(n));
        Chunk& chunk = chunks[static_cast<std::size_t>(begin / size)];
        chunk.tau = tau_view.view<double>().data;
        chunk.square = squares.view<double>().data;
        const Visit visit = [](void* context, std::int64_t j, const Column& column) {
            Chunk& self = *static_cast<Chunk*>(context);
            self.tau[j] = column.tau;
            self.square[j] = column.square;
            SupportGraph& graph = self.graph;
            graph.row.insert(graph.row.end(), column.row, column.row + column.count);
            graph.value.insert(graph.value.end(), column.value, column.value + column.count);
            graph.start.push_back(static_cast<std::int64_t>(graph.row.size()));
        };
        table().columns(cost_view.view<const double>().data, f_view.view<const double>().data,
                        mass_view.view<const double>().data, k, begin, end, n, scratch.data(),
                        rows.data(), visit, &chunk);
    };
    bool finished;
    SupportGraph graph;
    {
        const py::gil_scoped_release release;
        finished = parallel_chunks(m, size, signalled, body);
        graph.rows = n;
        for (const Chunk& chunk : chunks) graph.append(chunk.graph);
        double* sum = sums.view<double>().data;
        std::fill(sum, sum + n, 0.0);
        for (std::size_t e = 0; e < graph.row.size(); ++e) sum[graph.row[e]] += graph.value[e];
    }
    if (!finished) throw py::error_already_set();
    return graph;
}

std::int64_t solve(const SupportGraph& graph, py::handle residual, double damping,
                   double tolerance, std::int64_t max_iter, py::handle step) {
    constexpr const char* op = "SupportGraph.solve";
    const TensorView right(residual, op, "residual"), out(step, op, "step");
    out.require_same_shape(right);
    if (right.size() != graph.rows || right.dtype() != Dtype::float64 ||
        out.dtype() != Dtype::float64) {
        throw py::value_error(std::string(op) + ": expected one float64 for each row");
    }
    std::int64_t iterations;
    {
        const py::gil_scoped_release release;
        iterations = graph.solve(right.view<const double>().data, damping, tolerance, max_iter,
                                 signalled, out.view<double>().data);
    }
    if (iterations < 0) throw py::error_already_set();
    return iterations;
}

template <class T>
py::array_t<T> array(const std::vector<T>& values) {
    return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

}  // namespace
}  // namespace sparsemax

void bind_sparsemax(py::module_& module) {
    using py::arg;
    using sparsemax::SupportGraph;
    module.def("sparsemax", sparsemax::project, arg("z"), arg("mass"), arg("k"), arg("p"),
               arg("tau"), arg("support"));
    module.def("sparsemax_jacobian", sparsemax::jacobian, arg("p"), arg("grad"), arg("out"));
    py::class_<SupportGraph>(module, "SupportGraph")
        .def("solve", sparsemax::solve, arg("residual"), arg("damping"), arg("tolerance"),
             arg("max_iter"), arg("step"))
        .def("start", [](const SupportGraph& graph) { return sparsemax::array(graph.start); })
        .def("row", [](const SupportGraph& graph) { return sparsemax::array(graph.row); })
        .def("value", [](const SupportGraph& graph) { return sparsemax::array(graph.value); });
    module.def("plan_columns", sparsemax::plan_columns, arg("cost"), arg("f"), arg("mass"),
               arg("k"), arg("marginal"), arg("tau"), arg("square"));
}

}  // namespace curvkern
