// The step of AdaHessian for lists of tensors, its probes, and means over probes.
#include "hutchinson/hutchinson.hpp"

#include <pybind11/stl.h>

#include <cmath>
#include <deque>
#include <vector>

#include "bind/families.hpp"
#include "bind/tensor_view.hpp"

namespace curvkern {
namespace hutchinson {
namespace {

using Objects = std::vector<py::handle>;
using Numbers = std::vector<std::int64_t>;
using Views = std::deque<TensorView>;  // they do not move

constexpr std::size_t columns = 11;  // of settings, in the order of factors()

[[noreturn]] void refuse(const char* op, const std::string& what) {
    throw py::value_error(std::string(op) + ": " + what);
}

Storage storage_of(const TensorView& view) {
    return view.dtype() == Dtype::float64   ? Storage::float64
           : view.dtype() == Dtype::float32 ? Storage::float32
                                            : Storage::bfloat16;
}

void require_length(const char* op, const char* name, std::size_t got, std::size_t expected) {
    if (got == expected) return;
    refuse(op, std::string(name) + " has " + std::to_string(got) + " entries, expected " +
                   std::to_string(expected));
}

// Tensors of the shapes and dtypes of `like`, over and over.
Views alike(const char* op, const char* name, const Objects& objects, const Views& like) {
    Views views;
    for (const py::handle object : objects) {
        const TensorView& other = like[views.size() % like.size()];
        views.emplace_back(object, op, name, dlpack::device_cpu, true);
        views.back().require_same_dtype(other);
        views.back().require_same_shape(other);
    }
    return views;
}

// State: of the shapes of `like`; float32 for bfloat16.
Views state(const char* op, const char* name, const Objects& objects, const Views& like) {
    Views views;
    for (const py::handle object : objects) {
        const TensorView& other = like[views.size()];
        views.emplace_back(object, op, name);
        if (storage_of(views.back()) != state_storage(storage_of(other))) {
            throw py::type_error(std::string(op) + ": " + name +
                                 " must be float64 of float64 and else float32");
        }
        views.back().require_same_shape(other);
    }
    return views;
}

Views params_of(const char* op, const char* name, const Objects& objects) {
    Views views;
    for (const py::handle object : objects) {
        views.emplace_back(object, op, name, dlpack::device_cpu, true);
    }
    return views;
}

std::vector<const void*> pointers(const Views& views, std::size_t i, std::size_t n) {
    std::vector<const void*> found;
    for (std::size_t at = i; at < views.size(); at += n) found.push_back(views[at].data());
    return found;
}

Factors factors(const double* row, double scale) {
    Factors f{};
    const double lr = row[0], weight_decay = row[4];
    f.beta1 = row[1];
    f.beta2 = row[2];
    f.eps = row[3];
    f.power = row[5];
    f.decay = 1 - lr * weight_decay;
    f.first_bias = row[6];
    f.root = 1 / std::sqrt(row[7]);
    f.scale = row[8] != 0 ? -scale : scale;
    f.atan2 = row[9] != 0;
    f.rate = f.atan2 ? lr : lr / f.first_bias;
    return f;
}

void run_step(const Objects& params, const Objects& grads, const Objects& hz, const Objects& z,
              const Objects& m, const Objects& v, const Objects& stale, const Numbers& blocks,
              const Numbers& offsets, const Numbers& rows, const std::vector<double>& settings,
              double scale, bool draws, std::int64_t seed, std::int64_t index) {
    constexpr const char* op = "hutchinson_step";
    const std::size_t n = params.size();
    require_length(op, "grads", grads.size(), n);
    require_length(op, "m", m.size(), n);
    require_length(op, "v", v.size(), n);
    require_length(op, "blocks", blocks.size(), n);
    require_length(op, "offsets", offsets.size(), n);
    require_length(op, "rows", rows.size(), n);
    if (n == 0) return;
    if (hz.size() % n != 0) refuse(op, "hz must have an entry for each parameter and probe");
    if (!z.empty()) require_length(op, "z", z.size(), hz.size());
    if (!stale.empty()) require_length(op, "stale", stale.size(), n);
    if (settings.size() % columns != 0) refuse(op, "settings must have rows of 11 numbers");
    const Views p_views = params_of(op, "params", params);
    const Views g_views = alike(op, "grads", grads, p_views);
    const Views hz_views = alike(op, "hz", hz, p_views);
    const Views z_views = alike(op, "z", z, p_views);
    const Views m_views = state(op, "m", m, p_views), v_views = state(op, "v", v, p_views);
    const Views stale_views = state(op, "stale", stale, p_views);
    std::vector<Leaf> leaves(n);
    std::vector<std::vector<const void*>> hz_of(n), z_of(n);
    for (std::size_t i = 0; i < n; ++i) {
        const auto row = static_cast<std::size_t>(rows[i]);
        if (rows[i] < 0 || row >= settings.size() / columns) {
            refuse(op, "rows must be those of settings, got " + std::to_string(rows[i]));
        }
        if (blocks[i] < 1) refuse(op, "blocks must be at least 1");
        if (offsets[i] < 0) refuse(op, "offsets must not be negative");
        hz_of[i] = pointers(hz_views, i, n);
        z_of[i] = pointers(z_views, i, n);
        const double* numbers = settings.data() + row * columns;
        leaves[i] = {p_views[i].data(),
                     g_views[i].data(),
                     hz.empty() ? nullptr : hz_of[i].data(),
                     z.empty() ? nullptr : z_of[i].data(),
                     m_views[i].data(),
                     v_views[i].data(),
                     stale.empty() ? nullptr : stale_views[i].data(),
                     p_views[i].size(),
                     blocks[i],
                     offsets[i],
                     storage_of(p_views[i]),
                     numbers[10] != 0,
                     factors(numbers, scale)};
    }
    const py::gil_scoped_release release;
    run({leaves.data(), static_cast<std::int64_t>(n), static_cast<std::int64_t>(hz.size() / n),
         draws, static_cast<std::uint64_t>(seed), static_cast<std::uint32_t>(index)});
}

Draw draw_of(std::int64_t seed, std::int64_t index, std::int64_t probe) {
    return {static_cast<std::uint64_t>(seed), static_cast<std::uint32_t>(index),
            static_cast<std::uint32_t>(probe)};
}

void run_signs(const Objects& out, const Numbers& offsets, std::int64_t seed,
               std::int64_t index, std::int64_t probe) {
    constexpr const char* op = "hutchinson_signs";
    require_length(op, "offsets", offsets.size(), out.size());
    const Views views = params_of(op, "out", out);
    for (const std::int64_t offset : offsets) {
        if (offset < 0) refuse(op, "offsets must not be negative");
    }
    const py::gil_scoped_release release;
    for (std::size_t i = 0; i < views.size(); ++i) {
        signs(views[i].data(), storage_of(views[i]), views[i].size(), offsets[i],
              draw_of(seed, index, probe));
    }
}

void run_accumulate(const Objects& mean, const Objects& square, const Objects& hz,
                    const Objects& z, const Numbers& offsets, std::int64_t seed,
                    std::int64_t index, std::int64_t probe, std::int64_t count) {
    constexpr const char* op = "hutchinson_accumulate";
    const std::size_t n = hz.size();
    require_length(op, "mean", mean.size(), n);
    require_length(op, "offsets", offsets.size(), n);
    if (!square.empty()) require_length(op, "square", square.size(), n);
    if (!z.empty()) require_length(op, "z", z.size(), n);
    if (count < 1) refuse(op, "count must be at least 1, got " + std::to_string(count));
    if (n == 0) return;
    const Views hz_views = params_of(op, "hz", hz), z_views = alike(op, "z", z, hz_views);
    const Views means = state(op, "mean", mean, hz_views);
    const Views squares = state(op, "square", square, hz_views);
    for (const std::int64_t offset : offsets) {
        if (offset < 0) refuse(op, "offsets must not be negative");
    }
    const py::gil_scoped_release release;
    for (std::size_t i = 0; i < n; ++i) {
        accumulate({means[i].data(), square.empty() ? nullptr : squares[i].data(),
                    hz_views[i].data(), z.empty() ? nullptr : z_views[i].data(),
                    hz_views[i].size(), offsets[i], count, storage_of(hz_views[i])},
                   draw_of(seed, index, probe));
    }
}

bool run_is_finite(const Objects& tensors) {
    const Views views = params_of("hutchinson_is_finite", "tensors", tensors);
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
    module.def("hutchinson_step", hutchinson::run_step, arg("params"), arg("grads"), arg("hz"),
               arg("z"), arg("m"), arg("v"), arg("stale"), arg("blocks"), arg("offsets"),
               arg("rows"), arg("settings"), arg("scale"), arg("draws"), arg("seed"),
               arg("step"));
    module.def("hutchinson_signs", hutchinson::run_signs, arg("out"), arg("offsets"),
               arg("seed"), arg("step"), arg("probe"));
    module.def("hutchinson_accumulate", hutchinson::run_accumulate, arg("mean"), arg("square"),
               arg("hz"), arg("z"), arg("offsets"), arg("seed"), arg("step"), arg("probe"),
               arg("count"));
    module.def("hutchinson_is_finite", hutchinson::run_is_finite, arg("tensors"));
}

}  // namespace curvkern
