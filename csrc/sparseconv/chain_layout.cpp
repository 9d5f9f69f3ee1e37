// Where a chain is cut into segments, and how many rows a band has.
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
             int threads, Limits limits, Group group)
    : stages_(std::move(stages)),
      extent_{input},
      storage_(storage),
      group_(group),
      batch_(batch),
      lanes_(std::max<std::int64_t>(
          1, std::min<std::int64_t>(threads, (batch + group.images - 1) / group.images))),
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
    place_tensors();
    place_scratch();
}

std::int64_t Chain::row_bytes(std::int64_t tensor) const {
    const Extent& e = extent_[static_cast<std::size_t>(tensor)];
    return e.channels * e.width * element_size(storage_);
}
std::int64_t Chain::tensor_bytes(std::int64_t tensor) const {
    return row_bytes(tensor) * extent_[static_cast<std::size_t>(tensor)].height;
}
std::int64_t Chain::tensor_elements(std::int64_t tensor) const {
    return tensor_bytes(tensor) / element_size(storage_);
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
        const std::int64_t end = first < group_.first ? group_.first : last;
        while (last < end && stages_[static_cast<std::size_t>(last)].input == last &&
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
