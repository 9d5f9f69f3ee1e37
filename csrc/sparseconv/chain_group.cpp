// Stages that take all images of a group at once, which lie interleaved.
#include <algorithm>

#include "sparseconv/chain.hpp"

namespace curvkern::sparseconv {
namespace {

// visit(image, i) for all, some elements of an image after the other's: both sides of a copy
// are then lines of memory that stay in L1.
template <class Visit>
void for_tiles(std::int64_t images, std::int64_t elements, Visit visit) {
    constexpr std::int64_t tile = 16;
    for (std::int64_t begin = 0; begin < elements; begin += tile) {
        const std::int64_t end = std::min(begin + tile, elements);
        for (std::int64_t image = 0; image < images; ++image) {
            for (std::int64_t i = begin; i < end; ++i) visit(image, i);
        }
    }
}

// Images whose first elements are `apart` bytes apart, and the same interleaved.
template <class T>
void interleave(const char* from, std::int64_t apart, std::int64_t images,
                std::int64_t elements, T* to) {
    for_tiles(images, elements, [=](std::int64_t image, std::int64_t i) {
        to[i * images + image] = reinterpret_cast<const T*>(from + image * apart)[i];
    });
}
template <class T>
void separate(const T* from, std::int64_t images, std::int64_t elements, T* to) {
    for_tiles(images, elements, [=](std::int64_t image, std::int64_t i) {
        to[image * elements + i] = from[i * images + image];
    });
}

// call(pointer to an unsigned integer as wide as an element)
template <class Call>
void by_size(Storage storage, char* data, Call call) {
    switch (element_size(storage)) {
        case 2:
            return call(reinterpret_cast<std::uint16_t*>(data));
        case 4:
            return call(reinterpret_cast<std::uint32_t*>(data));
        default:
            return call(reinterpret_cast<std::uint64_t*>(data));
    }
}

}  // namespace

void Chain::gather(const Work& work, std::int64_t images) const {
    for (std::size_t t = 0; t <= static_cast<std::size_t>(group_.first); ++t) {
        if (interleaved_[t] < 0) continue;
        const auto tensor = static_cast<std::int64_t>(t);
        const char* from = whole(tensor, work).data;
        const std::int64_t apart = t == 0 ? tensor_bytes(0) : slot_[t];
        by_size(storage_, work.lane + interleaved_[t], [&](auto* to) {
            interleave(from, apart, images, tensor_elements(tensor), to);
        });
    }
}

void Chain::run_interleaved(std::int64_t number, char* lane, std::int64_t images) const {
    const Stage& stage = stages_[static_cast<std::size_t>(number)];
    // A tensor as that of one image.
    const auto at = [&](std::int64_t tensor) -> Rows {
        if (tensor < 0) return {nullptr, 0, 0};
        const auto t = static_cast<std::size_t>(tensor);
        return {lane + interleaved_[t], 0, extent_[t].height * extent_[t].width * images};
    };
    const Rows from = at(stage.input), to = at(number + 1);
    if (stage.kind == Stage::Kind::depthwise) {
        Depthwise d = placed(stage.filters, from, to);
        d.images = images;
        return depthwise_interleaved(d, lane + scratch_);
    }
    Product p = product(stage, 0, stage.out.height, from, at(stage.residual), to, lane);
    p.pixels *= images;
    p.serial = true;
    multiply(p, lane + scratch_, 0, nullptr);
}

void Chain::scatter(const Work& work, std::int64_t images) const {
    const auto last = static_cast<std::int64_t>(stages_.size());
    char* from = work.lane + interleaved_.back();
    by_size(storage_, from, [&]<class T>(T* data) {
        separate(data, images, tensor_elements(last), reinterpret_cast<T*>(work.y));
    });
}

}  // namespace curvkern::sparseconv
