#include "bessel/bessel_cuda.hpp"

#include "bind/bessel_names.hpp"
#include "bind/cuda_call.hpp"
#include "bind/elementwise.hpp"
#include "bind/families.hpp"

namespace curvkern {
namespace bessel {
namespace {

template <class T>
cudaError_t launch_on(int function, int order, const std::vector<TensorView>& views,
                      cudaStream_t stream) {
    const View<const T> v = views[0].view<const T>();
    const Outputs<T> out(views);
    return bessel::launch<T>(static_cast<Function>(function), order, v.data,
                             views[1].view<const T>().data, out.data, v.size, stream);
}

void call(int function, int order, std::initializer_list<py::handle> objects,
          std::uintptr_t stream_address) {
    const char* op = bessel_names[function][order];
    const auto views = elementwise_views(op, order, dlpack::device_cuda, objects);
    if (views[0].size() == 0) return;
    const DeviceGuard guard(views[0].device_id(), op);
    const cudaStream_t stream = stream_at(stream_address);
    const bool wide = views[0].dtype() == Dtype::float64;
    const auto launch = wide ? launch_on<double> : launch_on<float>;
    check_cuda(launch(function, order, views, stream), op);
}

}  // namespace
}  // namespace bessel

void bind_bessel_cuda(py::module_& module) {
    using py::arg;
    using Stream = std::uintptr_t;
    for (int f = 0; f < bessel_count; ++f) {
        module.def(
            bessel_names[f][0],
            [f](py::handle v, py::handle x, py::handle out, Stream stream) {
                bessel::call(f, 0, {v, x, out}, stream);
            },
            arg("v"), arg("x"), arg("out"), arg("stream"));
        module.def(
            bessel_names[f][1],
            [f](py::handle v, py::handle x, py::handle dv, py::handle dx, Stream stream) {
                bessel::call(f, 1, {v, x, dv, dx}, stream);
            },
            arg("v"), arg("x"), arg("dv"), arg("dx"), arg("stream"));
        module.def(
            bessel_names[f][2],
            [f](py::handle v, py::handle x, py::handle dvv, py::handle dvx, py::handle dxx,
                Stream stream) { bessel::call(f, 2, {v, x, dvv, dvx, dxx}, stream); },
            arg("v"), arg("x"), arg("dvv"), arg("dvx"), arg("dxx"), arg("stream"));
    }
}

}  // namespace curvkern
