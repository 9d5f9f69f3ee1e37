// curvkern._cpu: the operations on CPU tensors, and what the build and the process look like.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <exception>
#include <new>
#include <utility>

#include "bind/families.hpp"
#include "bind/hutchinson_device.hpp"
#include "bind/mfac_device.hpp"
#include "bind/sinkhorn_device.hpp"
#include "bind/sparseconv_device.hpp"
#include "core/isa.hpp"
#include "core/parallel.hpp"
#include "core/rng.hpp"

namespace py = pybind11;

namespace {

py::dict build_info() {
    using namespace py::literals;
    py::list isas;  // narrowest first
    for (int isa = 0; isa <= static_cast<int>(curvkern::widest_isa()); ++isa) {
        isas.append(curvkern::isa_name(static_cast<curvkern::Isa>(isa)));
    }
    return py::dict("version"_a = CURVKERN_VERSION, "compiler"_a = CURVKERN_COMPILER,
                    "isas"_a = isas, "cuda"_a = CURVKERN_CUDA_STATUS,
                    "threads"_a = curvkern::thread_count(),
                    "openmp"_a = curvkern::openmp_runtime());
}

std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter,
                                    std::array<std::uint32_t, 2> key) {
    const auto block = curvkern::philox4x32({{counter[0], counter[1], counter[2], counter[3]}},
                                            {{key[0], key[1]}});
    return {block.word[0], block.word[1], block.word[2], block.word[3]};
}

// In words of ours, where pybind11 says std::bad_alloc.
void translate_lack_of_memory(std::exception_ptr thrown) {
    try {
        std::rethrow_exception(std::move(thrown));
    } catch (const std::bad_alloc&) {
        PyErr_SetString(PyExc_MemoryError,
                        "curvkern: not enough memory for what the call needs");
    }
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
    curvkern::install_fork_handler();
    py::register_local_exception_translator(translate_lack_of_memory);
    module.def("build_info", build_info);
    module.def("isa", [] { return curvkern::isa_name(curvkern::isa()); });
    module.def("in_forked_child", curvkern::in_forked_child);
    module.def("philox", philox, py::arg("counter"), py::arg("key"));
    curvkern::bind_elementary(module);
    curvkern::bind_bessel(module);
    curvkern::bind_hutchinson(module);
    curvkern::bind_tangents(module);
    curvkern::bind_mfac(module);
    curvkern::bind_sparseconv(module);
    curvkern::bind_sparseconv_chain(module);
    curvkern::bind_sparsemax(module);
    curvkern::bind_sinkhorn(module);
    curvkern::bind_sinkhorn_newton(module);
    // The kernels of the GPU on the host, for the tests.
    curvkern::bind_hutchinson_device(module, curvkern::hutchinson::device::host_calls(),
                                     curvkern::dlpack::device_cpu);
    curvkern::bind_mfac_device(module, curvkern::mfac::device::host_calls(),
                               curvkern::dlpack::device_cpu);
    curvkern::bind_sinkhorn_device(module, curvkern::sinkhorn::device::host_calls(),
                                   curvkern::dlpack::device_cpu);
    curvkern::bind_sparseconv_device(module, curvkern::sparseconv::device::host_calls(),
                                     curvkern::dlpack::device_cpu);
}
