#include "bind/hutchinson_device.hpp"

#include <pybind11/stl.h>

#include "bind/hutchinson_arguments.hpp"

namespace curvkern {
namespace hutchinson::device {
namespace {

// `workspace(size)` returns a tensor of so many float64 numbers, which lives on when the call
// returns; torch keeps its memory until the stream has used it.
struct Runner {
    Calls calls;
    dlpack::DeviceType where;

    void operator()(const char* op, const Leaves& leaves, const Step& step,
                    const py::function& workspace, std::uintptr_t stream) const {
        if (leaves.empty()) return;
        run(op, leaves.front(), static_cast<Work>(step.rule), step, workspace, stream);
    }
    void run(const char* op, const TensorView& like, Work work, const Step& step,
             const py::function& workspace, std::uintptr_t stream) const {
        const std::int64_t needed = calls.workspace(step);
        const py::object object = workspace(needed);
        const TensorView memory(object, op, "workspace", where);
        memory.require_same_device(like);
        if (memory.dtype() != Dtype::float64 || memory.size() < needed) {
            refuse(op, "workspace must have " + std::to_string(needed) + " float64 elements");
        }
        const py::gil_scoped_release release;
        calls.run({like.device_id(), stream}, work, step, memory.view<double>().data);
    }
};

void run_signs(const Runner& runner, const Objects& out, const Numbers& offsets,
               std::int64_t seed, std::int64_t index, std::int64_t probe,
               const py::function& workspace, std::uintptr_t stream) {
    constexpr const char* op = "hutchinson_signs";
    require_length(op, "offsets", offsets.size(), out.size());
    const Views views = Lists(op, runner.where).params("out", out);
    require_offsets(op, offsets);
    if (views.empty()) return;
    std::vector<Leaf> leaves;
    for (std::size_t i = 0; i < views.size(); ++i) {
        leaves.push_back({views[i].data(),
                          nullptr,
                          nullptr,
                          nullptr,
                          {},
                          views[i].size(),
                          1,
                          offsets[i],
                          storage_of(views[i]),
                          false,
                          {}});
    }
    const Step step{Rule::adahessian,
                    leaves.data(),
                    static_cast<std::int64_t>(leaves.size()),
                    1,
                    true,
                    static_cast<std::uint64_t>(seed),
                    static_cast<std::uint32_t>(index),
                    static_cast<std::uint32_t>(probe),
                    nullptr};
    runner.run(op, views.front(), Work::signs, step, workspace, stream);
}

void run_accumulate(const Runner& runner, const Objects& mean, const Objects& square,
                    const Objects& hz, const Objects& z, const Numbers& offsets,
                    std::int64_t seed, std::int64_t index, std::int64_t probe,
                    std::int64_t count, const py::function& workspace, std::uintptr_t stream) {
    const MomentLists of(runner.where, mean, square, hz, z, offsets, count);
    if (of.hz.empty()) return;
    const std::vector<const void*> products = pointers(of.hz, 0, 1),
                                   probes = pointers(of.z, 0, 1);
    std::vector<Leaf> leaves;
    for (std::size_t i = 0; i < of.hz.size(); ++i) {
        Factors factors{};
        factors.weight = 1 / static_cast<double>(count);
        leaves.push_back(
            {nullptr,
             nullptr,
             &products[i],
             probes.empty() ? nullptr : &probes[i],
             {of.mean[i].data(), of.square.empty() ? nullptr : of.square[i].data()},
             of.hz[i].size(),
             1,
             offsets[i],
             storage_of(of.hz[i]),
             false,
             factors});
    }
    const Step step{Rule::metric,  // whose D needs signs
                    leaves.data(),
                    static_cast<std::int64_t>(leaves.size()),
                    1,
                    true,
                    static_cast<std::uint64_t>(seed),
                    static_cast<std::uint32_t>(index),
                    static_cast<std::uint32_t>(probe),
                    nullptr};
    runner.run(of.op, of.hz.front(), Work::moments, step, workspace, stream);
}

}  // namespace
}  // namespace hutchinson::device

void bind_hutchinson_device(py::module_& module, const hutchinson::device::Calls& calls,
                            dlpack::DeviceType where) {
    using namespace hutchinson;
    using Function = const py::function&;
    using py::arg;
    const device::Runner runner{calls, where};
    const StepBindings steps(where, runner);
    module.def(
        "hutchinson_device_step",
        [steps](const Objects& params, const Objects& grads, const Objects& hz,
                const Objects& z, const Objects& m, const Objects& v, const Objects& stale,
                const Numbers& blocks, const Numbers& offsets, const Numbers& rows,
                const Reals& settings, double scale, bool draws, std::int64_t seed,
                std::int64_t step, Function workspace, std::uintptr_t stream) {
            steps.adahessian(params, grads, hz, z, m, v, stale, blocks, offsets, rows, settings,
                             scale, draws, seed, step, workspace, stream);
        },
        arg("params"), arg("grads"), arg("hz"), arg("z"), arg("m"), arg("v"), arg("stale"),
        arg("blocks"), arg("offsets"), arg("rows"), arg("settings"), arg("scale"), arg("draws"),
        arg("seed"), arg("step"), arg("workspace"), arg("stream"));
    module.def(
        "hutchinson_device_sophia",
        [steps](const Objects& params, const Objects& grads, const Objects& hz,
                const Objects& z, const Objects& m, const Objects& h, const Numbers& offsets,
                const Numbers& rows, const Reals& settings, double scale, double weight,
                bool draws, std::int64_t seed, std::int64_t step, Function workspace,
                std::uintptr_t stream) {
            steps.sophia(params, grads, hz, z, m, h, offsets, rows, settings, scale, weight,
                         draws, seed, step, workspace, stream);
        },
        arg("params"), arg("grads"), arg("hz"), arg("z"), arg("m"), arg("h"), arg("offsets"),
        arg("rows"), arg("settings"), arg("scale"), arg("weight"), arg("draws"), arg("seed"),
        arg("step"), arg("workspace"), arg("stream"));
    module.def(
        "hutchinson_device_metric",
        [steps](const Objects& params, const Objects& grads, const Objects& hz,
                const Objects& z, const Objects& D, const Objects& last_p,
                const Objects& last_g, const Numbers& offsets, const Numbers& rows,
                const Reals& settings, double scale, bool draws, std::int64_t seed,
                std::int64_t step, std::int64_t probe, py::handle sums, Function workspace,
                std::uintptr_t stream) {
            steps.metric(params, grads, hz, z, D, last_p, last_g, offsets, rows, settings,
                         scale, draws, seed, step, probe, sums, workspace, stream);
        },
        arg("params"), arg("grads"), arg("hz"), arg("z"), arg("D"), arg("last_p"),
        arg("last_g"), arg("offsets"), arg("rows"), arg("settings"), arg("scale"), arg("draws"),
        arg("seed"), arg("step"), arg("probe"), arg("sums"), arg("workspace"), arg("stream"));
    module.def(
        "hutchinson_device_descent",
        [steps](const Objects& params, const Objects& grads, const Objects& D,
                const Objects& last_p, const Objects& last_g, const Numbers& rows,
                const Reals& settings, double scale, Function workspace,
                std::uintptr_t stream) {
            steps.descent(params, grads, D, last_p, last_g, rows, settings, scale, workspace,
                          stream);
        },
        arg("params"), arg("grads"), arg("D"), arg("last_p"), arg("last_g"), arg("rows"),
        arg("settings"), arg("scale"), arg("workspace"), arg("stream"));
    module.def(
        "hutchinson_device_signs",
        [runner](const Objects& out, const Numbers& offsets, std::int64_t seed,
                 std::int64_t step, std::int64_t probe, Function workspace,
                 std::uintptr_t stream) {
            device::run_signs(runner, out, offsets, seed, step, probe, workspace, stream);
        },
        arg("out"), arg("offsets"), arg("seed"), arg("step"), arg("probe"), arg("workspace"),
        arg("stream"));
    module.def(
        "hutchinson_device_accumulate",
        [runner](const Objects& mean, const Objects& square, const Objects& hz,
                 const Objects& z, const Numbers& offsets, std::int64_t seed, std::int64_t step,
                 std::int64_t probe, std::int64_t count, Function workspace,
                 std::uintptr_t stream) {
            device::run_accumulate(runner, mean, square, hz, z, offsets, seed, step, probe,
                                   count, workspace, stream);
        },
        arg("mean"), arg("square"), arg("hz"), arg("z"), arg("offsets"), arg("seed"),
        arg("step"), arg("probe"), arg("count"), arg("workspace"), arg("stream"));
}

}  // namespace curvkern
