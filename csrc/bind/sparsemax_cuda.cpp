#include "sinkhorn/sparsemax_cuda.hpp"

#include "bind/cuda_call.hpp"
#include "bind/families.hpp"
#include "bind/sparsemax.hpp"

namespace curvkern {
namespace sparsemax {
namespace {

void project(py::handle z, py::handle mass, std::int64_t k, py::handle p, py::handle tau,
             py::handle support, std::uintptr_t stream) {
    constexpr const char* op = "sparsemax";
    const ProjectArguments views(op, dlpack::device_cuda, z, mass, k, p, tau, support);
    if (views.rows == 0) return;
    const DeviceGuard guard(views.z.device_id(), op);
    const auto launch = [&]<class T>(T) {
        return launch_project<T>(
            views.z.view<const T>().data, views.mass.view<const double>().data, k,
            views.p.view<T>().data, views.tau.view<double>().data,
            views.support.view<double>().data, views.rows, views.n, stream_at(stream));
    };
    check_cuda(views.z.dtype() == Dtype::float64 ? launch(0.0) : launch(0.0f), op);
}

void jacobian(py::handle p, py::handle grad, py::handle out, std::uintptr_t stream) {
    constexpr const char* op = "sparsemax_jacobian";
    const JacobianArguments views(op, dlpack::device_cuda, p, grad, out);
    if (views.rows == 0) return;
    const DeviceGuard guard(views.p.device_id(), op);
    const auto launch = [&]<class T>(T) {
        return launch_jacobian<T>(views.p.view<const T>().data, views.grad.view<const T>().data,
                                  views.out.view<T>().data, views.rows, views.n,
                                  stream_at(stream));
    };
    check_cuda(views.p.dtype() == Dtype::float64 ? launch(0.0) : launch(0.0f), op);
}

}  // namespace
}  // namespace sparsemax

void bind_sparsemax_cuda(py::module_& module) {
    using py::arg;
    module.def("sparsemax", sparsemax::project, arg("z"), arg("mass"), arg("k"), arg("p"),
               arg("tau"), arg("support"), arg("stream"));
    module.def("sparsemax_jacobian", sparsemax::jacobian, arg("p"), arg("grad"), arg("out"),
               arg("stream"));
}

}  // namespace curvkern
