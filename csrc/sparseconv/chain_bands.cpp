#include "sparseconv/chain_bands.hpp"

#include <algorithm>
#include <cstring>

#include "sparseconv/workers.hpp"

namespace curvkern::sparseconv {

Chain::Bands::Bands(const Chain& chain, const Segment& segment, std::int64_t begin,
                    std::int64_t end, char* memory, const Work& work)
    : chain_(chain), segment_(segment), work_(work), end_(end), memory_(memory) {
    const auto count = static_cast<std::size_t>(segment.last - segment.first);
    rows_.resize(count + 1);
    done_.resize(count);
    until_.resize(count);
    padded_.resize(count);
    std::vector<std::int64_t> held;
    chain.capacity(segment, segment.rows, held);
    rows_[0] = chain.whole(stage(0).input, work);
    rows_[count] = chain.whole(segment.last, work);
    done_[count - 1] = begin;
    for (std::size_t i = count - 1; i > 0; --i) {
        done_[i - 1] = chain.first_row(stage(i), done_[i]);
        const Extent& e = stage(i - 1).out;
        rows_[i] = {memory_, done_[i - 1], held[i - 1] * e.width};
        memory_ += whole_lines(e.channels * rows_[i].plane * element_size(chain.storage_));
    }
    for (std::size_t i = 0; i < count; ++i) {
        if (stage(i).kind == Stage::Kind::pointwise) continue;
        padded_[i] = memory_;
        std::memset(memory_, 0, static_cast<std::size_t>(stage_scratch(stage(i))));
        memory_ += stage_scratch(stage(i));
    }
}

bool Chain::Bands::next() {
    const std::size_t last = done_.size() - 1;
    if (done_[last] >= end_) return false;
    until_[last] = std::min(done_[last] + segment_.rows, end_);
    for (std::size_t i = last; i > 0; --i) {
        until_[i - 1] = std::max(done_[i - 1], chain_.end_row(stage(i), until_[i]));
        keep(i);
    }
    for (std::size_t i = 0; i <= last; ++i) {
        if (until_[i] <= done_[i]) continue;
        compute(i);
        done_[i] = until_[i];
    }
    return true;
}

// What a stage needs of the rows that are there moves to the head of its buffer.
void Chain::Bands::keep(std::size_t i) {
    Rows& rows = rows_[i];
    const std::int64_t element = element_size(chain_.storage_);
    const std::int64_t first = chain_.first_row(stage(i), done_[i]);
    const std::int64_t width = stage(i - 1).out.width * element;
    const std::int64_t kept = std::max<std::int64_t>(0, done_[i - 1] - first) * width;
    if (kept > 0 && first > rows.row) {
        char* plane = rows.data;
        const std::int64_t shift = (first - rows.row) * width;
        for (std::int64_t c = 0; c < stage(i - 1).out.channels; ++c) {
            std::memmove(plane, plane + shift, static_cast<std::size_t>(kept));
            plane += rows.plane * element;
        }
    }
    rows.row = std::max(rows.row, first);
    done_[i - 1] = std::max(done_[i - 1], first);
}

void Chain::Bands::compute(std::size_t i) {
    const Stage& it = stage(i);
    if (it.kind == Stage::Kind::depthwise) {
        Depthwise d = placed(it.filters, rows_[i], rows_[i + 1]);
        d.begin = done_[i];
        d.end = until_[i];
        return depthwise_planes(d, 0, it.out.channels, padded_[i]);
    }
    if (it.kind == Stage::Kind::first) {
        const FirstConv f = placed(it.first, rows_[i], rows_[i + 1]);
        const auto number = static_cast<std::size_t>(segment_.first) + i;
        char* packed = aligned(const_cast<char*>(chain_.packed_[number].data()));
        const std::int64_t some = first_bands(f).rows;  // as many as its buffer holds
        for (std::int64_t row = done_[i]; row < until_[i]; row += some) {
            first_rows(f, packed, 0, row, std::min(row + some, until_[i]), padded_[i]);
        }
        return;
    }
    Product p = chain_.product(it, done_[i], until_[i], rows_[i],
                               chain_.whole(it.residual, work_), rows_[i + 1], work_.lane);
    p.serial = true;
    multiply(p, memory_, 0, nullptr);
}

}  // namespace curvkern::sparseconv
