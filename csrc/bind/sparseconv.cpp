// Products with sparse weights, and the order in which they walk them.
#include <pybind11/numpy.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <utility>

#include "bind/families.hpp"
#include "bind/signals.hpp"
#include "bind/sparseconv_checks.hpp"
#include "bind/tensor_view.hpp"
#include "sparseconv/depthwise.hpp"
#include "sparseconv/depthwise_gradients.hpp"
#include "sparseconv/first.hpp"
#include "sparseconv/product.hpp"

namespace curvkern {
namespace sparseconv {
namespace {

using Indices = py::array_t<std::int64_t, py::array::c_style>;

TensorView tensor(py::handle object, const char* op, const char* name) {
    return TensorView(object, op, name, dlpack::device_cpu, true);
}

// Null where it is None; else of the dtype of `like`.
const void* optional(std::optional<TensorView>& view, py::handle object, const char* op,
                     const char* name, const TensorView& like) {
    if (object.is_none()) return nullptr;
    view.emplace(object, op, name, dlpack::device_cpu, true);
    view->require_same_dtype(like);
    return view->data();
}

// Values in the order of a plan.
void require_values(const TensorView& view, const char* op, const Plan& plan, Storage storage) {
    const bool wide = storage == Storage::float64;
    if (view.dtype() != (wide ? Dtype::float64 : Dtype::float32)) {
        throw py::type_error(std::string(op) + ": values must be float64 of float64 and else " +
                             "float32");
    }
    require_shape(view, op, "values", {static_cast<std::int64_t>(plan.source().size())});
}

Matrix matrix_of(const Indices& crow, const Indices& col, std::int64_t rows,
                 std::int64_t columns, std::int64_t block_rows, std::int64_t block_columns) {
    const Matrix matrix{crow.data(), col.data(), rows, columns, block_rows, block_columns};
    if (block_rows < 1 || block_columns < 1 || rows % block_rows || columns % block_columns) {
        refuse("sparse_conv1x1", "blocks must divide the matrix");
    }
    try {
        check(matrix, crow.size(), col.size());
    } catch (const std::invalid_argument& error) {
        refuse("sparse_conv1x1", error.what());
    }
    return matrix;
}

void check_pattern(const Indices& crow, const Indices& col, std::int64_t rows,
                   std::int64_t columns, std::int64_t block_rows, std::int64_t block_columns) {
    matrix_of(crow, col, rows, columns, block_rows, block_columns);
}

Plan make_plan(const Indices& crow, const Indices& col, std::int64_t rows, std::int64_t columns,
               std::int64_t block_rows, std::int64_t block_columns, bool transposed,
               bool by_blocks, int vectors, int parts) {
    const Matrix matrix = matrix_of(crow, col, rows, columns, block_rows, block_columns);
    if (vectors < 1 || vectors > most_vectors) refuse("SparsePlan", "vectors must be 1 to 8");
    if (parts < 1) refuse("SparsePlan", "parts must be at least 1");
    const py::gil_scoped_release release;
    return Plan(matrix, {transposed, by_blocks, vectors, parts});
}

void run_gather(const Plan& plan, py::handle values, py::handle out) {
    constexpr const char* op = "sparse_gather";
    const TensorView from = tensor(values, op, "values"), to = tensor(out, op, "out");
    const auto n = static_cast<std::int64_t>(plan.source().size());
    require_values(to, op, plan, storage_of(from));
    if (from.size() != n) {
        refuse(op, "values must have " + std::to_string(n) + " elements, got " +
                       std::to_string(from.size()));
    }
    table().gather[static_cast<int>(storage_of(from))](from.data(), plan.source().data(), n,
                                                       to.data());
}

// Memory to work in that a thread keeps from call to call, unless it is much. A call within
// the call, from a handler of signals, finds none kept and takes its own.
class Scratch {
  public:
    explicit Scratch(std::int64_t bytes) : memory_(std::exchange(kept(), {})) {
        if (memory_.bytes >= bytes) return;
        memory_ = {};
        memory_.data = std::make_unique_for_overwrite<char[]>(static_cast<std::size_t>(bytes));
        memory_.bytes = bytes;
    }
    ~Scratch() {
        constexpr std::int64_t most = std::int64_t{8} << 20;
        if (memory_.bytes <= most) kept() = std::move(memory_);
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    void* data() const { return memory_.data.get(); }
    std::int64_t bytes() const { return memory_.bytes; }

  private:
    struct Memory {
        std::unique_ptr<char[]> data;
        std::int64_t bytes = 0;
    };
    static Memory& kept() {
        thread_local Memory memory;
        return memory;
    }
    Memory memory_;
};

// x.new_empty(shape), without Python code for the shape: a small product takes 2.2 us in place
// of 2.9.
py::object empty_like(py::handle x, const py::tuple& shape) {
    static PyObject* const name = PyUnicode_InternFromString("new_empty");
    PyObject* made = PyObject_CallMethodOneArg(x.ptr(), name, shape.ptr());
    if (made == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(made);
}

// Of images of one or of two dimensions, which count as one. Returns y, a new one for None.
py::object run_multiply(const Plan& plan, py::handle x, py::handle values, py::handle bias,
                        py::handle residual, const std::string& activation, py::object y) {
    constexpr const char* op = "sparse_conv1x1";
    const TensorView x_view = tensor(x, op, "x"), value_view = tensor(values, op, "values");
    if (x_view.ndim() != 3 && x_view.ndim() != 4) refuse(op, "x must have 3 or 4 dimensions");
    const std::int64_t batch = x_view.shape(0), height = x_view.shape(2), rows = plan.rows();
    const bool flat = x_view.ndim() == 3;
    const std::int64_t width = flat ? 1 : x_view.shape(3), pixels = height * width;
    if (flat) {
        require_shape(x_view, op, "x", {batch, plan.columns(), height});
        if (y.is_none()) y = empty_like(x, py::make_tuple(batch, rows, height));
    } else {
        require_shape(x_view, op, "x", {batch, plan.columns(), height, width});
        if (y.is_none()) y = empty_like(x, py::make_tuple(batch, rows, height, width));
    }
    const TensorView y_view = tensor(y, op, "y");
    if (flat) {
        require_shape(y_view, op, "y", {batch, rows, height});
    } else {
        require_shape(y_view, op, "y", {batch, rows, height, width});
    }
    y_view.require_same_dtype(x_view);
    std::optional<TensorView> bias_view, residual_view;
    Product product{&plan,
                    value_view.data(),
                    x_view.data(),
                    optional(bias_view, bias, op, "bias", x_view),
                    optional(residual_view, residual, op, "residual", x_view),
                    y_view.data(),
                    batch,
                    pixels,
                    storage_of(x_view),
                    activation_of(op, activation),
                    pixels,
                    pixels,
                    pixels};
    require_values(value_view, op, plan, product.storage);
    if (bias_view) require_shape(*bias_view, op, "bias", {rows});
    if (residual_view) residual_view->require_same_shape(y_view);
    if (y_view.size() == 0) return y;
    bool finished;
    {
        const py::gil_scoped_release release;
        const Scratch scratch(product_scratch(plan, batch, pixels, product.storage));
        finished = multiply(product, scratch.data(), scratch.bytes(), signalled);
    }
    if (!finished) throw py::error_already_set();
    return y;
}

void run_correlate(const Plan& plan, py::handle g, py::handle x, py::handle values) {
    constexpr const char* op = "sparse_sddmm";
    const TensorView g_view = tensor(g, op, "g"), x_view = tensor(x, op, "x"),
                     value_view = tensor(values, op, "values");
    if (x_view.ndim() != 3) refuse(op, "x must have 3 dimensions");
    if (plan.height() != 1) refuse(op, "the plan must be by rows");
    const std::int64_t batch = x_view.shape(0), pixels = x_view.shape(2);
    require_shape(x_view, op, "x", {batch, plan.columns(), pixels});
    require_shape(g_view, op, "g", {batch, plan.rows(), pixels});
    g_view.require_same_dtype(x_view);
    value_view.require_same_dtype(x_view);
    if (value_view.size() != static_cast<std::int64_t>(plan.source().size())) {
        refuse(op, "values must have an element for each that is stored");
    }
    const Storage storage = storage_of(x_view);
    bool finished;
    {
        const py::gil_scoped_release release;
        const Scratch scratch(correlation_scratch(plan, storage));
        finished = correlate(
            {&plan, g_view.data(), x_view.data(), value_view.data(), batch, pixels, storage},
            scratch.data(), scratch.bytes(), signalled);
    }
    if (!finished) throw py::error_already_set();
}

// Buffers have room for what a filter steps over: the bound keeps their sizes below 2^63.
void require_steps(const char* op, std::initializer_list<std::int64_t> steps,
                   std::initializer_list<std::int64_t> padding) {
    for (const std::int64_t step : steps) {
        if (step < 1) refuse(op, "stride and dilation must be at least 1");
        if (step > most_step) refuse(op, "stride or dilation is too large");
    }
    for (const std::int64_t side : padding) {
        if (side < 0) refuse(op, "padding must not be negative");
        if (side > most_step) refuse(op, "padding is too large");
    }
}

Depthwise sizes_of(const TensorView& x, const TensorView& weight, const TensorView& y,
                   std::int64_t stride, std::int64_t dilation, std::int64_t left,
                   std::int64_t top, const std::string& activation) {
    constexpr const char* op = "depthwise_conv2d";
    if (x.ndim() != 4) refuse(op, "x must have 4 dimensions");
    if (y.ndim() != 4) refuse(op, "y must have 4 dimensions");
    if (weight.ndim() != 4) refuse(op, "weight must have 4 dimensions");
    const std::int64_t channels = x.shape(1), filters = weight.shape(0);
    if (channels < 1 || filters < 1 || filters % channels != 0 || weight.size() == 0) {
        refuse(op, "weight must have filters for each channel of x");
    }
    require_shape(weight, op, "weight", {filters, 1, weight.shape(2), weight.shape(3)});
    require_shape(y, op, "y", {x.shape(0), filters, y.shape(2), y.shape(3)});
    require_steps(op, {stride, dilation}, {left, top});
    return {x.data(),
            weight.data(),
            nullptr,
            y.data(),
            x.shape(0),
            channels,
            filters / channels,
            x.shape(2),
            x.shape(3),
            y.shape(2),
            y.shape(3),
            weight.shape(2),
            weight.shape(3),
            stride,
            dilation,
            left,
            top,
            storage_of(x),
            activation_of(op, activation),
            0,
            x.shape(2) * x.shape(3),
            0,
            y.shape(2) * y.shape(3),
            0,
            y.shape(2)};
}

void run_depthwise(py::handle x, py::handle weight, py::handle bias, std::int64_t stride,
                   std::int64_t dilation, std::int64_t left, std::int64_t top,
                   const std::string& activation, py::handle y) {
    constexpr const char* op = "depthwise_conv2d";
    const TensorView x_view = tensor(x, op, "x"), weight_view = tensor(weight, op, "weight"),
                     y_view = tensor(y, op, "y");
    weight_view.require_same_dtype(x_view);
    y_view.require_same_dtype(x_view);
    Depthwise d =
        sizes_of(x_view, weight_view, y_view, stride, dilation, left, top, activation);
    std::optional<TensorView> bias_view;
    d.bias = optional(bias_view, bias, op, "bias", x_view);
    if (bias_view) require_shape(*bias_view, op, "bias", {weight_view.shape(0)});
    if (y_view.size() == 0) return;
    bool finished;
    {
        const py::gil_scoped_release release;
        const Scratch scratch(depthwise_scratch(d));
        finished = depthwise(d, scratch.data(), scratch.bytes(), signalled);
    }
    if (!finished) throw py::error_already_set();
}

// `in` writes x, else weight: gradients for y, that of the output.
template <bool in>
void run_depthwise_grad(py::handle x, py::handle weight, py::handle y, std::int64_t stride,
                        std::int64_t dilation, std::int64_t left, std::int64_t top) {
    constexpr const char* op =
        in ? "depthwise_conv2d_input_grad" : "depthwise_conv2d_weight_grad";
    const TensorView x_view = tensor(x, op, "x"), weight_view = tensor(weight, op, "weight"),
                     y_view = tensor(y, op, "y");
    weight_view.require_same_dtype(x_view);
    y_view.require_same_dtype(x_view);
    const Depthwise d =
        sizes_of(x_view, weight_view, y_view, stride, dilation, left, top, "none");
    if (x_view.size() == 0 || y_view.size() == 0) refuse(op, "x and y must not be empty");
    bool finished;
    {
        const py::gil_scoped_release release;
        const Scratch scratch(in ? depthwise_input_scratch(d) : depthwise_weight_scratch(d));
        finished = (in ? depthwise_input_grad : depthwise_weight_grad)(
            d, scratch.data(), scratch.bytes(), signalled);
    }
    if (!finished) throw py::error_already_set();
}

FirstConv first_of(const TensorView& x, const TensorView& weight, const TensorView& y,
                   std::int64_t stride, std::int64_t left, std::int64_t top,
                   const std::string& activation) {
    constexpr const char* op = "first_conv2d";
    if (x.ndim() != 4) refuse(op, "x must have 4 dimensions");
    if (y.ndim() != 4) refuse(op, "y must have 4 dimensions");
    if (weight.ndim() != 4) refuse(op, "weight must have 4 dimensions");
    if (x.size() == 0 || weight.size() == 0 || y.size() == 0) {
        refuse(op, "x, weight and y must not be empty");
    }
    const std::int64_t channels = x.shape(1), filters = weight.shape(0);
    require_shape(weight, op, "weight", {filters, channels, weight.shape(2), weight.shape(3)});
    require_shape(y, op, "y", {x.shape(0), filters, y.shape(2), y.shape(3)});
    require_steps(op, {stride}, {left, top});
    return {x.data(),
            weight.data(),
            nullptr,
            y.data(),
            x.shape(0),
            channels,
            filters,
            x.shape(2),
            x.shape(3),
            y.shape(2),
            y.shape(3),
            weight.shape(2),
            weight.shape(3),
            stride,
            left,
            top,
            storage_of(x),
            activation_of(op, activation),
            0,
            x.shape(2) * x.shape(3),
            0,
            y.shape(2) * y.shape(3)};
}

void run_first(py::handle x, py::handle weight, py::handle bias, std::int64_t stride,
               std::int64_t left, std::int64_t top, const std::string& activation,
               py::handle y) {
    constexpr const char* op = "first_conv2d";
    const TensorView x_view = tensor(x, op, "x"), weight_view = tensor(weight, op, "weight"),
                     y_view = tensor(y, op, "y");
    weight_view.require_same_dtype(x_view);
    y_view.require_same_dtype(x_view);
    FirstConv f = first_of(x_view, weight_view, y_view, stride, left, top, activation);
    std::optional<TensorView> bias_view;
    f.bias = optional(bias_view, bias, op, "bias", x_view);
    if (bias_view) require_shape(*bias_view, op, "bias", {weight_view.shape(0)});
    bool finished;
    {
        const py::gil_scoped_release release;
        const Scratch scratch(first_scratch(f));
        finished = first_conv(f, scratch.data(), scratch.bytes(), signalled);
    }
    if (!finished) throw py::error_already_set();
}

}  // namespace
}  // namespace sparseconv

void bind_sparseconv(py::module_& module) {
    using py::arg;
    using sparseconv::Plan;
    py::class_<Plan>(module, "SparsePlan")
        .def(py::init(&sparseconv::make_plan), arg("crow"), arg("col"), arg("rows"),
             arg("columns"), arg("block_rows"), arg("block_columns"), arg("transposed"),
             arg("by_blocks"), arg("vectors"), arg("parts"))
        .def("size", [](const Plan& plan) { return plan.source().size(); })
        .def("gather", sparseconv::run_gather, arg("values"), arg("out"))
        .def("multiply", sparseconv::run_multiply, arg("x"), arg("values"), arg("bias"),
             arg("residual"), arg("activation"), arg("y") = py::none())
        .def("sddmm", sparseconv::run_correlate, arg("g"), arg("x"), arg("values"));
    module.def("depthwise", sparseconv::run_depthwise, arg("x"), arg("weight"), arg("bias"),
               arg("stride"), arg("dilation"), arg("left"), arg("top"), arg("activation"),
               arg("y"));
    module.def("depthwise_input_grad", sparseconv::run_depthwise_grad<true>, arg("x"),
               arg("weight"), arg("y"), arg("stride"), arg("dilation"), arg("left"),
               arg("top"));
    module.def("depthwise_weight_grad", sparseconv::run_depthwise_grad<false>, arg("x"),
               arg("weight"), arg("y"), arg("stride"), arg("dilation"), arg("left"),
               arg("top"));
    module.def("first", sparseconv::run_first, arg("x"), arg("weight"), arg("bias"),
               arg("stride"), arg("left"), arg("top"), arg("activation"), arg("y"));
    module.def("check_sparse_pattern", sparseconv::check_pattern, arg("crow"), arg("col"),
               arg("rows"), arg("columns"), arg("block_rows"), arg("block_columns"));
}

}  // namespace curvkern
