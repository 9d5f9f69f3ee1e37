#include "bind/tensor_view.hpp"

namespace curvkern {
namespace {

// The exchange table of a type, or null. Almost every call brings torch.Tensor, so the last
// type is remembered; its reference is kept so that the address stays its own.
const dlpack::ExchangeApi* exchange_api(PyTypeObject* type) {
    static PyTypeObject* last_type = nullptr;
    static const dlpack::ExchangeApi* last_api = nullptr;
    if (type == last_type) return last_api;
    const py::handle handle(reinterpret_cast<PyObject*>(type));
    const py::object capsule = py::getattr(handle, dlpack::exchange_attribute, py::none());
    if (!PyCapsule_IsValid(capsule.ptr(), dlpack::exchange_capsule_name)) return nullptr;
    const auto* api = static_cast<const dlpack::ExchangeApi*>(
        PyCapsule_GetPointer(capsule.ptr(), dlpack::exchange_capsule_name));
    if (api->header.major != 1 || api->tensor_from_object == nullptr) return nullptr;
    handle.inc_ref();
    Py_XDECREF(reinterpret_cast<PyObject*>(last_type));
    last_type = type;
    last_api = api;
    return api;
}

std::string dtype_name(dlpack::DataType dtype) {
    const std::string bits = std::to_string(dtype.bits);
    switch (dtype.code) {
        case dlpack::code_int:
            return "int" + bits;
        case dlpack::code_uint:
            return "uint" + bits;
        case dlpack::code_float:
            return "float" + bits;
        case dlpack::code_bfloat:
            return "bfloat" + bits;
        case dlpack::code_complex:
            return "complex" + bits;
        case dlpack::code_bool:
            return "bool";
        default:
            return "a dtype of " + bits + " bits";
    }
}

std::string device_name(std::int32_t type, std::int32_t id) {
    switch (type) {
        case dlpack::device_cpu:
        case dlpack::device_cuda_host:
            return "cpu";
        case dlpack::device_cuda:
            return "cuda:" + std::to_string(id);
        default:
            return "a device of DLPack type " + std::to_string(type);
    }
}

std::string shape_text(const TensorView& view) {
    std::string text = "(";
    for (int axis = 0; axis < view.ndim(); ++axis) {
        text += (axis == 0 ? "" : ", ") + std::to_string(view.shape(axis));
    }
    return text + (view.ndim() == 1 ? ",)" : ")");
}

const char* dtype_text(Dtype dtype) {
    return dtype == Dtype::float64   ? "float64"
           : dtype == Dtype::float32 ? "float32"
                                     : "bfloat16";
}

bool is_laid_out(const dlpack::Tensor& tensor, std::int64_t size, Layout layout) {
    if (tensor.strides == nullptr || size == 0) return true;
    std::int64_t expected = 1;
    for (int axis = tensor.ndim - 1; axis >= 0; --axis) {
        const std::int64_t stride = tensor.strides[axis];
        const bool may_be_wider = layout == Layout::rows && tensor.ndim == 2 && axis == 0;
        if (tensor.shape[axis] != 1 &&
            (may_be_wider ? stride < expected : stride != expected)) {
            return false;
        }
        expected *= tensor.shape[axis];
    }
    return true;
}

}  // namespace

TensorView::TensorView(py::handle object, const char* op, const char* name,
                       dlpack::DeviceType device, bool takes_bfloat16, Layout layout)
    : op_(op), name_(name) {
    if (const auto* api = exchange_api(Py_TYPE(object.ptr()))) {
        if (api->tensor_from_object(object.ptr(), &tensor_) != 0) throw py::error_already_set();
    } else if (py::hasattr(object, "__dlpack__")) {
        capsule_ = object.attr("__dlpack__")();
        void* managed = PyCapsule_GetPointer(capsule_.ptr(), dlpack::capsule_name);
        if (managed == nullptr) throw py::error_already_set();
        tensor_ = static_cast<dlpack::ManagedTensor*>(managed)->tensor;
    } else {
        throw py::type_error(label() + " must be a tensor, got " +
                             Py_TYPE(object.ptr())->tp_name);
    }

    const dlpack::DataType dtype = tensor_.dtype;
    const bool is_bfloat16 =
        takes_bfloat16 && dtype.code == dlpack::code_bfloat && dtype.bits == 16;
    if (dtype.lanes != 1 || (!is_bfloat16 && (dtype.code != dlpack::code_float ||
                                              (dtype.bits != 32 && dtype.bits != 64)))) {
        throw py::type_error(label() + " must be float32" +
                             (takes_bfloat16 ? ", float64 or bfloat16" : " or float64") +
                             ", got " + dtype_name(dtype));
    }
    dtype_ = is_bfloat16 ? Dtype::bfloat16 : dtype.bits == 64 ? Dtype::float64 : Dtype::float32;
    const bool on_host = tensor_.device.type == dlpack::device_cpu ||
                         tensor_.device.type == dlpack::device_cuda_host;
    if (device == dlpack::device_cpu ? !on_host : tensor_.device.type != device) {
        throw py::value_error(label() + " must be on " +
                              (device == dlpack::device_cpu ? "cpu" : "cuda") + ", got " +
                              device_name(tensor_.device.type, tensor_.device.id));
    }
    try {
        for (int axis = 0; axis < tensor_.ndim; ++axis) {
            size_ = checked_multiply(size_, tensor_.shape[axis]);
        }
    } catch (const std::length_error& error) {
        throw py::value_error(label() + " is " + error.what());
    }
    if (!is_laid_out(tensor_, size_, layout)) {
        throw py::value_error(label() + " must be contiguous; call .contiguous() on it");
    }
}

std::int64_t TensorView::row_stride() const {
    const bool is_given = tensor_.strides != nullptr && shape(0) > 1;
    return is_given ? tensor_.strides[0] : shape(1);
}

void TensorView::require_same_dtype(const TensorView& other) const {
    if (dtype_ == other.dtype_) return;
    throw py::type_error(label() + " has dtype " + dtype_text(dtype_) + " but " + other.name_ +
                         " has dtype " + dtype_text(other.dtype_));
}

void TensorView::require_same_shape(const TensorView& other) const {
    bool same = ndim() == other.ndim();
    for (int axis = 0; same && axis < ndim(); ++axis) same = shape(axis) == other.shape(axis);
    if (same) return;
    throw py::value_error(label() + " has shape " + shape_text(*this) + " but " + other.name_ +
                          " has shape " + shape_text(other));
}

void TensorView::require_same_device(const TensorView& other) const {
    if (tensor_.device.type == other.tensor_.device.type && device_id() == other.device_id()) {
        return;
    }
    throw py::value_error(label() + " is on " +
                          device_name(tensor_.device.type, tensor_.device.id) + " but " +
                          other.name_ + " is on " +
                          device_name(other.tensor_.device.type, other.tensor_.device.id));
}

}  // namespace curvkern
