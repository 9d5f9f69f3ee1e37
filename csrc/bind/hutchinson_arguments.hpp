// Lists of tensors as steps take them, for all bindings of the family.
#pragma once

#include <pybind11/pybind11.h>

#include <cmath>
#include <deque>
#include <string>
#include <vector>

#include "bind/tensor_view.hpp"
#include "hutchinson/hutchinson.hpp"

namespace curvkern::hutchinson {

using Objects = std::vector<py::handle>;
using Numbers = std::vector<std::int64_t>;
using Reals = std::vector<double>;
using Views = std::deque<TensorView>;  // they do not move

[[noreturn]] inline void refuse(const char* op, const std::string& what) {
    throw py::value_error(std::string(op) + ": " + what);
}

inline Storage storage_of(const TensorView& view) {
    return view.dtype() == Dtype::float64   ? Storage::float64
           : view.dtype() == Dtype::float32 ? Storage::float32
                                            : Storage::bfloat16;
}

inline void require_length(const char* op, const char* name, std::size_t got,
                           std::size_t expected) {
    if (got == expected) return;
    refuse(op, std::string(name) + " has " + std::to_string(got) + " entries, expected " +
                   std::to_string(expected));
}

inline void require_offsets(const char* op, const Numbers& offsets) {
    for (const std::int64_t offset : offsets) {
        if (offset < 0) refuse(op, "offsets must not be negative");
    }
}

// Tensors of one kind of device, all of which are on the same one.
class Lists {
  public:
    Lists(const char* op, dlpack::DeviceType where) : op_(op), where_(where) {}

    Views params(const char* name, const Objects& objects) const {
        Views views;
        for (const py::handle object : objects) {
            views.emplace_back(object, op_, name, where_, true);
            views.back().require_same_device(views.front());
        }
        return views;
    }
    // Of the shapes and dtypes of `like`, over and over.
    Views alike(const char* name, const Objects& objects, const Views& like) const {
        Views views;
        for (const py::handle object : objects) {
            const TensorView& other = like[views.size() % like.size()];
            views.emplace_back(object, op_, name, where_, true);
            views.back().require_same_dtype(other);
            views.back().require_same_shape(other);
            views.back().require_same_device(other);
        }
        return views;
    }
    // Of the shapes of `like`; float64 of float64, and else float32.
    Views state(const char* name, const Objects& objects, const Views& like) const {
        Views views;
        for (const py::handle object : objects) {
            const TensorView& other = like[views.size()];
            views.emplace_back(object, op_, name, where_);
            if (storage_of(views.back()) != state_storage(storage_of(other))) {
                throw py::type_error(std::string(op_) + ": " + name +
                                     " must be float64 of float64 and else float32");
            }
            views.back().require_same_shape(other);
            views.back().require_same_device(other);
        }
        return views;
    }

  private:
    const char* op_;
    dlpack::DeviceType where_;
};

inline std::vector<const void*> pointers(const Views& views, std::size_t i, std::size_t n) {
    std::vector<const void*> found;
    for (std::size_t at = i; at < views.size(); at += n) found.push_back(views[at].data());
    return found;
}

// What means over probes are taken of.
struct MomentLists {
    static constexpr const char* op = "hutchinson_accumulate";
    Views hz, z, mean, square;

    MomentLists(dlpack::DeviceType where, const Objects& mean_objects,
                const Objects& square_objects, const Objects& hz_objects,
                const Objects& z_objects, const Numbers& offsets, std::int64_t count) {
        const std::size_t n = hz_objects.size();
        require_length(op, "mean", mean_objects.size(), n);
        require_length(op, "offsets", offsets.size(), n);
        if (!square_objects.empty()) require_length(op, "square", square_objects.size(), n);
        if (!z_objects.empty()) require_length(op, "z", z_objects.size(), n);
        if (count < 1) refuse(op, "count must be at least 1, got " + std::to_string(count));
        require_offsets(op, offsets);
        const Lists lists(op, where);
        hz = lists.params("hz", hz_objects);
        z = lists.alike("z", z_objects, hz);
        mean = lists.state("mean", mean_objects, hz);
        square = lists.state("square", square_objects, hz);
    }
};

// Of AdaHessian: lr, betas, eps, weight decay, power, biases, and flags.
inline constexpr std::size_t adahessian_columns = 11;
inline Factors adahessian_factors(const double* row, double scale) {
    Factors f{};
    f.beta1 = row[1];
    f.rest1 = 1 - row[1];
    f.beta2 = row[2];
    f.rest2 = 1 - row[2];
    f.eps = row[3];
    f.power = row[5];
    f.decay = 1 - row[0] * row[4];
    f.inverse_bias = 1 / row[6];
    f.root = 1 / std::sqrt(row[7]);
    f.scale = row[8] != 0 ? -scale : scale;
    f.atan2 = row[9] != 0;
    f.rate = f.atan2 ? row[0] : row[0] / row[6];
    return f;
}

// Of Sophia: lr, betas, gamma, eps, weight decay.
inline constexpr std::size_t sophia_columns = 6;
inline Factors sophia_factors(const double* row, double scale, double weight) {
    Factors f{};
    f.rate = row[0];
    f.beta1 = row[1];
    f.rest1 = 1 - row[1];
    f.beta2 = row[2];
    f.rest2 = 1 - row[2];
    f.gamma = row[3];
    f.eps = row[4];
    f.decay = 1 - row[0] * row[5];
    f.scale = scale;
    f.weight = weight;
    return f;
}

// Of OASIS and SANIA: beta2, alpha, whether there are last ones; or the rate, alpha.
inline constexpr std::size_t metric_columns = 3, descent_columns = 2;
inline Factors metric_factors(const double* row, double scale) {
    Factors f{};
    f.beta2 = row[0];
    f.rest2 = 1 - row[0];
    f.alpha = row[1];
    f.known = row[2] != 0;
    f.scale = f.weight = scale;
    return f;
}
inline Factors descent_factors(const double* row, double scale) {
    Factors f{};
    f.rate = row[0];
    f.alpha = row[1];
    f.scale = scale;
    return f;
}

struct StateList {
    const char* name;
    const Objects& objects;
    bool is_optional;
};

// What a step does to each tensor, with the memory that it points to.
class Leaves {
  public:
    // blocks and offsets may be null. factors(row) reads `columns` numbers.
    template <class Make>
    Leaves(const char* op, dlpack::DeviceType where, const Objects& params,
           const Objects& grads, const Objects& hz, const Objects& z,
           const std::vector<StateList>& states, const Numbers* blocks, const Numbers* offsets,
           const Numbers& rows, const Reals& settings, std::size_t columns, Make factors) {
        const std::size_t n = params.size();
        require_length(op, "grads", grads.size(), n);
        for (const StateList& state : states) {
            if (state.is_optional && state.objects.empty()) continue;
            require_length(op, state.name, state.objects.size(), n);
        }
        if (blocks != nullptr) require_length(op, "blocks", blocks->size(), n);
        if (offsets != nullptr) require_length(op, "offsets", offsets->size(), n);
        require_length(op, "rows", rows.size(), n);
        if (n == 0) return;
        if (hz.size() % n != 0) {
            refuse(op, "hz must have an entry for each parameter and probe");
        }
        if (!z.empty()) require_length(op, "z", z.size(), hz.size());
        if (settings.size() % columns != 0) {
            refuse(op, "settings must have rows of " + std::to_string(columns) + " numbers");
        }
        const Lists lists(op, where);
        p_ = lists.params("params", params);
        g_ = lists.alike("grads", grads, p_);
        hz_ = lists.alike("hz", hz, p_);
        z_ = lists.alike("z", z, p_);
        for (const StateList& state : states) {
            state_.push_back(lists.state(state.name, state.objects, p_));
        }
        probes = static_cast<std::int64_t>(hz.size() / n);
        for (std::size_t i = 0; i < n; ++i) {
            const auto row = static_cast<std::size_t>(rows[i]);
            if (rows[i] < 0 || row >= settings.size() / columns) {
                refuse(op, "rows must be those of settings, got " + std::to_string(rows[i]));
            }
            const std::int64_t block = blocks == nullptr ? 1 : (*blocks)[i];
            const std::int64_t offset = offsets == nullptr ? 0 : (*offsets)[i];
            if (block < 1) refuse(op, "blocks must be at least 1");
            if (offset < 0) refuse(op, "offsets must not be negative");
            const double* numbers = settings.data() + row * columns;
            Leaf leaf{p_[i].data(),    g_[i].data(), nullptr, nullptr,           {},
                      p_[i].size(),    block,        offset,  storage_of(p_[i]), false,
                      factors(numbers)};
            if (!hz_.empty()) leaf.hz = kept(pointers(hz_, i, n));
            if (!z_.empty()) leaf.z = kept(pointers(z_, i, n));
            for (std::size_t k = 0; k < state_.size(); ++k) {
                if (!state_[k].empty()) leaf.state[k] = state_[k][i].data();
            }
            if (columns == adahessian_columns) leaf.is_signed = numbers[10] != 0;
            leaf_.push_back(leaf);
        }
    }

    Step step(Rule rule, bool draws, std::int64_t seed, std::int64_t index) {
        return {rule,
                leaf_.data(),
                static_cast<std::int64_t>(leaf_.size()),
                probes,
                draws,
                static_cast<std::uint64_t>(seed),
                static_cast<std::uint32_t>(index),
                0,
                nullptr};
    }
    bool empty() const { return leaf_.empty(); }
    const TensorView& front() const { return p_.front(); }

  private:
    const void* const* kept(std::vector<const void*> list) {
        pointers_.push_back(std::move(list));
        return pointers_.back().data();
    }

    std::int64_t probes = 0;
    Views p_, g_, hz_, z_;
    std::deque<Views> state_;
    std::deque<std::vector<const void*>> pointers_;
    std::vector<Leaf> leaf_;
};

// Steps of lists of tensors, wherever they are: run(rule, step, place of the first) does it.
template <class Run>
class StepBindings {
  public:
    StepBindings(dlpack::DeviceType where, Run run) : where_(where), run_(run) {}

    template <class... More>
    void adahessian(const Objects& params, const Objects& grads, const Objects& hz,
                    const Objects& z, const Objects& m, const Objects& v, const Objects& stale,
                    const Numbers& blocks, const Numbers& offsets, const Numbers& rows,
                    const Reals& settings, double scale, bool draws, std::int64_t seed,
                    std::int64_t index, More... more) const {
        Leaves leaves("hutchinson_step", where_, params, grads, hz, z,
                      {{"m", m, false}, {"v", v, false}, {"stale", stale, true}}, &blocks,
                      &offsets, rows, settings, adahessian_columns,
                      [&](const double* row) { return adahessian_factors(row, scale); });
        run_("hutchinson_step", leaves, leaves.step(Rule::adahessian, draws, seed, index),
             more...);
    }

    template <class... More>
    void sophia(const Objects& params, const Objects& grads, const Objects& hz,
                const Objects& z, const Objects& m, const Objects& h, const Numbers& offsets,
                const Numbers& rows, const Reals& settings, double scale, double weight,
                bool draws, std::int64_t seed, std::int64_t index, More... more) const {
        Leaves leaves("hutchinson_sophia", where_, params, grads, hz, z,
                      {{"m", m, false}, {"h", h, false}}, nullptr, &offsets, rows, settings,
                      sophia_columns,
                      [&](const double* row) { return sophia_factors(row, scale, weight); });
        run_("hutchinson_sophia", leaves, leaves.step(Rule::sophia, draws, seed, index),
             more...);
    }

    template <class... More>
    void metric(const Objects& params, const Objects& grads, const Objects& hz,
                const Objects& z, const Objects& D, const Objects& last_p,
                const Objects& last_g, const Numbers& offsets, const Numbers& rows,
                const Reals& settings, double scale, bool draws, std::int64_t seed,
                std::int64_t index, std::int64_t probe, py::handle sums, More... more) const {
        constexpr const char* op = "hutchinson_metric";
        require_length(op, "last_g", last_g.size(), last_p.size());
        if (params.size() > 0 && hz.empty()) {
            refuse(op, "hz must have an entry for each parameter and probe");
        }
        Leaves leaves(op, where_, params, grads, hz, z,
                      {{"D", D, false}, {"last_p", last_p, true}, {"last_g", last_g, true}},
                      nullptr, &offsets, rows, settings, metric_columns,
                      [&](const double* row) {
                          Factors f = metric_factors(row, scale);
                          f.known = f.known && !last_p.empty();
                          return f;
                      });
        const TensorView out(sums, op, "sums", where_);
        if (out.dtype() != Dtype::float64 || out.size() != hutchinson::sums) {
            refuse(op, "sums must be 3 numbers of float64");
        }
        Step step = leaves.step(Rule::metric, draws, seed, index);
        step.probe = static_cast<std::uint32_t>(probe);
        step.sums = static_cast<double*>(out.data());
        run_(op, leaves, step, more...);
    }

    template <class... More>
    void descent(const Objects& params, const Objects& grads, const Objects& D,
                 const Objects& last_p, const Objects& last_g, const Numbers& rows,
                 const Reals& settings, double scale, More... more) const {
        constexpr const char* op = "hutchinson_descent";
        require_length(op, "last_g", last_g.size(), last_p.size());
        Leaves leaves(op, where_, params, grads, {}, {},
                      {{"D", D, false}, {"last_p", last_p, true}, {"last_g", last_g, true}},
                      nullptr, nullptr, rows, settings, descent_columns,
                      [&](const double* row) { return descent_factors(row, scale); });
        run_(op, leaves, leaves.step(Rule::descent, false, 0, 0), more...);
    }

  private:
    dlpack::DeviceType where_;
    Run run_;
};

}  // namespace curvkern::hutchinson
