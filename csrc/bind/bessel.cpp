#include "bessel/bessel.hpp"

#include "bind/bessel_names.hpp"
#include "bind/chunks.hpp"
#include "bind/elementwise.hpp"
#include "bind/families.hpp"
#include "core/isa.hpp"

namespace curvkern {
namespace bessel {
namespace {

template <class T>
void run(Kernel<T> kernel, int order, const std::vector<TensorView>& views) {
    const View<const T> v = views[0].view<const T>();
    const View<const T> x = views[1].view<const T>();
    const Outputs<T> out(views);
    for_chunks(v.size, order, [&](std::int64_t begin, std::int64_t end) {
        kernel(v.data + begin, x.data + begin, out.from(begin).data, end - begin);
    });
}

void call(int function, int order, std::initializer_list<py::handle> objects) {
    const auto views =
        elementwise_views(bessel_names[function][order], order, dlpack::device_cpu, objects);
    const Kernels& kernels = CURVKERN_SELECT_ISA(bessel::, ::kernels());
    if (views[0].dtype() == Dtype::float64) {
        run(kernels.f64[function][order], order, views);
    } else {
        run(kernels.f32[function][order], order, views);
    }
}

}  // namespace
}  // namespace bessel

void bind_bessel(py::module_& module) {
    using py::arg;
    for (int f = 0; f < bessel_count; ++f) {
        module.def(
            bessel_names[f][0],
            [f](py::handle v, py::handle x, py::handle out) {
                bessel::call(f, 0, {v, x, out});
            },
            arg("v"), arg("x"), arg("out"));
        module.def(
            bessel_names[f][1],
            [f](py::handle v, py::handle x, py::handle dv, py::handle dx) {
                bessel::call(f, 1, {v, x, dv, dx});
            },
            arg("v"), arg("x"), arg("dv"), arg("dx"));
        module.def(
            bessel_names[f][2],
            [f](py::handle v, py::handle x, py::handle dvv, py::handle dvx, py::handle dxx) {
                bessel::call(f, 2, {v, x, dvv, dvx, dxx});
            },
            arg("v"), arg("x"), arg("dvv"), arg("dvx"), arg("dxx"));
    }
}

}  // namespace curvkern
