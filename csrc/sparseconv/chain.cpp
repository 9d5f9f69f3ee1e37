#include "sparseconv/chain.hpp"

#include <algorithm>
#include <chrono>
#include <thread>

#include "sparseconv/chain_bands.hpp"
#include "sparseconv/workers.hpp"

namespace curvkern::sparseconv {

// Signals are looked for by the thread that called, every 50 ms; the others stop with it.
struct Chain::Poll {
    InterruptCheck interrupted;
    std::atomic<bool> stopped{false};
    std::thread::id caller = std::this_thread::get_id();
    std::chrono::steady_clock::time_point last = std::chrono::steady_clock::now();

    bool mine() const { return interrupted && std::this_thread::get_id() == caller; }
    InterruptCheck check() const { return mine() ? interrupted : nullptr; }
    bool stops() {
        if (!mine()) return stopped;
        const auto now = std::chrono::steady_clock::now();
        if (now - last < std::chrono::milliseconds(50)) return stopped;
        last = now;
        if (interrupted()) stopped = true;
        return stopped;
    }
};

namespace {

// Whether threads would not gain what it takes to start them, some microseconds.
bool is_brief(const Product& product) {
    constexpr std::int64_t lanes = 16, loads = std::int64_t{1} << 13;
    return product.plan->entries() * ((product.pixels + lanes - 1) / lanes) <= loads;
}

}  // namespace

Chain::Rows Chain::whole(std::int64_t tensor, const Work& work) const {
    if (tensor < 0) return {nullptr, 0, 0};
    const auto t = static_cast<std::size_t>(tensor);
    const std::int64_t plane = extent_[t].height * extent_[t].width;
    if (t == 0) return {const_cast<char*>(work.x), 0, plane};
    if (t + 1 == extent_.size()) return {work.y, 0, plane};
    return {work.lane + offset_[t] + work.image * slot_[t], 0, plane};
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
    const auto count = static_cast<std::int64_t>(stages_.size());
    const std::int64_t x_bytes = tensor_bytes(0), y_bytes = tensor_bytes(count);
    Poll poll{interrupted};
    Workers lanes(aligned(workspace), lanes_, lane_bytes_);
    std::atomic<bool> finished{true};
    const auto group = [&](std::int64_t begin, std::int64_t end, char* lane) {
        const char* from = static_cast<const char*>(x) + begin * x_bytes;
        return run_group({from, static_cast<char*>(y) + begin * y_bytes, lane, 0, poll},
                         end - begin);
    };
    if (lanes_ == 1) {
        for (std::int64_t i = 0; i < batch_; i += group_.images) {
            const std::int64_t end = std::min(i + group_.images, batch_);
            if (!group(i, end, aligned(workspace))) return false;
        }
        return true;
    }
    parallel_chunks(batch_, group_.images, nullptr, [&](std::int64_t begin, std::int64_t end) {
        const Workers::Turn turn(lanes);
        if (finished && !group(begin, end, turn.scratch())) finished = false;
    });
    return finished;
}

bool Chain::run_group(const Work& work, std::int64_t images) const {
    const auto count = static_cast<std::int64_t>(stages_.size());
    const std::int64_t x_bytes = tensor_bytes(0), y_bytes = tensor_bytes(count);
    for (std::int64_t i = 0; i < images; ++i) {
        const char* from = work.x + i * x_bytes;
        if (!run_image({from, work.y + i * y_bytes, work.lane, i, work.poll})) return false;
    }
    if (group_.first == count) return true;
    gather(work, images);
    for (std::int64_t i = group_.first; i < count; ++i) {
        run_interleaved(i, work.lane, images);
        if (work.poll.stops()) return false;
    }
    scatter(work, images);
    return true;
}

bool Chain::run_image(const Work& work) const {
    for (const Segment& segment : segments_) {
        if (grouped(segment)) break;
        if (stages_[static_cast<std::size_t>(segment.first)].gated &&
            !open_gate(segment.first, work)) {
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
                char* memory = work.lane + band_ + i * band_bytes_;
                Bands bands(*this, segment, begin, end, memory, work);
                while (all && bands.next()) {
                    if (work.poll.stops()) all = false;
                }
            });
            finished = all;
        } else {
            finished = run_whole(segment, work);
        }
        if (!finished) work.poll.stopped = true;
        if (work.poll.stops()) return false;
    }
    return true;
}

bool Chain::open_gate(std::int64_t number, const Work& work) const {
    char* const lane = work.lane;
    const Stage& stage = stages_[static_cast<std::size_t>(number)];
    const std::vector<std::int32_t>& columns = columns_[static_cast<std::size_t>(number)];
    const auto n = static_cast<std::int64_t>(columns.size());
    const std::int64_t channels = stage.gate.channels;
    const std::int64_t pixels = stage.out.height * stage.out.width;
    const Rows from = whole(stage.input, work);
    auto* values = reinterpret_cast<float*>(lane + gate_);
    auto* mean = reinterpret_cast<float*>(lane + gate_ + whole_lines(4 * n));
    float *inner = mean + channels, *scale = inner + stage.gate.inner;
    const std::int64_t some = std::max<std::int64_t>(1, (std::int64_t{1} << 16) / pixels);
    const auto average = [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t c = begin; c < end; ++c) {
            mean[c] = mean_of(reinterpret_cast<float*>(from.data) + c * from.plane, pixels);
        }
    };
    if (!parallel_chunks(channels, some, work.poll.check(), average)) return false;
    excite(stage.gate, mean, inner, scale);
    const auto* given = static_cast<const float*>(stage.product.value);
    for (std::int64_t i = 0; i < n; ++i) {
        values[i] = given[i] * scale[columns[static_cast<std::size_t>(i)]];
    }
    return true;
}

bool Chain::run_whole(const Segment& segment, const Work& work) const {
    const Stage& stage = stages_[static_cast<std::size_t>(segment.first)];
    const Rows from = whole(stage.input, work), to = whole(segment.last, work);
    char* scratch = work.lane + scratch_;
    const InterruptCheck check = work.poll.check();
    if (stage.kind == Stage::Kind::depthwise) {
        Depthwise d = placed(stage.filters, from, to);
        d.begin = 0;
        d.end = stage.out.height;
        return depthwise(d, scratch, scratch_bytes_, check);
    }
    if (stage.kind == Stage::Kind::first) {
        return first_conv(placed(stage.first, from, to), scratch, scratch_bytes_, check);
    }
    Product p =
        product(stage, 0, stage.out.height, from, whole(stage.residual, work), to, work.lane);
    p.serial = is_brief(p);
    return multiply(p, scratch, scratch_bytes_, check);
}

}  // namespace curvkern::sparseconv
