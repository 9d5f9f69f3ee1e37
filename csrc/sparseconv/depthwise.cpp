#include "sparseconv/depthwise.hpp"

#include <algorithm>
#include <cstring>

#include "sparseconv/workers.hpp"

namespace curvkern::sparseconv {
namespace {

constexpr std::int64_t band_bytes = 24 << 10;     // stays in L1
constexpr std::int64_t chunk_products = 1 << 18;  // a few microseconds

std::int64_t tap_bytes(const Depthwise& d) {
    return d.kernel_height * d.kernel_width * widest_register;
}
std::int64_t planes(const Depthwise& d) {
    return d.images * d.channels * d.multiplier;
}
// In a chunk: as many chunks for each thread as for any other, and of about the same size.
std::int64_t planes_at_once(const Depthwise& d) {
    const std::int64_t products = d.out_height * d.out_width * d.kernel_height * d.kernel_width;
    const std::int64_t most =
        std::max<std::int64_t>(1, chunk_products / std::max<std::int64_t>(1, products));
    if (planes(d) <= most) return most;
    const std::int64_t threads = thread_count();
    const std::int64_t chunks = (planes(d) + most * threads - 1) / (most * threads) * threads;
    return (planes(d) + chunks - 1) / chunks;
}

const DepthwiseKernels& depthwise_table() {
    return CURVKERN_SELECT_ISA(sparseconv::, ::depthwise_kernels());
}

}  // namespace

Bands bands_of(const Depthwise& d) {
    const std::int64_t wide = wide_size(d.storage), lanes = widest_register / wide;
    Bands bands{};
    bands.columns = (d.out_width + lanes - 1) / lanes * lanes +
                    ((d.kernel_width - 1) * d.dilation / d.stride + lanes) / lanes * lanes;
    bands.row_size = bands.columns * d.stride;
    const std::int64_t reach = (d.kernel_height - 1) * d.dilation + 1;
    const std::int64_t fit = band_bytes / (bands.row_size * wide);
    bands.rows = std::max<std::int64_t>(4, ((fit - reach) / d.stride + 1) / 4 * 4);
    bands.rows = std::min(bands.rows, d.out_height);
    bands.buffered_rows = (bands.rows - 1) * d.stride + reach;
    return bands;
}

std::int64_t plane_scratch(const Depthwise& d) {
    const Bands bands = bands_of(d);
    const std::int64_t buffer = bands.buffered_rows * bands.row_size * wide_size(d.storage);
    return tap_bytes(d) + whole_lines(buffer);
}

void depthwise_planes(const Depthwise& d, std::int64_t first, std::int64_t last, void* memory) {
    const Bands bands = bands_of(d);
    const PlaneKernel kernel = kernel_of(depthwise_table(), d);
    const std::int64_t filters = d.channels * d.multiplier;
    char* const buffer = static_cast<char*>(memory) + tap_bytes(d);
    for (std::int64_t i = first; i < last; ++i) {
        kernel(d, bands, i / filters, i % filters, memory, buffer);
    }
}

std::int64_t interleaved_scratch(const Depthwise& d) {
    const PaddedPlane padded = padded_plane(d);
    const std::int64_t images = whole_lines(d.images * wide_size(d.storage));
    return padded.rows * padded.columns * images + 64;
}

void depthwise_interleaved(const Depthwise& d, void* memory) {
    const auto kernel =
        depthwise_table()
            .interleaved[static_cast<int>(d.storage)][d.kernel_width == 5][d.stride - 1];
    char* const buffer = aligned(memory);
    // Padding, which no plane writes to.
    std::memset(buffer, 0, static_cast<std::size_t>(interleaved_scratch(d) - 64));
    for (std::int64_t filter = 0; filter < d.channels * d.multiplier; ++filter) {
        kernel(d, filter, buffer);
    }
}

std::int64_t depthwise_scratch(const Depthwise& d) {
    const std::int64_t chunks = (planes(d) + planes_at_once(d) - 1) / planes_at_once(d);
    return std::min<std::int64_t>(thread_count(), chunks) * plane_scratch(d) + 64;
}

bool depthwise(const Depthwise& d, void* scratch, std::int64_t scratch_bytes,
               InterruptCheck interrupted) {
    const std::int64_t each = plane_scratch(d);
    Workers workers(aligned(scratch), std::max<std::int64_t>(1, (scratch_bytes - 64) / each),
                    each);
    return parallel_chunks(planes(d), planes_at_once(d), interrupted,
                           [&](std::int64_t begin, std::int64_t end) {
                               const Workers::Turn turn(workers);
                               char* memory = turn.scratch();
                               // Padding, which no plane writes to.
                               std::memset(memory, 0, static_cast<std::size_t>(each));
                               depthwise_planes(d, begin, end, memory);
                           });
}

}  // namespace curvkern::sparseconv
