// Where a chain is cut into segments, how many rows a band has, and where tensors lie.
#include <algorithm>

#include "sparseconv/chain.hpp"
#include "sparseconv/workers.hpp"

namespace curvkern::sparseconv {

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

}  // namespace curvkern::sparseconv
