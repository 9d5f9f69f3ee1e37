#include "bind/sparseconv_device.hpp"

#include <pybind11/stl.h>

#include "bind/sparseconv_arguments.hpp"

namespace curvkern {
namespace sparseconv::device {
namespace {

class Convolutions {
  public:
    Convolutions(const Calls& calls, dlpack::DeviceType where) : calls_(calls), where_(where) {}

    void multiply(const py::tuple& matrix, Extent block, py::handle values, py::handle x,
                  py::handle bias, py::handle residual, const std::string& activation,
                  std::int64_t lanes, py::handle y, std::uintptr_t stream) const {
        constexpr const char* op = "sparse_conv1x1";
        const Tensors tensors(op, where_, x, "x");
        tensors.require_rank(tensors.first(), "x", 3);
        if (lanes < 1 || lanes > warp_size || (lanes & (lanes - 1)) != 0) {
            refuse(op, "lanes must be 1, 2, 4, 8, 16 or 32, got " + std::to_string(lanes));
        }
        Product p{};
        p.storage = tensors.storage();
        p.matrix = blocks_of(op, tensors, matrix, block);
        p.batch = tensors.first().shape(0);
        p.columns = tensors.first().shape(1);
        p.pixels = tensors.first().shape(2);
        if (p.columns % block.second != 0) refuse(op, "block must divide x's channels");
        const std::int64_t rows = p.matrix.rows * block.first;
        p.values = values_of(tensors, values, p.matrix);
        tensors.require_aligned(p.values, "values");
        p.x = tensors.first().data();
        p.bias = tensors.optional(bias, "bias", {rows});
        p.residual = tensors.optional(residual, "residual", {p.batch, rows, p.pixels});
        p.out = tensors.of_shape(y, "y", {p.batch, rows, p.pixels});
        p.activation = activation_of(op, activation);
        p.lanes = lanes;
        if (p.batch * rows * p.pixels == 0) return;
        const py::gil_scoped_release release;
        calls_.multiply(tensors.place(stream), p);
    }

    void transpose(py::handle values, py::handle source, Extent block, py::handle out,
                   std::uintptr_t stream) const {
        constexpr const char* op = "sparse_conv1x1_input_grad";
        const Tensors tensors(op, where_, values, "values");
        const std::int64_t count = tensors.beside(source, "source").size();
        const Blocks blocks{nullptr, nullptr, nullptr, 0, count, block.first, block.second};
        const Blocks turned{nullptr, nullptr, nullptr, 0, count, block.second, block.first};
        const Transposition t{tensors.storage(),
                              values_of(tensors, values, blocks),
                              tensors.numbers<std::int64_t>(source, "source", count),
                              values_of(tensors, out, turned, "out"),
                              count,
                              block.first,
                              block.second};
        if (count == 0) return;
        const py::gil_scoped_release release;
        calls_.transpose(tensors.place(stream), t);
    }

    std::int64_t correlation_workspace(std::int64_t count, Extent block, std::int64_t tiles,
                                       std::int64_t batch, std::int64_t pixels) const {
        Correlation c{};
        c.matrix.count = count;
        c.matrix.height = block.first;
        c.matrix.width = block.second;
        c.tiles = tiles;
        c.batch = batch;
        c.pixels = pixels;
        return calls_.correlation_workspace(c);
    }

    // `matrix` is (crow, col, order, row, first): the last two have a number a tile.
    void correlate(const py::tuple& matrix, Extent block, py::handle gy, py::handle x,
                   py::handle workspace, py::handle values, std::uintptr_t stream) const {
        constexpr const char* op = "sparse_conv1x1_sddmm";
        const Tensors tensors(op, where_, x, "x");
        tensors.require_rank(tensors.first(), "x", 3);
        if (matrix.size() != 5) {
            refuse(op, "matrix must be (crow, col, order, row, first)");
        }
        Correlation c{};
        c.storage = tensors.storage();
        c.matrix = blocks_of(op, tensors, matrix, block);
        c.tiles = tensors.beside(matrix[3], "row").size();
        c.row = tensors.numbers<std::int32_t>(matrix[3], "row", c.tiles);
        c.first = tensors.numbers<std::int64_t>(matrix[4], "first", c.tiles);
        c.batch = tensors.first().shape(0);
        c.columns = tensors.first().shape(1);
        c.pixels = tensors.first().shape(2);
        c.x = tensors.first().data();
        c.gy = tensors.of_shape(gy, "gy", {c.batch, c.matrix.rows * block.first, c.pixels});
        c.values = values_of(tensors, values, c.matrix);
        c.workspace = tensors.workspace(workspace, calls_.correlation_workspace(c));
        if (c.matrix.count == 0) return;
        const py::gil_scoped_release release;
        calls_.correlate(tensors.place(stream), c);
    }

    void convolve(bool depthwise, py::handle x, py::handle weight, py::handle bias,
                  std::int64_t stride, const Padding& padding, std::int64_t dilation,
                  const std::string& activation, py::handle y, std::uintptr_t stream) const {
        const char* op = depthwise ? "depthwise_conv2d" : "first_conv2d";
        const Tensors tensors(op, where_, x, "x");
        const TensorView w = tensors.beside(weight, "weight"), out = tensors.beside(y, "y");
        tensors.require_rank(tensors.first(), "x", 4);
        tensors.require_rank(w, "weight", 4);
        tensors.require_rank(out, "y", 4);
        const std::int64_t batch = tensors.first().shape(0),
                           channels = tensors.first().shape(1), filters = w.shape(0);
        const std::int64_t taken = depthwise ? 1 : channels;
        if (depthwise && filters != channels) refuse(op, "weight must have a filter each");
        const Window window = window_of(op, size_of(tensors.first()), size_of(out), size_of(w),
                                        stride, padding, dilation);
        const Convolution c{
            tensors.storage(),
            window,
            tensors.first().data(),
            tensors.of_shape(weight, "weight", {filters, taken, w.shape(2), w.shape(3)}),
            tensors.optional(bias, "bias", {filters}),
            tensors.of_shape(y, "y", {batch, filters, out.shape(2), out.shape(3)}),
            batch,
            channels,
            filters,
            activation_of(op, activation)};
        if (out.size() == 0) return;
        const py::gil_scoped_release release;
        (depthwise ? calls_.depthwise : calls_.first)(tensors.place(stream), c);
    }

    void input_gradient(py::handle gy, py::handle weight, std::int64_t stride,
                        const Padding& padding, std::int64_t dilation, py::handle gx,
                        std::uintptr_t stream) const {
        constexpr const char* op = "depthwise_conv2d_input_grad";
        const Tensors tensors(op, where_, gy, "gy");
        const TensorView w = tensors.beside(weight, "weight"), out = tensors.beside(gx, "gx");
        tensors.require_rank(tensors.first(), "gy", 4);
        tensors.require_rank(w, "weight", 4);
        tensors.require_rank(out, "gx", 4);
        const std::int64_t batch = tensors.first().shape(0),
                           channels = tensors.first().shape(1);
        const Window window = window_of(op, size_of(out), size_of(tensors.first()), size_of(w),
                                        stride, padding, dilation);
        const InputGradient g{
            tensors.storage(),
            window,
            tensors.first().data(),
            tensors.of_shape(weight, "weight", {channels, 1, w.shape(2), w.shape(3)}),
            tensors.of_shape(gx, "gx", {batch, channels, out.shape(2), out.shape(3)}),
            batch,
            channels};
        if (out.size() == 0) return;
        const py::gil_scoped_release release;
        calls_.input_gradient(tensors.place(stream), g);
    }

    std::int64_t weight_workspace(Extent kernel, Extent out, std::int64_t batch,
                                  std::int64_t channels) const {
        WeightGradient g{};
        g.window.kernel_height = kernel.first;
        g.window.kernel_width = kernel.second;
        g.window.out_height = out.first;
        g.window.out_width = out.second;
        g.batch = batch;
        g.channels = channels;
        return calls_.weight_workspace(g);
    }

    void weight_gradient(py::handle gy, py::handle x, std::int64_t stride,
                         const Padding& padding, std::int64_t dilation, py::handle workspace,
                         py::handle gw, std::uintptr_t stream) const {
        constexpr const char* op = "depthwise_conv2d_weight_grad";
        const Tensors tensors(op, where_, gy, "gy");
        const TensorView image = tensors.beside(x, "x"), out = tensors.beside(gw, "gw");
        tensors.require_rank(tensors.first(), "gy", 4);
        tensors.require_rank(image, "x", 4);
        tensors.require_rank(out, "gw", 4);
        const std::int64_t batch = tensors.first().shape(0),
                           channels = tensors.first().shape(1);
        const Window window = window_of(op, size_of(image), size_of(tensors.first()),
                                        size_of(out), stride, padding, dilation);
        WeightGradient g{
            tensors.storage(),
            window,
            tensors.first().data(),
            tensors.of_shape(x, "x", {batch, channels, window.height, window.width}),
            tensors.of_shape(gw, "gw",
                             {channels, 1, window.kernel_height, window.kernel_width}),
            batch,
            channels,
            nullptr};
        g.workspace = tensors.workspace(workspace, calls_.weight_workspace(g));
        if (out.size() == 0) return;
        const py::gil_scoped_release release;
        calls_.weight_gradient(tensors.place(stream), g);
    }

  private:
    static Extent size_of(const TensorView& view) { return {view.shape(2), view.shape(3)}; }

    static void* values_of(const Tensors& tensors, py::handle values, const Blocks& m,
                           const char* name = "values") {
        return m.height * m.width == 1
                   ? tensors.of_shape(values, name, {m.count})
                   : tensors.of_shape(values, name, {m.count, m.height, m.width});
    }

    Calls calls_;
    dlpack::DeviceType where_;
};

}  // namespace
}  // namespace sparseconv::device

void bind_sparseconv_device(py::module_& module, const sparseconv::device::Calls& calls,
                            dlpack::DeviceType where) {
    using namespace sparseconv::device;
    using py::arg;
    using sparseconv::Padding;
    const Convolutions on(calls, where);
    module.def(
        "sparseconv_device_multiply",
        [on](const py::tuple& matrix, Extent block, py::handle values, py::handle x,
             py::handle bias, py::handle residual, const std::string& activation,
             std::int64_t lanes, py::handle y, std::uintptr_t stream) {
            on.multiply(matrix, block, values, x, bias, residual, activation, lanes, y, stream);
        },
        arg("matrix"), arg("block"), arg("values"), arg("x"), arg("bias"), arg("residual"),
        arg("activation"), arg("lanes"), arg("y"), arg("stream"));
    module.def(
        "sparseconv_device_transpose",
        [on](py::handle values, py::handle source, Extent block, py::handle out,
             std::uintptr_t stream) { on.transpose(values, source, block, out, stream); },
        arg("values"), arg("source"), arg("block"), arg("out"), arg("stream"));
    module.def(
        "sparseconv_device_correlation_workspace",
        [on](std::int64_t count, Extent block, std::int64_t tiles, std::int64_t batch,
             std::int64_t pixels) {
            return on.correlation_workspace(count, block, tiles, batch, pixels);
        },
        arg("count"), arg("block"), arg("tiles"), arg("batch"), arg("pixels"));
    module.def(
        "sparseconv_device_correlate",
        [on](const py::tuple& matrix, Extent block, py::handle gy, py::handle x,
             py::handle workspace, py::handle values, std::uintptr_t stream) {
            on.correlate(matrix, block, gy, x, workspace, values, stream);
        },
        arg("matrix"), arg("block"), arg("gy"), arg("x"), arg("workspace"), arg("values"),
        arg("stream"));
    module.def(
        "sparseconv_device_convolve",
        [on](bool depthwise, py::handle x, py::handle weight, py::handle bias,
             std::int64_t stride, const Padding& padding, std::int64_t dilation,
             const std::string& activation, py::handle y, std::uintptr_t stream) {
            on.convolve(depthwise, x, weight, bias, stride, padding, dilation, activation, y,
                        stream);
        },
        arg("depthwise"), arg("x"), arg("weight"), arg("bias"), arg("stride"), arg("padding"),
        arg("dilation"), arg("activation"), arg("y"), arg("stream"));
    module.def(
        "sparseconv_device_input_gradient",
        [on](py::handle gy, py::handle weight, std::int64_t stride, const Padding& padding,
             std::int64_t dilation, py::handle gx, std::uintptr_t stream) {
            on.input_gradient(gy, weight, stride, padding, dilation, gx, stream);
        },
        arg("gy"), arg("weight"), arg("stride"), arg("padding"), arg("dilation"), arg("gx"),
        arg("stream"));
    module.def(
        "sparseconv_device_weight_workspace",
        [on](Extent kernel, Extent out, std::int64_t batch, std::int64_t channels) {
            return on.weight_workspace(kernel, out, batch, channels);
        },
        arg("kernel"), arg("out"), arg("batch"), arg("channels"));
    module.def(
        "sparseconv_device_weight_gradient",
        [on](py::handle gy, py::handle x, std::int64_t stride, const Padding& padding,
             std::int64_t dilation, py::handle workspace, py::handle gw,
             std::uintptr_t stream) {
            on.weight_gradient(gy, x, stride, padding, dilation, workspace, gw, stream);
        },
        arg("gy"), arg("x"), arg("stride"), arg("padding"), arg("dilation"), arg("workspace"),
        arg("gw"), arg("stream"));
}

}  // namespace curvkern
