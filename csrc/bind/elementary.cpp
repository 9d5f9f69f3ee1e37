#include "core/elementary.hpp"

#include <stdexcept>
#include <string>

#include "bind/chunks.hpp"
#include "bind/elementwise.hpp"
#include "bind/families.hpp"
#include "core/isa.hpp"

namespace curvkern {
namespace {

template <class T, class Function>
void run(Function function, View<const T> x, View<T> out) {
    for_chunks(x.size, 0, [&](std::int64_t begin, std::int64_t end) {
        function(x.data + begin, out.data + begin, end - begin);
    });
}

}  // namespace

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
                run(table.f64[function], views[0].view<const double>(),
                    views[2].view<double>());
            } else {
                run(table.f32[function], views[0].view<const float>(), views[2].view<float>());
            }
        },
        py::arg("name"), py::arg("x"), py::arg("out"));
}

}  // namespace curvkern
