#include "sparseconv/depthwise_gradients.hpp"

#include <algorithm>
#include <cstring>

#include "sparseconv/workers.hpp"

namespace curvkern::sparseconv {
namespace {

constexpr std::int64_t gradient_band_bytes = 24 << 10;     // stays in L1
constexpr std::int64_t gradient_chunk_products = 1 << 18;  // some microseconds
constexpr std::int64_t least_units = 64;  // that threads share, if there are as many images

const DepthwiseGradients& gradient_table() {
    return CURVKERN_SELECT_ISA(sparseconv::, ::depthwise_gradients());
}
std::int64_t filter_size(const Depthwise& d) {
    return d.kernel_height * d.kernel_width;
}
std::int64_t units_at_once(const Depthwise& d, std::int64_t each) {
    const std::int64_t products = each * d.out_height * d.out_width * filter_size(d);
    return std::max<std::int64_t>(
        1, gradient_chunk_products / std::max<std::int64_t>(1, products));
}

// The input's gradient as the convolution of that of the output with turned filters.
bool is_turned(const Depthwise& d) {
    return d.stride == 1 && d.multiplier == 1;
}
Depthwise turned(const Depthwise& d, const void* weight) {
    Depthwise t = d;
    t.x = d.y;
    t.y = const_cast<void*>(d.x);
    t.weight = weight;
    t.bias = nullptr;
    t.activation = Activation::none;
    std::swap(t.height, t.out_height);
    std::swap(t.width, t.out_width);
    std::swap(t.x_plane, t.y_plane);
    t.end = t.out_height;
    t.top = (d.kernel_height - 1) * d.dilation - d.top;
    t.left = (d.kernel_width - 1) * d.dilation - d.left;
    return t;
}
std::int64_t weight_bytes(const Depthwise& d) {
    return d.channels * d.multiplier * filter_size(d) * element_size(d.storage);
}
void turn_filters(const Depthwise& d, char* to) {
    const auto size = static_cast<std::size_t>(element_size(d.storage));
    const auto taps = static_cast<std::size_t>(filter_size(d));
    const auto* from = static_cast<const char*>(d.weight);
    for (std::int64_t o = 0; o < d.channels * d.multiplier; ++o) {
        for (std::size_t t = 0; t < taps; ++t) {
            std::memcpy(to + t * size, from + (taps - 1 - t) * size, size);
        }
        to += taps * size;
        from += taps * size;
    }
}

TransposedBands transposed_bands(const Depthwise& d) {
    const std::int64_t wide = wide_size(d.storage), lanes = widest_register / wide;
    const auto steps = [&](std::int64_t kernel) {
        return ((kernel - 1) * d.dilation + d.stride - 1) / d.stride;
    };
    TransposedBands bands{};
    bands.first = d.left / d.stride;
    bands.last = (d.width - 1 + d.left) / d.stride + 1;
    bands.lead = steps(d.kernel_width);
    bands.columns = (bands.last - bands.first + bands.lead + lanes - 1) / lanes * lanes + lanes;
    const std::int64_t fit = gradient_band_bytes / (d.multiplier * bands.columns * wide);
    const std::int64_t before = steps(d.kernel_height);
    bands.rows = std::max<std::int64_t>(4, (fit - before - 2) * d.stride + 1);
    bands.rows = std::min(bands.rows, d.height);
    bands.buffered_rows = (bands.rows - 1) / d.stride + 2 + before;
    return bands;
}

// Classes of rows by classes of columns, one after the other; start has one entry more.
void list_terms(const Depthwise& d, const TransposedBands& bands, Term* terms,
                std::int64_t* start) {
    std::int64_t count = 0;
    for (std::int64_t row = 0; row < d.stride; ++row) {
        for (std::int64_t column = 0; column < d.stride; ++column) {
            *start++ = count;
            for (std::int64_t t = 0; t < d.multiplier * filter_size(d); ++t) {
                const std::int64_t m = t / filter_size(d);
                const std::int64_t u = t % filter_size(d) / d.kernel_width;
                const std::int64_t down = row - u * d.dilation;
                const std::int64_t across = column - t % d.kernel_width * d.dilation;
                if (down % d.stride != 0 || across % d.stride != 0) continue;
                terms[count++] = {(m * bands.buffered_rows + down / d.stride) * bands.columns +
                                      across / d.stride,
                                  t};
            }
        }
    }
    *start = count;
}

// Shared by all: terms and starts. Of each thread: taps, two rows of gx, the buffer.
struct InputMemory {
    std::int64_t terms, starts, taps, line, buffer;
    std::int64_t each() const { return taps + line + buffer; }
};
InputMemory input_memory(const Depthwise& d) {
    const TransposedBands bands = transposed_bands(d);
    const std::int64_t taps = d.multiplier * filter_size(d), wide = wide_size(d.storage);
    return {whole_lines(taps * static_cast<std::int64_t>(sizeof(Term))),
            whole_lines((d.stride * d.stride + 1) * 8), taps * widest_register,
            whole_lines(2 * d.stride * bands.columns * wide),
            whole_lines(d.multiplier * bands.buffered_rows * bands.columns * wide)};
}
std::int64_t threads_for(std::int64_t units, std::int64_t at_once) {
    return std::min<std::int64_t>(thread_count(), (units + at_once - 1) / at_once);
}

// The sums over some images for each filter.
struct WeightUnits {
    std::int64_t images, parts, count;  // images of a part, parts of a filter, all of them
};
WeightUnits weight_units(const Depthwise& d) {
    const std::int64_t filters = d.channels * d.multiplier;
    const std::int64_t wanted = (least_units + filters - 1) / filters;
    WeightUnits units{};
    units.images = std::max<std::int64_t>(1, d.images / wanted);
    units.parts = (d.images + units.images - 1) / units.images;
    units.count = filters * units.parts;
    return units;
}
std::int64_t weight_buffer(const Depthwise& d) {
    const Bands bands = bands_of(d);
    return whole_lines(bands.buffered_rows * bands.row_size * wide_size(d.storage));
}
std::int64_t sums_bytes(const Depthwise& d, const WeightUnits& units) {
    return whole_lines(units.count * filter_size(d) * 8);
}

}  // namespace

std::int64_t depthwise_input_scratch(const Depthwise& d) {
    if (is_turned(d)) {
        return whole_lines(weight_bytes(d)) + 64 + depthwise_scratch(turned(d, nullptr));
    }
    const InputMemory memory = input_memory(d);
    const std::int64_t units = d.images * d.channels;
    return 64 + memory.terms + memory.starts +
           threads_for(units, units_at_once(d, d.multiplier)) * memory.each();
}

bool depthwise_input_grad(const Depthwise& d, void* scratch, std::int64_t scratch_bytes,
                          InterruptCheck interrupted) {
    char* shared = aligned(scratch);
    if (is_turned(d)) {
        turn_filters(d, shared);
        const std::int64_t taken = 64 + whole_lines(weight_bytes(d));
        return depthwise(turned(d, shared), shared + taken - 64, scratch_bytes - taken,
                         interrupted);
    }
    const TransposedBands bands = transposed_bands(d);
    const InputMemory memory = input_memory(d);
    const std::int64_t fixed = memory.terms + memory.starts;
    auto* const terms = reinterpret_cast<Term*>(shared);
    auto* const start = reinterpret_cast<std::int64_t*>(shared + memory.terms);
    list_terms(d, bands, terms, start);
    Workers workers(shared + fixed, (scratch_bytes - 64 - fixed) / memory.each(),
                    memory.each());
    const auto kernel = gradient_table().input[static_cast<int>(d.storage)];
    return parallel_chunks(d.images * d.channels, units_at_once(d, d.multiplier), interrupted,
                           [&](std::int64_t begin, std::int64_t end) {
                               const Workers::Turn turn(workers);
                               char* const line = turn.scratch() + memory.taps;
                               char* const buffer = line + memory.line;
                               std::memset(buffer, 0, static_cast<std::size_t>(memory.buffer));
                               for (std::int64_t i = begin; i < end; ++i) {
                                   kernel(d, bands, terms, start, i / d.channels,
                                          i % d.channels, turn.scratch(), line, buffer);
                               }
                           });
}

std::int64_t depthwise_weight_scratch(const Depthwise& d) {
    const WeightUnits units = weight_units(d);
    return 64 + sums_bytes(d, units) +
           threads_for(units.count, units_at_once(d, units.images)) * weight_buffer(d);
}

bool depthwise_weight_grad(const Depthwise& d, void* scratch, std::int64_t scratch_bytes,
                           InterruptCheck interrupted) {
    const WeightUnits units = weight_units(d);
    const Bands bands = bands_of(d);
    const std::int64_t taps = filter_size(d), filters = d.channels * d.multiplier;
    const std::int64_t each = weight_buffer(d);
    const std::int64_t fixed = sums_bytes(d, units);
    auto* const sums = reinterpret_cast<double*>(aligned(scratch));
    Workers workers(aligned(scratch) + fixed, (scratch_bytes - 64 - fixed) / each, each);
    const auto kernel = kernel_of(gradient_table(), d);
    // Unit i is filter i % filters over the images of part i / filters.
    const bool finished = parallel_chunks(
        units.count, units_at_once(d, units.images), interrupted,
        [&](std::int64_t begin, std::int64_t end) {
            const Workers::Turn turn(workers);
            std::memset(turn.scratch(), 0, static_cast<std::size_t>(each));
            for (std::int64_t i = begin; i < end; ++i) {
                const std::int64_t first = i / filters * units.images;
                const std::int64_t last = std::min(first + units.images, d.images);
                double* const sum = sums + i * taps;
                std::fill(sum, sum + taps, 0.0);
                kernel(d, bands, first, last, i % filters, sum, turn.scratch());
            }
        });
    if (!finished) return false;
    for (std::int64_t part = 1; part < units.parts; ++part) {
        const double* const more = sums + part * filters * taps;
        for (std::int64_t i = 0; i < filters * taps; ++i) sums[i] += more[i];
    }
    gradient_table().narrow[static_cast<int>(d.storage)](sums, filters * taps,
                                                         const_cast<void*>(d.weight));
    return true;
}

}  // namespace curvkern::sparseconv
