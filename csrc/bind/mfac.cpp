// Passes over a window of gradients, and the factor of its Gram matrix.
#include "mfac/mfac.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <vector>

#include "bind/families.hpp"
#include "bind/mfac_arguments.hpp"
#include "bind/signals.hpp"
#include "mfac/columns.hpp"

namespace curvkern {
namespace mfac {
namespace {

void run_products(py::handle window, std::vector<std::int64_t> slots, py::handle v,
                  py::handle out) {
    constexpr const char* op = "mfac_products";
    const WindowArgument rows(op, window, std::move(slots));
    const TensorView v_view(v, op, "v"), out_view(out, op, "out");
    const Vectors right = vectors(v_view, rows.view.shape(1), op, "v");
    require_rows(out_view, right.k, rows.get().count, op, "out");
    bool finished;
    {
        const py::gil_scoped_release release;
        finished =
            products(rows.get(), right, nullptr, 0, out_view.view<double>().data, signalled);
    }
    if (!finished) throw py::error_already_set();
}

// Not interrupted: half a row would be left behind.
void run_push(py::handle window, std::vector<std::int64_t> slots, std::int64_t into,
              py::handle gradient, py::handle v, py::handle out) {
    constexpr const char* op = "mfac_push";
    const WindowArgument rows(op, window, std::move(slots));
    const std::int64_t d = rows.view.shape(1);
    const TensorView g_view(gradient, op, "gradient"), v_view(v, op, "v"),
        out_view(out, op, "out");
    const Vectors incoming = vectors(g_view, d, op, "gradient"),
                  right = vectors(v_view, d, op, "v");
    if (incoming.k != 1) refuse(op, "gradient must have one row");
    if (into < 0 || into >= rows.get().count) refuse(op, "into must be the place of a slot");
    require_rows(out_view, right.k + 1, rows.get().count, op, "out");
    const py::gil_scoped_release release;
    products(rows.get(), right, &incoming, into, out_view.view<double>().data,
             [] { return false; });
}

void run_combine(py::handle window, std::vector<std::int64_t> slots, py::handle coefficient,
                 double alpha, const py::object& v, py::handle out) {
    constexpr const char* op = "mfac_combine";
    const WindowArgument rows(op, window, std::move(slots));
    const std::int64_t d = rows.view.shape(1);
    const TensorView c_view(coefficient, op, "coefficient"), out_view(out, op, "out");
    const Vectors target = vectors(out_view, d, op, "out");
    require_rows(c_view, target.k, rows.get().count, op, "coefficient");
    const TensorView v_view(v.is_none() ? out : py::handle(v), op, "v");
    const Vectors given = vectors(v_view, d, op, "v");
    if (given.k != target.k) {
        refuse(op, "v has " + std::to_string(given.k) + " rows but coefficient has " +
                       std::to_string(target.k));
    }
    bool finished;
    {
        const py::gil_scoped_release release;
        finished = combine(rows.get(), c_view.view<const double>().data, alpha,
                           v.is_none() ? nullptr : &given, target, signalled);
    }
    if (!finished) throw py::error_already_set();
}

bool run_is_finite(py::handle window, py::handle gradient) {
    constexpr const char* op = "mfac_is_finite";
    const TensorView view(window, op, "window", dlpack::device_cpu, true);
    const TensorView g_view(gradient, op, "gradient");
    const Vectors v =
        vectors(g_view, g_view.ndim() == 2 ? g_view.shape(1) : -1, op, "gradient");
    const py::gil_scoped_release release;
    return is_finite(v, g_view.shape(1), storage_of(view));
}

void run_gram(py::handle window, std::vector<std::int64_t> slots, py::handle out) {
    constexpr const char* op = "mfac_gram";
    const WindowArgument rows(op, window, std::move(slots));
    const TensorView out_view(out, op, "out");
    require_rows(out_view, rows.get().count, rows.get().count, op, "out");
    bool finished;
    {
        const py::gil_scoped_release release;
        finished = gram(rows.get(), out_view.view<double>().data, signalled);
    }
    if (!finished) throw py::error_already_set();
}

void run_whitened_squares(py::handle window, std::vector<std::int64_t> slots, py::handle root,
                          py::handle out) {
    constexpr const char* op = "mfac_whitened_squares";
    const WindowArgument rows(op, window, std::move(slots));
    const TensorView root_view(root, op, "root"), out_view(out, op, "out");
    require_rows(root_view, rows.get().count, rows.get().count, op, "root");
    require_float64(out_view, op, "out");
    if (out_view.size() != rows.get().d) refuse(op, "out must have an element for each column");
    bool finished;
    {
        const py::gil_scoped_release release;
        finished = whitened_squares(rows.get(), root_view.view<const double>().data,
                                    out_view.view<double>().data, signalled);
    }
    if (!finished) throw py::error_already_set();
}

void run_block_diagonal(py::handle window, std::vector<std::int64_t> slots, std::int64_t block,
                        double damping, double norm, py::handle out) {
    constexpr const char* op = "mfac_block_diagonal";
    const WindowArgument rows(op, window, std::move(slots));
    const TensorView out_view(out, op, "out");
    require_float64(out_view, op, "out");
    if (out_view.size() != rows.get().d) refuse(op, "out must have an element for each column");
    if (block < 1) refuse(op, "block must be at least 1, got " + std::to_string(block));
    block = std::min(block, std::max<std::int64_t>(rows.get().d, 1));
    bool finished;
    {
        const py::gil_scoped_release release;
        finished = block_diagonal(rows.get(), block, damping, norm,
                                  out_view.view<double>().data, signalled);
    }
    if (!finished) throw py::error_already_set();
}

Factor factor_of(const TensorView& view, std::int64_t count, const char* op, bool grows) {
    require_float64(view, op, "factor");
    if (view.ndim() != 2 || view.shape(0) != view.shape(1) || count < 0 ||
        count + (grows ? 1 : 0) > view.shape(0)) {
        refuse(op, "factor must be square, with room for " + std::to_string(count) + " rows");
    }
    return {view.view<double>().data, view.shape(1), count};
}

void run_factorize(py::handle factor, std::int64_t count, double least,
                   const py::object& root) {
    constexpr const char* op = "mfac_factorize";
    const TensorView view(factor, op, "factor");
    const Factor f = factor_of(view, count, op, false);
    const TensorView root_view(root.is_none() ? factor : py::handle(root), op, "root");
    if (!root.is_none()) require_rows(root_view, count, count, op, "root");
    const py::gil_scoped_release release;
    factorize(f.data, f.stride, count, least,
              root.is_none() ? nullptr : root_view.view<double>().data);
}

void run_drop_first(py::handle factor, std::int64_t count) {
    constexpr const char* op = "mfac_drop_first";
    const TensorView view(factor, op, "factor");
    const Factor f = factor_of(view, count, op, false);
    const py::gil_scoped_release release;
    if (count < 1) return;
    std::vector<double> scratch(static_cast<std::size_t>(count));
    drop_first(f, scratch.data());
}

void run_append(py::handle factor, std::int64_t count, py::handle column, double diagonal,
                double least) {
    constexpr const char* op = "mfac_append";
    const TensorView view(factor, op, "factor"), column_view(column, op, "column");
    const Factor f = factor_of(view, count, op, true);
    require_float64(column_view, op, "column");
    if (column_view.size() != count) refuse(op, "column must have an element for each row");
    const py::gil_scoped_release release;
    append(f, column_view.view<const double>().data, diagonal, least);
}

void run_solve(py::handle factor, std::int64_t count, py::handle b, bool only_first) {
    constexpr const char* op = "mfac_solve";
    const TensorView view(factor, op, "factor"), b_view(b, op, "b");
    const Factor f = factor_of(view, count, op, false);
    require_float64(b_view, op, "b");
    if (b_view.ndim() != 2 || b_view.shape(1) != count) {
        refuse(op, "b must have rows of " + std::to_string(count) + " elements");
    }
    const py::gil_scoped_release release;
    for (std::int64_t r = 0; r < b_view.shape(0); ++r) {
        solve(f, b_view.view<double>().data + r * count, only_first);
    }
}

}  // namespace
}  // namespace mfac

void bind_mfac(py::module_& module) {
    using py::arg;
    module.def("mfac_products", mfac::run_products, arg("window"), arg("slots"), arg("v"),
               arg("out"));
    module.def("mfac_push", mfac::run_push, arg("window"), arg("slots"), arg("into"),
               arg("gradient"), arg("v"), arg("out"));
    module.def("mfac_combine", mfac::run_combine, arg("window"), arg("slots"),
               arg("coefficient"), arg("alpha"), arg("v"), arg("out"));
    module.def("mfac_is_finite", mfac::run_is_finite, arg("window"), arg("gradient"));
    module.def("mfac_gram", mfac::run_gram, arg("window"), arg("slots"), arg("out"));
    module.def("mfac_whitened_squares", mfac::run_whitened_squares, arg("window"), arg("slots"),
               arg("root"), arg("out"));
    module.def("mfac_block_diagonal", mfac::run_block_diagonal, arg("window"), arg("slots"),
               arg("block"), arg("damping"), arg("norm"), arg("out"));
    module.def("mfac_factorize", mfac::run_factorize, arg("factor"), arg("count"), arg("least"),
               arg("root"));
    module.def("mfac_drop_first", mfac::run_drop_first, arg("factor"), arg("count"));
    module.def("mfac_append", mfac::run_append, arg("factor"), arg("count"), arg("column"),
               arg("diagonal"), arg("least"));
    module.def("mfac_solve", mfac::run_solve, arg("factor"), arg("count"), arg("b"),
               arg("only_first"));
}

}  // namespace curvkern
