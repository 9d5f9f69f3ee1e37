#include "bind/mfac_device.hpp"

#include <pybind11/stl.h>

#include <string>
#include <utility>
#include <vector>

#include "bind/mfac_arguments.hpp"

namespace curvkern {
namespace mfac::device {
namespace {

using Slots = std::vector<std::int64_t>;

class Bindings {
  public:
    Bindings(const Calls& calls, dlpack::DeviceType where) : calls_(calls), where_(where) {}

    std::int64_t workspace(std::int64_t count, std::int64_t d, std::int64_t k) const {
        return calls_.workspace(count, d, k);
    }

    // `incoming` is one row, which goes to the place `into`; or None.
    void products(py::handle window, Slots slots, std::int64_t into, const py::object& incoming,
                  py::handle v, py::handle workspace, py::handle out,
                  std::uintptr_t stream) const {
        constexpr const char* op = "mfac_products";
        const WindowArgument rows(op, window, std::move(slots), where_);
        const std::int64_t d = rows.view.shape(1), count = rows.get().count;
        const TensorView v_view(v, op, "v", where_), out_view(out, op, "out", where_),
            row_view(incoming.is_none() ? v : py::handle(incoming), op, "gradient", where_);
        for (const TensorView* view : {&v_view, &out_view, &row_view}) {
            view->require_same_device(rows.view);
        }
        const Vectors right = vectors(v_view, d, op, "v"),
                      row = vectors(row_view, d, op, "gradient");
        if (!incoming.is_none() && row.k != 1) refuse(op, "gradient must have one row");
        if (!incoming.is_none() && (into < 0 || into >= count)) {
            refuse(op, "into must be the place of a slot");
        }
        const std::int64_t k = right.k + (incoming.is_none() ? 0 : 1);
        require_rows(out_view, k, count, op, "out");
        const TensorView memory(workspace, op, "workspace", where_);
        require_room(memory, calls_.workspace(count, d, k), rows.view, op);
        const py::gil_scoped_release release;
        calls_.products({rows.view.device_id(), stream}, rows.get(), right,
                        incoming.is_none() ? nullptr : &row, into, out_view.view<double>().data,
                        memory.view<double>().data);
    }

    void combine(py::handle window, Slots slots, py::handle coefficient, double alpha,
                 const py::object& v, py::handle workspace, py::handle out,
                 std::uintptr_t stream) const {
        constexpr const char* op = "mfac_combine";
        const WindowArgument rows(op, window, std::move(slots), where_);
        const std::int64_t d = rows.view.shape(1), count = rows.get().count;
        const TensorView c_view(coefficient, op, "coefficient", where_),
            out_view(out, op, "out", where_),
            v_view(v.is_none() ? out : py::handle(v), op, "v", where_);
        for (const TensorView* view : {&c_view, &out_view, &v_view}) {
            view->require_same_device(rows.view);
        }
        const Vectors target = vectors(out_view, d, op, "out"),
                      given = vectors(v_view, d, op, "v");
        require_rows(c_view, target.k, count, op, "coefficient");
        if (given.k != target.k) {
            refuse(op, "v has " + std::to_string(given.k) + " rows but coefficient has " +
                           std::to_string(target.k));
        }
        const TensorView memory(workspace, op, "workspace", where_);
        require_room(memory, count, rows.view, op);
        const py::gil_scoped_release release;
        calls_.combine({rows.view.device_id(), stream}, rows.get(),
                       c_view.view<const double>().data, alpha, v.is_none() ? nullptr : &given,
                       target, memory.view<double>().data);
    }

  private:
    static void require_room(const TensorView& memory, std::int64_t needed,
                             const TensorView& window, const char* op) {
        memory.require_same_device(window);
        require_float64(memory, op, "workspace");
        if (memory.size() >= needed) return;
        refuse(op, "workspace must have at least " + std::to_string(needed) + " elements");
    }

    Calls calls_;
    dlpack::DeviceType where_;
};

}  // namespace
}  // namespace mfac::device

void bind_mfac_device(py::module_& module, const mfac::device::Calls& calls,
                      dlpack::DeviceType where) {
    using namespace mfac::device;
    using py::arg;
    const Bindings on(calls, where);
    module.def(
        "mfac_device_workspace",
        [on](std::int64_t count, std::int64_t d, std::int64_t k) {
            return on.workspace(count, d, k);
        },
        arg("count"), arg("d"), arg("k"));
    module.def(
        "mfac_device_products",
        [on](py::handle window, Slots slots, std::int64_t into, const py::object& gradient,
             py::handle v, py::handle workspace, py::handle out, std::uintptr_t stream) {
            on.products(window, std::move(slots), into, gradient, v, workspace, out, stream);
        },
        arg("window"), arg("slots"), arg("into"), arg("gradient"), arg("v"), arg("workspace"),
        arg("out"), arg("stream"));
    module.def(
        "mfac_device_combine",
        [on](py::handle window, Slots slots, py::handle coefficient, double alpha,
             const py::object& v, py::handle workspace, py::handle out, std::uintptr_t stream) {
            on.combine(window, std::move(slots), coefficient, alpha, v, workspace, out, stream);
        },
        arg("window"), arg("slots"), arg("coefficient"), arg("alpha"), arg("v"),
        arg("workspace"), arg("out"), arg("stream"));
}

}  // namespace curvkern
