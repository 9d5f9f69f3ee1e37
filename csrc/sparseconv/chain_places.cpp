// Where the tensors of a chain lie in the memory of a lane, and what its stages work in.
#include <algorithm>

#include "sparseconv/chain.hpp"
#include "sparseconv/workers.hpp"

namespace curvkern::sparseconv {
namespace {

// Parts of a lane that are needed from one time to another, both included; by offset.
struct Held {
    std::int64_t offset, bytes, begin, end;
};
// As low as those allow that are needed at the same time.
std::int64_t reserve(std::vector<Held>& held, std::int64_t bytes, std::int64_t begin,
                     std::int64_t end) {
    end = std::max(begin, end);  // what nothing takes
    std::int64_t offset = 0;
    for (const Held& h : held) {
        if (h.end < begin || h.begin > end) continue;
        if (h.offset >= offset + bytes) break;
        offset = std::max(offset, h.offset + h.bytes);
    }
    const auto at = std::find_if(held.begin(), held.end(),
                                 [=](const Held& h) { return h.offset > offset; });
    held.insert(at, {offset, bytes, begin, end});
    return offset;
}

// What a stage of a group works in.
std::int64_t group_scratch(const Stage& stage, std::int64_t images) {
    if (stage.kind == Stage::Kind::pointwise) return stage_scratch(stage);
    Depthwise d = stage.filters;
    d.images = images;
    return interleaved_scratch(d);
}

}  // namespace

// Where tensors that are kept as a whole lie. Segments follow each other in time; after those
// that take an image alone, all that a group takes of them is interleaved.
void Chain::place_tensors() {
    const std::size_t count = extent_.size();
    const auto alone = std::count_if(segments_.begin(), segments_.end(),
                                     [&](const Segment& segment) { return !grouped(segment); });
    std::vector<std::int64_t> made(count, -1), last_use(count, -1);
    std::int64_t time = 0;
    for (const Segment& segment : segments_) {
        if (time == alone) ++time;
        for (std::int64_t i = segment.first; i < segment.last; ++i) {
            const Stage& stage = stages_[static_cast<std::size_t>(i)];
            for (const int tensor : {stage.input, stage.residual}) {
                if (tensor >= 0) last_use[static_cast<std::size_t>(tensor)] = time;
            }
        }
        made[static_cast<std::size_t>(segment.last)] = time++;
    }
    last_use.back() = time;

    offset_.assign(count, -1);
    slot_.assign(count, 0);
    interleaved_.assign(count, -1);
    std::vector<Held> held;
    for (std::size_t t = 0; t < count; ++t) {
        const std::int64_t bytes = tensor_bytes(static_cast<std::int64_t>(t));
        const bool of_group = static_cast<std::int64_t>(t) > group_.first;
        const bool crosses = !of_group && last_use[t] > alone;
        if (crosses && t > 0) {
            slot_[t] = whole_lines(bytes);
            offset_[t] = reserve(held, group_.images * slot_[t], 0, alone);
        } else if (made[t] >= 0 && !of_group && t + 1 < count) {
            offset_[t] = reserve(held, whole_lines(bytes), made[t], last_use[t]);
        }
        if (!crosses && !of_group) continue;
        interleaved_[t] = reserve(held, whole_lines(group_.images * bytes),
                                  crosses ? alone : made[t], last_use[t]);
    }
    for (const Held& h : held) scratch_ = std::max(scratch_, h.offset + h.bytes);
}

void Chain::place_scratch() {
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
        if (grouped(segment)) {
            scratch_bytes_ = std::max(scratch_bytes_, group_scratch(stage, group_.images));
            continue;
        }
        std::int64_t bytes = threads_ * stage_scratch(stage) + 64;
        if (stage.kind == Stage::Kind::first) bytes += first_packed_bytes(stage.first);
        scratch_bytes_ = std::max(scratch_bytes_, bytes);
    }
    scratch_bytes_ = whole_lines(scratch_bytes_);
    band_ = scratch_ + scratch_bytes_;
    lane_bytes_ = band_ + threads_ * band_bytes_;
}

}  // namespace curvkern::sparseconv
