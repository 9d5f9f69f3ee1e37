#include "sparseconv/chain.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "sparseconv/workers.hpp"

namespace curvkern::sparseconv {
namespace {

// Of one thread.
std::int64_t stage_scratch(const Stage& stage) {
    switch (stage.kind) {
        case Stage::Kind::pointwise:
            return whole_lines(serial_scratch(*stage.product.plan));
        case Stage::Kind::depthwise:
            return plane_scratch(stage.filters);
        default:
            return first_buffer_bytes(stage.first);
    }
}

}  // namespace

// Signals are looked for by the thread that called, every 50 ms.
struct Chain::Poll {
    InterruptCheck interrupted;
    std::thread::id caller = std::this_thread::get_id();
    std::chrono::steady_clock::time_point last = std::chrono::steady_clock::now();

    bool mine() const { return interrupted && std::this_thread::get_id() == caller; }
    InterruptCheck check() const { return mine() ? interrupted : nullptr; }
    bool stops() {
        if (!mine()) return false;
        const auto now = std::chrono::steady_clock::now();
        if (now - last < std::chrono::milliseconds(50)) return false;
        last = now;
        return interrupted();
    }
};

Chain::Chain(std::vector<Stage> stages, Extent input, Storage storage, std::int64_t batch,
             int threads, Limits limits)
    : stages_(std::move(stages)),
      extent_{input},
      storage_(storage),
      batch_(batch),
      lanes_(std::max<std::int64_t>(1, std::min<std::int64_t>(threads, batch))),
      threads_(lanes_ > 1 ? 1 : std::max(1, threads)) {
    for (const Stage& stage : stages_) {
        extent_.push_back(stage.out);
        packed_.emplace_back();
        columns_.emplace_back();
        if (stage.gated) columns_.back() = columns_of(*stage.product.plan);
        if (stage.kind != Stage::Kind::first) continue;
        packed_.back().resize(static_cast<std::size_t>(first_packed_bytes(stage.first) + 64));
        first_pack(stage.first, aligned(packed_.back().data()));
    }
    cut(limits);
    place();
}

std::int64_t Chain::row_bytes(std::int64_t tensor) const {
    const Extent& e = extent_[static_cast<std::size_t>(tensor)];
    return e.channels * e.width * element_size(storage_);
}
std::int64_t Chain::tensor_bytes(std::int64_t tensor) const {
    return row_bytes(tensor) * extent_[static_cast<std::size_t>(tensor)].height;
}

// The first row of its input that a stage needs for a row of its output, and the end of those
// that it needs for the rows before `end`.
std::int64_t Chain::first_row(const Stage& stage, std::int64_t row) const {
    const std::int64_t height = extent_[static_cast<std::size_t>(stage.input)].height;
    return std::clamp<std::int64_t>(row * stage.step - stage.top, 0, height);
}
std::int64_t Chain::end_row(const Stage& stage, std::int64_t end) const {
    const std::int64_t height = extent_[static_cast<std::size_t>(stage.input)].height;
    return std::clamp<std::int64_t>((end - 1) * stage.step - stage.top + stage.reach, 0,
                                    height);
}

// Bytes of the buffers of a segment whose bands have so many rows; `held`: how many of each
// tensor within it.
std::int64_t Chain::capacity(const Segment& segment, std::int64_t rows,
                             std::vector<std::int64_t>& held) const {
    std::int64_t bytes = 0;
    held.assign(static_cast<std::size_t>(segment.last - segment.first), rows);
    for (std::int64_t i = segment.last - 1; i > segment.first; --i) {
        const Stage& stage = stages_[static_cast<std::size_t>(i)];
        rows = (rows - 1) * stage.step + stage.reach;
        rows = std::min(rows, extent_[static_cast<std::size_t>(i)].height);
        held[static_cast<std::size_t>(i - 1 - segment.first)] = rows;
        bytes += whole_lines(rows * row_bytes(i));
    }
    return bytes;
}

void Chain::cut(Limits limits) {
    std::vector<int> uses(extent_.size());
    for (const Stage& stage : stages_) {
        ++uses[static_cast<std::size_t>(stage.input)];
        if (stage.residual >= 0) ++uses[static_cast<std::size_t>(stage.residual)];
    }
    const auto count = static_cast<std::int64_t>(stages_.size());
    std::vector<std::int64_t> held;
    for (std::int64_t first = 0, last = 0; first < count; first = last) {
        last = first + 1;
        while (last < count && stages_[static_cast<std::size_t>(last)].input == last &&
               !stages_[static_cast<std::size_t>(last)].gated &&
               uses[static_cast<std::size_t>(last)] == 1 && tensor_bytes(last) > limits.whole) {
            ++last;
        }
        Segment segment{first, last, 0};
        if (last - first > 1) {
            const std::int64_t height = extent_[static_cast<std::size_t>(last)].height;
            std::int64_t rows = 1;
            while (rows < height && capacity(segment, rows + 1, held) <= limits.band) ++rows;
            const std::int64_t bands = (height + rows - 1) / rows;
            segment.rows = (height + bands - 1) / bands;
        }
        segments_.push_back(segment);
    }
}

// Where tensors that are kept as a whole lie: as low as those that are still needed allow.
void Chain::place() {
    struct Held {
        std::int64_t offset, bytes, last;
    };
    std::vector<std::int64_t> last_use(extent_.size(), -1);
    for (std::size_t s = 0; s < segments_.size(); ++s) {
        for (std::int64_t i = segments_[s].first; i < segments_[s].last; ++i) {
            const Stage& stage = stages_[static_cast<std::size_t>(i)];
            for (const int tensor : {stage.input, stage.residual}) {
                if (tensor >= 0) {
                    last_use[static_cast<std::size_t>(tensor)] = static_cast<std::int64_t>(s);
                }
            }
        }
    }
    offset_.assign(extent_.size(), -1);
    std::vector<Held> held;  // by offset
    for (std::size_t s = 0; s < segments_.size(); ++s) {
        std::erase_if(held,
                      [&](const Held& h) { return h.last < static_cast<std::int64_t>(s); });
        const auto tensor = static_cast<std::size_t>(segments_[s].last);
        if (tensor + 1 == extent_.size()) break;  // the result
        const std::int64_t bytes = whole_lines(tensor_bytes(segments_[s].last));
        std::int64_t offset = 0;
        auto at = held.begin();
        for (; at != held.end() && at->offset < offset + bytes; ++at) {
            offset = at->offset + at->bytes;
        }
        held.insert(at,
                    {offset, bytes, std::max(last_use[tensor], static_cast<std::int64_t>(s))});
        offset_[tensor] = offset;
        scratch_ = std::max(scratch_, offset + bytes);
    }
    gate_ = scratch_;
    for (std::size_t i = 0; i < stages_.size(); ++i) {
        const Gate& gate = stages_[i].gate;
        if (!stages_[i].gated) continue;
        const std::int64_t numbers = 2 * gate.channels + gate.inner;
        const auto values = static_cast<std::int64_t>(columns_[i].size());
        scratch_ =
            std::max(scratch_, gate_ + whole_lines(4 * values) + whole_lines(4 * numbers));
    }
    std::vector<std::int64_t> rows;
    for (const Segment& segment : segments_) {
        if (segment.rows > 0) {
            std::int64_t bytes = capacity(segment, segment.rows, rows), product = 0;
            for (std::int64_t i = segment.first; i < segment.last; ++i) {
                const Stage& stage = stages_[static_cast<std::size_t>(i)];
                if (stage.kind == Stage::Kind::pointwise) {
                    product = std::max(product, stage_scratch(stage));
                } else {
                    bytes += stage_scratch(stage);
                }
            }
            band_bytes_ = std::max(band_bytes_, bytes + product);
            continue;
        }
        const Stage& stage = stages_[static_cast<std::size_t>(segment.first)];
        std::int64_t bytes = threads_ * stage_scratch(stage) + 64;
        if (stage.kind == Stage::Kind::first) bytes += first_packed_bytes(stage.first);
        scratch_bytes_ = std::max(scratch_bytes_, bytes);
    }
    scratch_bytes_ = whole_lines(scratch_bytes_);
    band_ = scratch_ + scratch_bytes_;
    lane_bytes_ = band_ + threads_ * band_bytes_;
}

std::vector<std::pair<int, std::int64_t>> Chain::segments() const {
    std::vector<std::pair<int, std::int64_t>> found;
    for (std::size_t s = 0; s < segments_.size(); ++s) {
        for (std::int64_t i = segments_[s].first; i < segments_[s].last; ++i) {
            found.emplace_back(static_cast<int>(s), segments_[s].rows);
        }
    }
    return found;
}

Chain::Rows Chain::whole(std::int64_t tensor, const void* x, void* y, char* lane) const {
    if (tensor < 0) return {nullptr, 0, 0};
    const auto t = static_cast<std::size_t>(tensor);
    const std::int64_t plane = extent_[t].height * extent_[t].width;
    if (t == 0) return {static_cast<char*>(const_cast<void*>(x)), 0, plane};
    if (t + 1 == extent_.size()) return {static_cast<char*>(y), 0, plane};
    return {lane + offset_[t], 0, plane};
}

Product Chain::product(const Stage& stage, std::int64_t begin, std::int64_t end,
                       const Rows& from, const Rows& beside, const Rows& to,
                       const char* lane) const {
    const std::int64_t width = stage.out.width, element = element_size(storage_);
    const auto row = [&](const Rows& rows) {
        return rows.data == nullptr ? nullptr
                                    : rows.data + (begin - rows.row) * width * element;
    };
    Product p = stage.product;
    if (stage.gated) p.value = lane + gate_;
    p.x = row(from);
    p.residual = row(beside);
    p.y = row(to);
    p.batch = 1;
    p.pixels = (end - begin) * width;
    p.storage = storage_;
    p.x_plane = from.plane;
    p.y_plane = to.plane;
    p.residual_plane = beside.plane;
    return p;
}

Depthwise Chain::depthwise(const Stage& stage, std::int64_t begin, std::int64_t end,
                           const Rows& from, const Rows& to) const {
    Depthwise d = stage.filters;
    d.x = from.data;
    d.x_row = from.row;
    d.x_plane = from.plane;
    d.y = to.data;
    d.y_row = to.row;
    d.y_plane = to.plane;
    d.begin = begin;
    d.end = end;
    return d;
}

FirstConv Chain::first(const Stage& stage, const Rows& from, const Rows& to) const {
    FirstConv f = stage.first;
    f.x = from.data;
    f.x_row = from.row;
    f.x_plane = from.plane;
    f.y = to.data;
    f.y_row = to.row;
    f.y_plane = to.plane;
    return f;
}

bool Chain::run(const void* x, void* y, void* workspace, InterruptCheck interrupted) const {
    const std::int64_t element = element_size(storage_);
    const std::int64_t x_bytes = extent_[0].channels * extent_[0].height * extent_[0].width;
    const Extent& out = extent_.back();
    const std::int64_t y_bytes = out.channels * out.height * out.width;
    Poll poll{interrupted};
    Workers lanes(aligned(workspace), lanes_, lane_bytes_);
    std::atomic<bool> finished{true};
    const auto image = [&](std::int64_t i, char* lane) {
        const auto* from = static_cast<const char*>(x) + i * x_bytes * element;
        return run_image(from, static_cast<char*>(y) + i * y_bytes * element, lane, poll);
    };
    if (lanes_ == 1) {
        for (std::int64_t i = 0; i < batch_; ++i) {
            if (!image(i, aligned(workspace))) return false;
        }
        return true;
    }
    parallel_chunks(batch_, 1, nullptr, [&](std::int64_t i, std::int64_t) {
        const Workers::Turn turn(lanes);
        if (finished && !image(i, turn.scratch())) finished = false;
    });
    return finished;
}

bool Chain::run_image(const void* x, void* y, char* lane, Poll& poll) const {
    for (const Segment& segment : segments_) {
        if (stages_[static_cast<std::size_t>(segment.first)].gated &&
            !open_gate(segment.first, x, y, lane, poll)) {
            return false;
        }
        bool finished = true;
        if (segment.rows > 0) {
            const std::int64_t height = extent_[static_cast<std::size_t>(segment.last)].height;
            const std::int64_t bands = (height + segment.rows - 1) / segment.rows;
            const std::int64_t shares = std::min(threads_, bands);
            std::atomic<bool> all{true};
            parallel_chunks(shares, 1, nullptr, [&](std::int64_t i, std::int64_t) {
                const std::int64_t begin = height * i / shares, end = height * (i + 1) / shares;
                char* memory = lane + band_ + i * band_bytes_;
                if (!run_bands(segment, begin, end, x, y, lane, memory, poll)) all = false;
            });
            finished = all;
        } else {
            finished = run_whole(segment, x, y, lane, poll);
        }
        if (!finished || poll.stops()) return false;
    }
    return true;
}

bool Chain::open_gate(std::int64_t number, const void* x, void* y, char* lane,
                      Poll& poll) const {
    const Stage& stage = stages_[static_cast<std::size_t>(number)];
    const std::vector<std::int32_t>& columns = columns_[static_cast<std::size_t>(number)];
    const auto n = static_cast<std::int64_t>(columns.size());
    const std::int64_t channels = stage.gate.channels;
    const std::int64_t pixels = stage.out.height * stage.out.width;
    const Rows from = whole(stage.input, x, y, lane);
    auto* values = reinterpret_cast<float*>(lane + gate_);
    auto* mean = reinterpret_cast<float*>(lane + gate_ + whole_lines(4 * n));
    float *inner = mean + channels, *scale = inner + stage.gate.inner;
    const std::int64_t some = std::max<std::int64_t>(1, (std::int64_t{1} << 16) / pixels);
    const auto average = [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t c = begin; c < end; ++c) {
            mean[c] = mean_of(reinterpret_cast<float*>(from.data) + c * from.plane, pixels);
        }
    };
    if (!parallel_chunks(channels, some, poll.check(), average)) return false;
    excite(stage.gate, mean, inner, scale);
    const auto* given = static_cast<const float*>(stage.product.value);
    for (std::int64_t i = 0; i < n; ++i) {
        values[i] = given[i] * scale[columns[static_cast<std::size_t>(i)]];
    }
    return true;
}

bool Chain::run_whole(const Segment& segment, const void* x, void* y, char* lane,
                      Poll& poll) const {
    const Stage& stage = stages_[static_cast<std::size_t>(segment.first)];
    const Rows from = whole(stage.input, x, y, lane), to = whole(segment.last, x, y, lane);
    char* scratch = lane + scratch_;
    if (stage.kind == Stage::Kind::depthwise) {
        return sparseconv::depthwise(depthwise(stage, 0, stage.out.height, from, to), scratch,
                                     scratch_bytes_, poll.check());
    }
    if (stage.kind == Stage::Kind::first) {
        return first_conv(first(stage, from, to), scratch, scratch_bytes_, poll.check());
    }
    const Rows beside = whole(stage.residual, x, y, lane);
    return multiply(product(stage, 0, stage.out.height, from, beside, to, lane), scratch,
                    scratch_bytes_, poll.check());
}

bool Chain::run_bands(const Segment& segment, std::int64_t begin, std::int64_t end,
                      const void* x, void* y, char* lane, char* memory, Poll& poll) const {
    const auto count = static_cast<std::size_t>(segment.last - segment.first);
    const auto stage_of = [&](std::size_t i) -> const Stage& {
        return stages_[static_cast<std::size_t>(segment.first) + i];
    };
    const std::int64_t element = element_size(storage_);
    std::vector<std::int64_t> held, done(count), until(count);
    std::vector<Rows> rows(count + 1);
    std::vector<char*> padded(count);
    capacity(segment, segment.rows, held);
    rows[0] = whole(stage_of(0).input, x, y, lane);
    rows[count] = whole(segment.last, x, y, lane);
    done[count - 1] = begin;
    for (std::size_t i = count - 1; i > 0; --i) {
        done[i - 1] = first_row(stage_of(i), done[i]);
        const Extent& e = stage_of(i - 1).out;
        rows[i] = {memory, done[i - 1], held[i - 1] * e.width};
        memory += whole_lines(e.channels * rows[i].plane * element);
    }
    for (std::size_t i = 0; i < count; ++i) {
        if (stage_of(i).kind == Stage::Kind::pointwise) continue;
        padded[i] = memory;
        std::memset(memory, 0, static_cast<std::size_t>(stage_scratch(stage_of(i))));
        memory += stage_scratch(stage_of(i));
    }
    while (done[count - 1] < end) {
        until[count - 1] = std::min(done[count - 1] + segment.rows, end);
        for (std::size_t i = count - 1; i > 0; --i) {
            until[i - 1] = std::max(done[i - 1], end_row(stage_of(i), until[i]));
            // What the next stage needs of the rows that there are moves to the head.
            const std::int64_t first = first_row(stage_of(i), done[i]);
            const std::int64_t width = stage_of(i - 1).out.width * element;
            const std::int64_t kept = std::max<std::int64_t>(0, done[i - 1] - first) * width;
            if (kept > 0 && first > rows[i].row) {
                char* plane = rows[i].data;
                const std::int64_t shift = (first - rows[i].row) * width;
                for (std::int64_t c = 0; c < stage_of(i - 1).out.channels; ++c) {
                    std::memmove(plane, plane + shift, static_cast<std::size_t>(kept));
                    plane += rows[i].plane * element;
                }
            }
            rows[i].row = std::max(rows[i].row, first);
            done[i - 1] = std::max(done[i - 1], first);
        }
        for (std::size_t i = 0; i < count; ++i) {
            const Stage& stage = stage_of(i);
            if (until[i] <= done[i]) continue;
            if (stage.kind == Stage::Kind::depthwise) {
                const Depthwise d = depthwise(stage, done[i], until[i], rows[i], rows[i + 1]);
                depthwise_planes(d, 0, stage.out.channels, padded[i]);
            } else if (stage.kind == Stage::Kind::first) {
                // as many rows at a time as its buffer holds
                const FirstConv f = first(stage, rows[i], rows[i + 1]);
                const char* weights =
                    packed_[static_cast<std::size_t>(segment.first) + i].data();
                char* packed = aligned(const_cast<char*>(weights));
                const std::int64_t some = first_bands(f).rows;
                for (std::int64_t row = done[i]; row < until[i]; row += some) {
                    first_rows(f, packed, 0, row, std::min(row + some, until[i]), padded[i]);
                }
            } else {
                Product p = product(stage, done[i], until[i], rows[i],
                                    whole(stage.residual, x, y, lane), rows[i + 1], lane);
                p.serial = true;
                multiply(p, memory, 0, nullptr);
            }
            done[i] = until[i];
        }
        if (poll.stops()) return false;
    }
    return true;
}

}  // namespace curvkern::sparseconv
