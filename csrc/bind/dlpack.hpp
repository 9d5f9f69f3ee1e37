// The part of the DLPack binary interface that is read here (https://dmlc.github.io/dlpack,
// version 1.x; Tensor, unversioned capsule, and the C exchange table of version 1.3).
#pragma once

#include <cstdint>

namespace curvkern::dlpack {

enum DeviceType : std::int32_t { device_cpu = 1, device_cuda = 2, device_cuda_host = 3 };
enum TypeCode : std::uint8_t {
    code_int = 0,
    code_uint = 1,
    code_float = 2,
    code_bfloat = 4,
    code_complex = 5,
    code_bool = 6
};

struct Device {
    std::int32_t type;
    std::int32_t id;
};

struct DataType {
    std::uint8_t code;
    std::uint8_t bits;
    std::uint16_t lanes;
};

struct Tensor {
    void* data;
    Device device;
    std::int32_t ndim;
    DataType dtype;
    std::int64_t* shape;
    std::int64_t* strides;  // in elements; null means contiguous
    std::uint64_t byte_offset;
};

// What a capsule named "dltensor" holds. The capsule frees it unless it is renamed.
struct ManagedTensor {
    Tensor tensor;
    void* context;
    void (*deleter)(ManagedTensor* self);
};
inline constexpr const char* capsule_name = "dltensor";

// What type(tensor).__dlpack_c_exchange_api__ holds.
struct ExchangeApi {
    struct Header {
        std::uint32_t major, minor;
        Header* previous;
    } header;
    void* managed_tensor_allocator;
    void* managed_tensor_from_object;
    void* managed_tensor_to_object;
    // Fills `out` with a view that lives as long as `object`; 0, or else a Python error.
    int (*tensor_from_object)(void* object, Tensor* out);
    void* current_work_stream;
};
inline constexpr const char* exchange_attribute = "__dlpack_c_exchange_api__";
inline constexpr const char* exchange_capsule_name = "dlpack_exchange_api";

}  // namespace curvkern::dlpack
