#include "core/elementary.hpp"

#include <stdexcept>
#include <string>

#include "bind/elementwise.hpp"
#include "bind/families.hpp"
#include "core/isa.hpp"

namespace curvkern {

// elementary(name, x, out): out = exp, expm1, log, log1p or lgamma of x, for tests.
void bind_elementary(py::module_& module) {
    module.def(
        "elementary",
        [](const std::string& name, py::handle x, py::handle out) {
            int function = 0;
            while (function < elementary::count && name != elementary::names[function]) {
                ++function;
            }
            if (function == elementary::count) {
                throw std::invalid_argument("elementary: unknown function " + name);
            }
            const auto views =
                elementwise_views("elementary", 0, dlpack::device_cpu, {x, x, out});
            const elementary::Functions& table =
                CURVKERN_SELECT_ISA(elementary::, ::functions());
            if (views[0].dtype() == Dtype::float64) {
                const auto in = views[0].view<const double>();
                table.f64[function](in.data, views[2].view<double>().data, in.size);
            } else {
                const auto in = views[0].view<const float>();
                table.f32[function](in.data, views[2].view<float>().data, in.size);
            }
        },
        py::arg("name"), py::arg("x"), py::arg("out"));
}

}  // namespace curvkern
