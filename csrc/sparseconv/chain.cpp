#include "sparseconv/chain.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "sparseconv/workers.hpp"

namespace curvkern::sparseconv {

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

// A convolution with where its images and its results lie.
template <class Convolution>
Convolution Chain::placed(Convolution c, const Rows& from, const Rows& to) {
    c.x = from.data;
    c.x_row = from.row;
    c.x_plane = from.plane;
    c.y = to.data;
    c.y_row = to.row;
    c.y_plane = to.plane;
    return c;
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
        Depthwise d = placed(stage.filters, from, to);
        d.begin = 0;
        d.end = stage.out.height;
        return depthwise(d, scratch, scratch_bytes_, poll.check());
    }
    if (stage.kind == Stage::Kind::first) {
        return first_conv(placed(stage.first, from, to), scratch, scratch_bytes_, poll.check());
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
                Depthwise d = placed(stage.filters, rows[i], rows[i + 1]);
                d.begin = done[i];
                d.end = until[i];
                depthwise_planes(d, 0, stage.out.channels, padded[i]);
            } else if (stage.kind == Stage::Kind::first) {
                // as many rows at a time as its buffer holds
                const FirstConv f = placed(stage.first, rows[i], rows[i + 1]);
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
