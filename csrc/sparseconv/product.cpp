#include "sparseconv/product.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "sparseconv/workers.hpp"

namespace curvkern::sparseconv {
namespace {

template <class T>
T* shifted(T* data, std::int64_t bytes) {
    using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
    return data == nullptr ? nullptr : static_cast<Byte*>(data) + bytes;
}

int index(Storage storage) {
    return static_cast<int>(storage);
}
// Of tables that know float64 and float32 alone.
int wide_index(Storage storage) {
    return storage == Storage::float64 ? 0 : 1;
}

// The pixels of a batch, cut into strips of a plan's width. Where an image has fewer, a strip
// goes on in the next one.
class Strips {
  public:
    Strips(const Plan& plan, std::int64_t batch, std::int64_t pixels, Storage storage)
        : lanes_(table().register_bytes / wide_size(storage)),
          width_(plan.vectors() * lanes_),
          batch_(batch),
          pixels_(pixels),
          flat_(batch > 1 && pixels < width_) {
        const std::int64_t length = flat_ ? batch * pixels : pixels;
        const std::int64_t vectors = (length + lanes_ - 1) / lanes_;
        each_ = (vectors + plan.vectors() - 1) / plan.vectors();
        // Of about the same size: 13 registers are 7 + 6 and not 8 + 5.
        vectors_ = each_ == 0 ? 0 : (vectors + each_ - 1) / each_;
    }
    std::int64_t count() const { return flat_ ? each_ : each_ * batch_; }
    bool flat() const { return flat_; }
    std::int64_t lanes() const { return lanes_; }

    struct Strip {
        std::int64_t image, first, count;  // pixels from `first` on, in that image and the next
    };
    Strip at(std::int64_t i) const {
        const std::int64_t length = flat_ ? batch_ * pixels_ : pixels_;
        const std::int64_t first = i % each_ * vectors_ * lanes_;
        const std::int64_t count = std::min(vectors_ * lanes_, length - first);
        if (flat_) return {first / pixels_, first % pixels_, count};
        return {i / each_, first, count};
    }
    // visit(image, first pixel, how many, at which lane) for the images of a strip
    template <class Visit>
    void each(const Strip& strip, Visit visit) const {
        std::int64_t image = strip.image, first = strip.first;
        for (std::int64_t lane = 0; lane < strip.count; ++image, first = 0) {
            const std::int64_t some = std::min(strip.count - lane, pixels_ - first);
            visit(image, first, some, lane);
            lane += some;
        }
    }

  private:
    std::int64_t lanes_, width_, batch_, pixels_, each_, vectors_;
    bool flat_;
};

// `channels` rows of a strip, from channel `from` of `of` on.
void pack(const Strips& strips, const Strips::Strip& strip, const void* x, Storage storage,
          std::int64_t plane, std::int64_t of, std::int64_t from, std::int64_t channels,
          std::int64_t pitch, char* packed) {
    if (strips.flat()) std::memset(packed, 0, static_cast<std::size_t>(channels * pitch));
    strips.each(strip, [&](std::int64_t image, std::int64_t first, std::int64_t some,
                           std::int64_t lane) {
        const std::int64_t start = (image * of + from) * plane + first;
        table().pack[index(storage)](shifted(x, start * element_size(storage)), plane, channels,
                                     some, pitch, packed + lane * wide_size(storage));
    });
}

int vectors_of(const Strips& strips, const Strips::Strip& strip) {
    return static_cast<int>((strip.count + strips.lanes() - 1) / strips.lanes());
}

// Whether the registers of a strip are read where they lie in memory. Packing pays where they
// are used often, by more than four rows, and where they would not stay in L1: addresses 4 KiB
// apart share a set there, as those of images of 64 x 64 pixels do.
bool reads_in_place(const Plan& plan, std::int64_t row_bytes) {
    if (plan.height() > 1 || plan.entries() > 4 * plan.columns()) return false;
    constexpr std::int64_t line = 64, sets = 64;
    if (row_bytes % line != 0) return false;
    const std::int64_t apart = std::gcd(row_bytes / line, sets), starts = sets / apart;
    const std::int64_t at_a_start = (plan.channels() + starts - 1) / starts;
    const std::int64_t overlapping = (plan.pitch() + apart * line - 1) / (apart * line);
    return at_a_start * overlapping * sets * line <= working_bytes();
}

std::int64_t task_scratch(const Plan& plan) {
    return chunk_bytes + plan.rows() * plan.pitch();
}

}  // namespace

std::int64_t product_scratch(const Plan& plan, std::int64_t batch, std::int64_t pixels,
                             Storage storage) {
    const std::int64_t tasks = Strips(plan, batch, pixels, storage).count() * plan.parts();
    return std::min<std::int64_t>(thread_count(), tasks) * task_scratch(plan) + 64;
}

std::int64_t serial_scratch(const Plan& plan) {
    return task_scratch(plan) + 64;
}

bool multiply(const Product& product, void* scratch, std::int64_t scratch_bytes,
              InterruptCheck interrupted) {
    const Plan& plan = *product.plan;
    const Storage storage = product.storage;
    const Kernels& kernels = table();
    const Strips strips(plan, product.batch, product.pixels, storage);
    const std::int64_t element = element_size(storage), wide = wide_size(storage);
    const std::int64_t rows = plan.rows(), columns = plan.columns(), pitch = plan.pitch();
    const bool direct = !strips.flat() && storage != Storage::bfloat16;
    const int tall = plan.height() == 4 ? 2 : plan.height() - 1;

    const std::int64_t row_bytes = product.x_plane * element;
    const bool in_place = direct && reads_in_place(plan, row_bytes) &&
                          reinterpret_cast<std::uintptr_t>(product.x) % widest_register == 0;

    // One strip and one part of the rows.
    const auto run = [&](char* memory, const Strips::Strip& strip, std::int64_t first_part,
                         std::int64_t last_part) {
        char *packed = memory, *sums = memory + chunk_bytes;
        const auto kernel =
            kernels.multiply[wide_index(storage)][tall][vectors_of(strips, strip) - 1];
        const auto target_of = [&](std::int64_t image, std::int64_t first, std::int64_t some) {
            const std::int64_t to = image * rows * product.y_plane + first;
            const std::int64_t beside = image * rows * product.residual_plane + first;
            return Target{shifted(product.y, to * element),
                          product.bias,
                          shifted(product.residual, beside * element),
                          product.y_plane,
                          product.residual_plane,
                          some,
                          product.activation};
        };
        const Target whole = target_of(strip.image, strip.first, strip.count);
        for (std::int64_t chunk = 0; chunk < plan.chunks(); ++chunk) {
            const std::int64_t from = chunk * plan.channels();
            const std::int64_t channels = std::min(plan.channels(), columns - from);
            const void* x = packed;
            std::int64_t stride = pitch;
            if (in_place) {
                const std::int64_t start =
                    ((strip.image * columns + from) * product.x_plane + strip.first) * element;
                x = shifted(product.x, start);
                stride = row_bytes;
                const std::int64_t bytes = strip.count * element;  // the next strip follows
                kernels.expect(shifted(x, bytes), stride, channels, bytes);
            } else {
                pack(strips, strip, product.x, storage, product.x_plane, columns, from,
                     channels, pitch, packed);
            }
            const bool ends = direct && chunk + 1 == plan.chunks();
            for (std::int64_t part = first_part; part < last_part; ++part) {
                kernel(plan.piece(part, chunk, product.value, wide), x, stride, sums, pitch,
                       chunk == 0, ends ? &whole : nullptr);
            }
        }
        if (direct) return;
        strips.each(strip, [&](std::int64_t image, std::int64_t first, std::int64_t some,
                               std::int64_t lane) {
            kernels.finish[index(storage)](sums + lane * wide, pitch, rows,
                                           target_of(image, first, some));
        });
    };

    // Where strips are few, a thread packs all of them for its part of the rows: it then writes
    // lines of memory that no other thread does, and reads its own weights alone.
    const std::int64_t count = strips.count();
    const bool by_parts = direct && plan.parts() > 1 && count < 4 * thread_count();
    const std::int64_t tasks = by_parts ? count * plan.parts() : count;
    if (product.serial) {
        for (std::int64_t i = 0; i < count; ++i) {
            run(aligned(scratch), strips.at(i), 0, plan.parts());
        }
        return true;
    }
    const std::int64_t each = task_scratch(plan);
    Workers workers(aligned(scratch), std::max<std::int64_t>(1, (scratch_bytes - 64) / each),
                    each);
    return parallel_chunks(tasks, 1, interrupted, [&](std::int64_t begin, std::int64_t) {
        const Workers::Turn turn(workers);
        if (by_parts) {
            const std::int64_t part = begin / count;
            run(turn.scratch(), strips.at(begin % count), part, part + 1);
        } else {
            run(turn.scratch(), strips.at(begin), 0, plan.parts());
        }
    });
}

// The nonzeros of a chunk of channels belong to one thread.
std::int64_t correlation_scratch(const Plan& plan, Storage storage) {
    const std::int64_t workers = std::min<std::int64_t>(thread_count(), plan.chunks());
    const auto values = static_cast<std::int64_t>(plan.source().size()) * wide_size(storage);
    return workers * task_scratch(plan) + whole_lines(values) + 64;
}

bool correlate(const Correlation& correlation, void* scratch, std::int64_t scratch_bytes,
               InterruptCheck interrupted) {
    const Plan& plan = *correlation.plan;
    const Storage storage = correlation.storage;
    const Kernels& kernels = table();
    const std::int64_t wide = wide_size(storage), pitch = plan.pitch();
    const auto n = static_cast<std::int64_t>(plan.source().size());
    const Strips strips(plan, correlation.batch, correlation.pixels, storage);
    const std::int64_t each = task_scratch(plan), value_bytes = whole_lines(n * wide);
    char* sums = aligned(scratch);
    Workers workers(sums + value_bytes,
                    std::max<std::int64_t>(1, (scratch_bytes - 64 - value_bytes) / each), each);
    std::memset(sums, 0, static_cast<std::size_t>(n * wide));
    // A thread takes some chunks of channels, so that it packs g once for all of them. Between
    // some strips and the next, signals are looked for.
    constexpr std::int64_t strips_at_once = 64;
    const std::int64_t threads = std::min<std::int64_t>(thread_count(), plan.chunks());
    const std::int64_t share = (plan.chunks() + threads - 1) / threads;
    const auto add = [&](std::int64_t begin, std::int64_t end, std::int64_t first_chunk,
                         std::int64_t last_chunk) {
        const Workers::Turn turn(workers);
        char *packed = turn.scratch(), *g = packed + chunk_bytes;
        for (std::int64_t i = begin; i < end; ++i) {
            const Strips::Strip strip = strips.at(i);
            pack(strips, strip, correlation.g, storage, correlation.pixels, plan.rows(), 0,
                 plan.rows(), pitch, g);
            for (std::int64_t chunk = first_chunk; chunk < last_chunk; ++chunk) {
                const std::int64_t from = chunk * plan.channels();
                pack(strips, strip, correlation.x, storage, correlation.pixels, plan.columns(),
                     from, std::min(plan.channels(), plan.columns() - from), pitch, packed);
                for (std::int64_t part = 0; part < plan.parts(); ++part) {
                    const Piece piece = plan.piece(part, chunk, nullptr, 0);
                    kernels.correlate[wide_index(storage)](
                        piece, packed, g, pitch, vectors_of(strips, strip),
                        sums + plan.first_value(part, chunk) * wide);
                }
            }
        }
    };
    bool finished = true;
    for (std::int64_t i = 0; finished && i < strips.count(); i += strips_at_once) {
        const std::int64_t end = std::min(i + strips_at_once, strips.count());
        finished = parallel_chunks(
            plan.chunks(), share, interrupted,
            [&](std::int64_t first, std::int64_t last) { add(i, end, first, last); });
        if (finished && interrupted != nullptr && end < strips.count()) {
            finished = !interrupted();
        }
    }
    if (finished) {
        kernels.scatter[index(storage)](sums, plan.source().data(), n, correlation.values);
    }
    return finished;
}

}  // namespace curvkern::sparseconv
