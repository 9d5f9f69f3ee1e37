#include "hutchinson/tangents.hpp"

#include "core/parallel.hpp"

namespace curvkern::hutchinson {
namespace {

const TangentKernels& loops() {
    return CURVKERN_SELECT_ISA(, ::tangent_kernels());
}

}  // namespace

void norm_tangent(const Norm& norm, bool is_double, void* y) {
    if (norm.by_channel) {
        parallel_chunks(norm.groups, 1, nullptr, [&](std::int64_t begin, std::int64_t) {
            loops().channel_tangent[is_double](norm, begin, y);
        });
    } else {
        parallel_chunks(norm.outer, row_chunk, nullptr,
                        [&](std::int64_t begin, std::int64_t end) {
                            loops().rows_tangent[is_double](norm, begin, end, y);
                        });
    }
}

void norm_reverse(const NormReverse& norm, bool is_double) {
    if (norm.norm.by_channel) {
        parallel_chunks(norm.norm.groups, 1, nullptr, [&](std::int64_t begin, std::int64_t) {
            loops().channel_reverse[is_double](norm, begin);
        });
    } else {
        parallel_chunks(norm.norm.outer, row_chunk, nullptr,
                        [&](std::int64_t begin, std::int64_t end) {
                            loops().rows_reverse[is_double](norm, begin, end);
                        });
    }
}

void gelu_bend(const Bend& bend, std::int64_t size, bool is_double) {
    parallel_chunks(size, 32768, nullptr, [&](std::int64_t begin, std::int64_t end) {
        loops().gelu_bend[is_double](bend, begin, end);
    });
}

}  // namespace curvkern::hutchinson
