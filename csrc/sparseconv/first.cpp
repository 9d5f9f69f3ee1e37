#include "sparseconv/first.hpp"

#include <algorithm>
#include <cstring>

#include "sparseconv/workers.hpp"

namespace curvkern::sparseconv {
namespace {

constexpr std::int64_t first_band_bytes = 32 << 10;     // stays in L1
constexpr std::int64_t first_chunk_products = 1 << 20;  // some microseconds

const FirstKernels& first_table() {
    return CURVKERN_SELECT_ISA(sparseconv::, ::first_kernels());
}
std::int64_t first_taps(const FirstConv& f) {
    return f.channels * f.kernel_height * f.kernel_width;
}

// The bands of all images, and how many make a chunk.
struct FirstChunks {
    std::int64_t each, bands, at_once;
};
FirstChunks first_chunks(const FirstConv& f) {
    const FirstBands bands = first_bands(f);
    const std::int64_t each = (f.out_height + bands.rows - 1) / bands.rows;
    const std::int64_t products = bands.rows * f.out_width * f.filters * first_taps(f);
    return {each, f.images * each, std::max<std::int64_t>(1, first_chunk_products / products)};
}

}  // namespace

FirstBands first_bands(const FirstConv& f) {
    const std::int64_t wide = wide_size(f.storage), lanes = widest_register / wide;
    FirstBands bands{};
    bands.columns = (f.out_width + lanes - 1) / lanes * lanes +
                    ((f.kernel_width - 1) / f.stride + lanes) / lanes * lanes;
    bands.row_size = bands.columns * f.stride;
    const std::int64_t fit = first_band_bytes / (f.channels * bands.row_size * wide);
    bands.rows = std::max<std::int64_t>(4, (fit - f.kernel_height) / f.stride + 1);
    bands.rows = std::min(bands.rows, f.out_height);
    bands.buffered_rows = (bands.rows - 1) * f.stride + f.kernel_height;
    return bands;
}

std::int64_t first_packed_bytes(const FirstConv& f) {
    const std::int64_t filters =
        (f.filters + most_filters_at_once - 1) / most_filters_at_once * most_filters_at_once;
    return whole_lines(first_taps(f) * 8 +
                       filters * (first_taps(f) + 1) * wide_size(f.storage));
}
std::int64_t first_buffer_bytes(const FirstConv& f) {
    const FirstBands bands = first_bands(f);
    return whole_lines(f.channels * bands.buffered_rows * bands.row_size *
                       wide_size(f.storage));
}
void first_pack(const FirstConv& f, void* packed) {
    first_table().pack[static_cast<int>(f.storage)](f, first_bands(f), packed);
}
void first_rows(const FirstConv& f, const void* packed, std::int64_t image, std::int64_t begin,
                std::int64_t end, void* buffer) {
    first_table().rows[static_cast<int>(f.storage)](f, first_bands(f), packed, image, begin,
                                                    end, buffer);
}

std::int64_t first_scratch(const FirstConv& f) {
    const FirstChunks chunks = first_chunks(f);
    const std::int64_t count = (chunks.bands + chunks.at_once - 1) / chunks.at_once;
    return 64 + first_packed_bytes(f) +
           std::min<std::int64_t>(thread_count(), count) * first_buffer_bytes(f);
}

bool first_conv(const FirstConv& f, void* scratch, std::int64_t scratch_bytes,
                InterruptCheck interrupted) {
    char* const packed = aligned(scratch);
    const std::int64_t rows = first_bands(f).rows, each = first_buffer_bytes(f);
    const std::int64_t left = scratch_bytes - 64 - first_packed_bytes(f);
    const FirstChunks chunks = first_chunks(f);
    first_pack(f, packed);
    Workers workers(packed + first_packed_bytes(f), std::max<std::int64_t>(1, left / each),
                    each);
    return parallel_chunks(
        chunks.bands, chunks.at_once, interrupted, [&](std::int64_t begin, std::int64_t end) {
            const Workers::Turn turn(workers);
            std::memset(turn.scratch(), 0, static_cast<std::size_t>(each));
            for (std::int64_t i = begin; i < end; ++i) {
                const std::int64_t row = i % chunks.each * rows;
                first_rows(f, packed, i / chunks.each, row, std::min(row + rows, f.out_height),
                           turn.scratch());
            }
        });
}

}  // namespace curvkern::sparseconv
