// Steps of AdaHessian and its relatives for lists of tensors, their probes, and means over
// them.
#include "hutchinson/hutchinson.hpp"

#include <pybind11/stl.h>

#include "bind/families.hpp"
#include "bind/hutchinson_arguments.hpp"

namespace curvkern {
namespace hutchinson {
namespace {

void run_step(const char*, const Leaves&, const Step& step) {
    const py::gil_scoped_release release;
    run(step);
}

const StepBindings steps(dlpack::device_cpu, run_step);

Draw draw_of(std::int64_t seed, std::int64_t index, std::int64_t probe) {
    return {static_cast<std::uint64_t>(seed), static_cast<std::uint32_t>(index),
            static_cast<std::uint32_t>(probe)};
}

void run_signs(const Objects& out, const Numbers& offsets, std::int64_t seed,
               std::int64_t index, std::int64_t probe) {
    constexpr const char* op = "hutchinson_signs";
    require_length(op, "offsets", offsets.size(), out.size());
    const Views views = Lists(op, dlpack::device_cpu).params("out", out);
    require_offsets(op, offsets);
    const py::gil_scoped_release release;
    for (std::size_t i = 0; i < views.size(); ++i) {
        signs(views[i].data(), storage_of(views[i]), views[i].size(), offsets[i],
              draw_of(seed, index, probe));
    }
}

void run_accumulate(const Objects& mean, const Objects& square, const Objects& hz,
                    const Objects& z, const Numbers& offsets, std::int64_t seed,
                    std::int64_t index, std::int64_t probe, std::int64_t count) {
    const MomentLists of(dlpack::device_cpu, mean, square, hz, z, offsets, count);
    const py::gil_scoped_release release;
    for (std::size_t i = 0; i < of.hz.size(); ++i) {
        accumulate({of.mean[i].data(), of.square.empty() ? nullptr : of.square[i].data(),
                    of.hz[i].data(), of.z.empty() ? nullptr : of.z[i].data(), of.hz[i].size(),
                    offsets[i], count, storage_of(of.hz[i])},
                   draw_of(seed, index, probe));
    }
}

bool run_is_finite(const Objects& tensors) {
    const Views views =
        Lists("hutchinson_is_finite", dlpack::device_cpu).params("tensors", tensors);
    const py::gil_scoped_release release;
    for (const TensorView& view : views) {
        if (!is_finite(view.data(), storage_of(view), view.size())) return false;
    }
    return true;
}

}  // namespace
}  // namespace hutchinson

void bind_hutchinson(py::module_& module) {
    using py::arg;
    using namespace hutchinson;
    module.def(
        "hutchinson_step",
        [](const Objects& params, const Objects& grads, const Objects& hz, const Objects& z,
           const Objects& m, const Objects& v, const Objects& stale, const Numbers& blocks,
           const Numbers& offsets, const Numbers& rows, const Reals& settings, double scale,
           bool draws, std::int64_t seed, std::int64_t step) {
            steps.adahessian(params, grads, hz, z, m, v, stale, blocks, offsets, rows, settings,
                             scale, draws, seed, step);
        },
        arg("params"), arg("grads"), arg("hz"), arg("z"), arg("m"), arg("v"), arg("stale"),
        arg("blocks"), arg("offsets"), arg("rows"), arg("settings"), arg("scale"), arg("draws"),
        arg("seed"), arg("step"));
    module.def(
        "hutchinson_sophia",
        [](const Objects& params, const Objects& grads, const Objects& hz, const Objects& z,
           const Objects& m, const Objects& h, const Numbers& offsets, const Numbers& rows,
           const Reals& settings, double scale, double weight, bool draws, std::int64_t seed,
           std::int64_t step) {
            steps.sophia(params, grads, hz, z, m, h, offsets, rows, settings, scale, weight,
                         draws, seed, step);
        },
        arg("params"), arg("grads"), arg("hz"), arg("z"), arg("m"), arg("h"), arg("offsets"),
        arg("rows"), arg("settings"), arg("scale"), arg("weight"), arg("draws"), arg("seed"),
        arg("step"));
    module.def(
        "hutchinson_metric",
        [](const Objects& params, const Objects& grads, const Objects& hz, const Objects& z,
           const Objects& D, const Objects& last_p, const Objects& last_g,
           const Numbers& offsets, const Numbers& rows, const Reals& settings, double scale,
           bool draws, std::int64_t seed, std::int64_t step, std::int64_t probe,
           py::handle sums) {
            steps.metric(params, grads, hz, z, D, last_p, last_g, offsets, rows, settings,
                         scale, draws, seed, step, probe, sums);
        },
        arg("params"), arg("grads"), arg("hz"), arg("z"), arg("D"), arg("last_p"),
        arg("last_g"), arg("offsets"), arg("rows"), arg("settings"), arg("scale"), arg("draws"),
        arg("seed"), arg("step"), arg("probe"), arg("sums"));
    module.def(
        "hutchinson_descent",
        [](const Objects& params, const Objects& grads, const Objects& D, const Objects& last_p,
           const Objects& last_g, const Numbers& rows, const Reals& settings, double scale) {
            steps.descent(params, grads, D, last_p, last_g, rows, settings, scale);
        },
        arg("params"), arg("grads"), arg("D"), arg("last_p"), arg("last_g"), arg("rows"),
        arg("settings"), arg("scale"));
    module.def("hutchinson_signs", run_signs, arg("out"), arg("offsets"), arg("seed"),
               arg("step"), arg("probe"));
    module.def("hutchinson_accumulate", run_accumulate, arg("mean"), arg("square"), arg("hz"),
               arg("z"), arg("offsets"), arg("seed"), arg("step"), arg("probe"), arg("count"));
    module.def("hutchinson_is_finite", run_is_finite, arg("tensors"));
}

}  // namespace curvkern
