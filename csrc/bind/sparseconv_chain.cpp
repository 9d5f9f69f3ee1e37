// Chains of convolutions: how the shapes of their stages relate.
#include <pybind11/stl.h>

#include "bind/families.hpp"
#include "bind/signals.hpp"
#include "bind/sparseconv_checks.hpp"
#include "sparseconv/chain.hpp"

namespace curvkern {
namespace sparseconv::chains {
namespace {

constexpr const char* op = "ConvChain";

// A chain with the objects whose memory it reads.
class Held {
  public:
    Held(std::array<std::int64_t, 4> shape, std::int64_t element, const py::list& stages,
         int threads, std::array<std::int64_t, 2> limits, std::array<std::int64_t, 2> group)
        : objects_(stages),  // a copy: the list may change
          storage_(element == 8   ? Storage::float64
                   : element == 4 ? Storage::float32
                                  : Storage::bfloat16),
          chain_(read(shape, {group[0], group[1]}, stages), {shape[1], shape[2], shape[3]},
                 storage_, shape[0], threads, {limits[0], limits[1]}, {group[0], group[1]}) {}

    const Chain& chain() const { return chain_; }

    void run(py::handle x, py::handle workspace, py::handle y) const {
        const TensorView from(x, op, "x", dlpack::device_cpu, true);
        const TensorView to(y, op, "y", dlpack::device_cpu, true);
        const TensorView memory(workspace, op, "workspace", dlpack::device_cpu);
        require(from, "x", chain_.input());
        require(to, "y", chain_.output());
        if (memory.dtype() != Dtype::float32 || memory.size() * 4 < chain_.workspace()) {
            refuse(op, "workspace must be float32 and have " +
                           std::to_string(chain_.workspace() / 4) + " elements");
        }
        bool finished;
        {
            const py::gil_scoped_release release;
            finished = chain_.run(from.data(), to.data(), memory.data(), signalled);
        }
        if (!finished) throw py::error_already_set();
    }

  private:
    void require(const TensorView& view, const char* name, const Extent& e) const {
        const std::int64_t expected[] = {chain_.batch(), e.channels, e.height, e.width};
        bool same = view.ndim() == 4 && storage_of(view) == chain_.storage();
        for (int i = 0; same && i < 4; ++i) same = view.shape(i) == expected[i];
        if (same) return;
        refuse(op, std::string(name) + " is not what the chain was made for");
    }

    // A vector of so many elements, or null.
    const void* vector(const py::handle& object, const char* name, std::int64_t size) const {
        if (object.is_none()) return nullptr;
        const TensorView view(object, op, name, dlpack::device_cpu, true);
        if (view.size() != size || storage_of(view) != storage_) {
            refuse(op, std::string(name) + " must have " + std::to_string(size) +
                           " elements of the dtype of the chain");
        }
        return view.data();
    }

    static int tensor(const py::handle& number, std::size_t count) {
        const int found = number.cast<int>();
        if (found < 0 || found >= static_cast<int>(count)) {
            refuse(op, "a stage must take what an earlier one computes, got " +
                           std::to_string(found));
        }
        return found;
    }

    Stage pointwise(const py::tuple& parts, const std::vector<Extent>& extents) const {
        Stage stage{};
        stage.input = tensor(parts[1], extents.size());
        stage.residual = parts[2].is_none() ? -1 : tensor(parts[2], extents.size());
        const auto& plan = parts[3].cast<const Plan&>();
        const TensorView values(parts[4], op, "values", dlpack::device_cpu);
        const Extent& from = extents[static_cast<std::size_t>(stage.input)];
        const bool wide = storage_ == Storage::float64;
        if (values.size() != static_cast<std::int64_t>(plan.source().size()) ||
            values.dtype() != (wide ? Dtype::float64 : Dtype::float32)) {
            refuse(op, "values must be those of the plan");
        }
        if (plan.columns() != from.channels) {
            refuse(op, "a product of " + std::to_string(plan.columns()) +
                           " channels is given " + std::to_string(from.channels));
        }
        stage.out = {plan.rows(), from.height, from.width};
        require_room(stage.out);
        if (stage.residual >= 0) {
            const Extent& beside = extents[static_cast<std::size_t>(stage.residual)];
            if (beside.channels != stage.out.channels || beside.height != stage.out.height ||
                beside.width != stage.out.width) {
                refuse(op, "a residual must have the shape of what it is added to");
            }
        }
        stage.product.plan = &plan;
        stage.product.value = values.data();
        stage.product.bias = vector(parts[5], "bias", plan.rows());
        stage.product.activation = activation_of(op, parts[6].cast<std::string>());
        if (!parts[7].is_none()) {
            stage.gated = true;
            stage.gate = gate(parts[7].cast<py::tuple>(), from.channels);
        }
        return stage;
    }

    Gate gate(const py::tuple& parts, std::int64_t channels) const {
        if (storage_ != Storage::float32) refuse(op, "gates are of float32");
        const TensorView squeeze(parts[0], op, "squeeze", dlpack::device_cpu);
        const std::int64_t inner = squeeze.size() / channels;
        const auto numbers = [&](int i, const char* name, std::int64_t size) {
            return static_cast<const float*>(
                vector(parts[static_cast<std::size_t>(i)], name, size));
        };
        if (parts[2].is_none()) refuse(op, "a gate must have weights");
        return {numbers(0, "squeeze", inner * channels),
                numbers(1, "squeeze_bias", inner),
                numbers(2, "excite", inner * channels),
                numbers(3, "excite_bias", channels),
                channels,
                inner,
                activation_of(op, parts[4].cast<std::string>()),
                parts[5].cast<bool>()};
    }

    Stage depthwise(const py::tuple& parts, const std::vector<Extent>& extents) const {
        Stage stage{};
        stage.kind = Stage::Kind::depthwise;
        stage.input = tensor(parts[1], extents.size());
        stage.residual = -1;
        const Extent& from = extents[static_cast<std::size_t>(stage.input)];
        const TensorView weight(parts[2], op, "weight", dlpack::device_cpu, true);
        if (weight.ndim() != 4 || weight.size() == 0 || weight.shape(1) != 1 ||
            weight.shape(0) % from.channels != 0 || storage_of(weight) != storage_) {
            refuse(op, "weight must have filters for each channel");
        }
        const auto stride = parts[4].cast<std::int64_t>(),
                   dilation = parts[5].cast<std::int64_t>();
        const auto padding = parts[6].cast<Padding>();
        Depthwise& d = stage.filters;
        d.weight = weight.data();
        d.bias = vector(parts[3], "bias", weight.shape(0));
        d.images = 1;
        d.channels = from.channels;
        d.multiplier = weight.shape(0) / from.channels;
        d.height = from.height;
        d.width = from.width;
        d.kernel_height = weight.shape(2);
        d.kernel_width = weight.shape(3);
        window(stage, from, weight, stride, dilation, padding);
        d.out_height = stage.out.height;
        d.out_width = stage.out.width;
        d.stride = stride;
        d.dilation = dilation;
        d.left = padding[0];
        d.top = padding[2];
        d.storage = storage_;
        d.activation = activation_of(op, parts[7].cast<std::string>());
        return stage;
    }

    Stage first(const py::tuple& parts, const std::vector<Extent>& extents) const {
        Stage stage{};
        stage.kind = Stage::Kind::first;
        stage.input = tensor(parts[1], extents.size());
        stage.residual = -1;
        const Extent& from = extents[static_cast<std::size_t>(stage.input)];
        const TensorView weight(parts[2], op, "weight", dlpack::device_cpu, true);
        if (weight.ndim() != 4 || weight.size() == 0 || weight.shape(1) != from.channels ||
            storage_of(weight) != storage_) {
            refuse(op, "weight must have filters of all channels");
        }
        const auto stride = parts[4].cast<std::int64_t>();
        const auto padding = parts[5].cast<Padding>();
        window(stage, from, weight, stride, 1, padding);
        FirstConv& f = stage.first;
        f.weight = weight.data();
        f.bias = vector(parts[3], "bias", weight.shape(0));
        f.images = 1;
        f.channels = from.channels;
        f.filters = weight.shape(0);
        f.height = from.height;
        f.width = from.width;
        f.out_height = stage.out.height;
        f.out_width = stage.out.width;
        f.kernel_height = weight.shape(2);
        f.kernel_width = weight.shape(3);
        f.stride = stride;
        f.left = padding[0];
        f.top = padding[2];
        f.storage = storage_;
        f.activation = activation_of(op, parts[6].cast<std::string>());
        return stage;
    }

    // Sizes of which all that is added and multiplied later stays below 2^63.
    static void require_room(const Extent& e) {
        constexpr std::int64_t most = std::int64_t{1} << 52;
        std::int64_t elements = 0;
        if (e.channels < 1) refuse(op, "a stage must have channels");
        if (__builtin_mul_overflow(e.height, e.width, &elements) ||
            __builtin_mul_overflow(elements, e.channels, &elements) || elements > most) {
            refuse(op, "what a stage computes is too large");
        }
    }

    // What a stage computes, and which rows it takes for that.
    static void window(Stage& stage, const Extent& from, const TensorView& weight,
                       std::int64_t stride, std::int64_t dilation, const Padding& padding) {
        constexpr std::int64_t most = most_step;
        if (stride < 1 || dilation < 1) refuse(op, "strides must be positive");
        if (stride > most || dilation > most) refuse(op, "strides are too large");
        const auto size = [&](std::int64_t n, std::int64_t before, std::int64_t after,
                              std::int64_t taps) {
            if (before > most || after > most) {
                refuse(op, "padding is too large");
            }
            const std::int64_t room = n + before + after - dilation * (taps - 1) - 1;
            if (before < 0 || after < 0 || room < 0) {
                refuse(op, "a filter must fit into the image");
            }
            return room / stride + 1;
        };
        stage.out = {weight.shape(0),
                     size(from.height, padding[2], padding[3], weight.shape(2)),
                     size(from.width, padding[0], padding[1], weight.shape(3))};
        require_room(stage.out);
        stage.reach = dilation * (weight.shape(2) - 1) + 1;
        stage.step = stride;
        stage.top = padding[2];
    }

    std::vector<Stage> read(const std::array<std::int64_t, 4>& shape, const Group& group,
                            const py::list& stages) const {
        for (const std::int64_t size : shape) {
            if (size < 1) refuse(op, "x must not be empty");
        }
        std::vector<Extent> extents{{shape[1], shape[2], shape[3]}};
        require_room(extents[0]);
        std::vector<Stage> found;
        for (const py::handle item : stages) {
            const auto parts = item.cast<py::tuple>();
            const auto kind = parts[0].cast<std::string>();
            if (kind == "pointwise") {
                found.push_back(pointwise(parts, extents));
            } else if (kind == "depthwise") {
                found.push_back(depthwise(parts, extents));
            } else if (kind == "first") {
                found.push_back(first(parts, extents));
            } else {
                refuse(op, "there is no stage '" + kind + "'");
            }
            extents.push_back(found.back().out);
        }
        if (found.empty()) refuse(op, "a chain must have stages");
        check_group(shape[0], found, extents, group);
        return found;
    }

    static void check_group(std::int64_t batch, const std::vector<Stage>& stages,
                            const std::vector<Extent>& extents, const Group& group) {
        const auto count = static_cast<std::int64_t>(stages.size());
        if (group.images < 1 || group.images > std::max<std::int64_t>(1, batch)) {
            refuse(op, "a group must have images of the batch");
        }
        if (group.first < 0 || group.first > count) refuse(op, "a group must begin at a stage");
        for (auto i = static_cast<std::size_t>(group.first); i < stages.size(); ++i) {
            if (!takes_group(stages[i])) refuse(op, "a stage takes one image at a time");
        }
        for (Extent e : extents) {
            if (__builtin_mul_overflow(e.channels, group.images, &e.channels)) {
                refuse(op, "a group is too large");
            }
            require_room(e);
        }
    }

    py::tuple objects_;
    Storage storage_;
    Chain chain_;
};

}  // namespace
}  // namespace sparseconv::chains

void bind_sparseconv_chain(py::module_& module) {
    using py::arg;
    using sparseconv::chains::Held;
    py::class_<Held>(module, "ConvChain")
        .def(py::init<std::array<std::int64_t, 4>, std::int64_t, const py::list&, int,
                      std::array<std::int64_t, 2>, std::array<std::int64_t, 2>>(),
             arg("shape"), arg("element"), arg("stages"), arg("threads"), arg("limits"),
             arg("group"))
        .def("workspace", [](const Held& held) { return (held.chain().workspace() + 3) / 4; })
        .def("shape",
             [](const Held& held) {
                 const sparseconv::Extent e = held.chain().output();
                 return std::array{held.chain().batch(), e.channels, e.height, e.width};
             })
        .def("segments", [](const Held& held) { return held.chain().segments(); })
        .def("run", &Held::run, arg("x"), arg("workspace"), arg("y"));
}

}  // namespace curvkern
