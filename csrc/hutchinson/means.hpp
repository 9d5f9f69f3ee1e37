// Means over short blocks of consecutive elements, as many at a time as a register has lanes.
// Included by sources that are compiled once per instruction set.
#pragma once

#include <type_traits>

#include "hutchinson/storage.hpp"

namespace curvkern::hutchinson {
CURVKERN_PER_ISA {

// Asks for what lies further on: five streams in tiles are more than the hardware's prefetchers
// keep apart, and a step took 1.05 to 1.1 times as long without, a page ahead no less.
template <class T>
CURVKERN_HD void ahead(const T* x) {
    __builtin_prefetch(reinterpret_cast<const char*>(x) + 1024);
}

// Lanes whose number has bit h set are of b, the others of a; and to each is added the lane
// whose number differs in that bit.
template <int h, class R>
CURVKERN_HD R folded(R a, R b) {
    constexpr int width = Lanes<R>::width;
    Bits<R> own, other;
    for (int lane = 0; lane < width; ++lane) {
        const int from = lane & h ? width : 0;
        own[lane] = static_cast<unsigned>(from + lane);
        other[lane] = static_cast<unsigned>(from + (lane ^ h));
    }
    return __builtin_shuffle(a, b, own) + __builtin_shuffle(a, b, other);
}

// Lane l becomes the sum of the lanes of x[l].
template <int h, class R>
CURVKERN_HD R lane_sums(R* x) {
    if constexpr (h == 0) {
        return x[0];
    } else {
        for (int j = 0; j < h; ++j) x[j] = folded<h>(x[j], x[j + h]);
        return lane_sums<h / 2>(x);
    }
}

// `width` blocks fill `block` registers. Sums are in the type of the elements.
template <class R>
class BlockMeans {
    static constexpr int width = Lanes<R>::width;

  public:
    CURVKERN_HD BlockMeans(std::int64_t block, bool is_signed)
        : block_(block), registers_((block + width - 1) / width) {
        all_ = ~Bits<R>{} >> (is_signed ? 0 : 1);
        last_ = all_;
        for (int lane = 0; lane < width; ++lane) {
            if ((registers_ - 1) * width + lane >= block) last_[lane] = 0;
        }
        share_ = c<R>(1 / static_cast<double>(block));
        R middle;  // of an element: products with 1 / block stay 1 / 128 off integers
        for (int lane = 0; lane < width; ++lane) middle[lane] = lane + Scalar<R>(0.5);
        for (std::int64_t k = 0; k < block; ++k) {
            lane_of_[k] = __builtin_convertvector(middle * share_, Integers);
            middle += c<R>(width);
        }
    }
    // Lane l is the mean of block l. A block is read by whole registers, of the last of which
    // lanes beyond its end are masked; so are signs. Reads `width` elements further.
    template <class T>
    CURVKERN_HD R of(const T* x) const {
        R sums[width];
        CURVKERN_UNROLL
        for (int lane = 0; lane < width; ++lane) {
            const T* from = x + lane * block_;
            ahead(from);
            R sum = from_bits<R>(bits(load<R>(from + (registers_ - 1) * width)) & last_);
            for (std::int64_t k = 0; k + 1 < registers_; ++k) {
                sum += from_bits<R>(bits(load<R>(from + k * width)) & all_);
            }
            sums[lane] = sum;
        }
        return lane_sums<width / 2>(sums) * share_;
    }
    // The k-th register of the blocks, with the mean of its block in each lane.
    CURVKERN_HD R spread(R mean, std::int64_t k) const {
        return __builtin_shuffle(mean, lane_of_[k]);
    }

  private:
    std::int64_t block_, registers_;
    Bits<R> all_, last_;
    R share_;
    using Integers __attribute__((vector_size(register_bytes))) =
        std::conditional_t<is_double<R>, std::int64_t, std::int32_t>;
    Integers lane_of_[short_block];
};

template <class T>
CURVKERN_HD double sum(const T* x, std::int64_t size, bool is_signed) {
    double total = 0;
    if (size < 32) {
        for (std::int64_t i = 0; i < size; ++i)
            total += is_signed ? x[i] : __builtin_fabs(x[i]);
    } else if (is_signed) {
#pragma omp simd reduction(+ : total)
        for (std::int64_t i = 0; i < size; ++i) total += x[i];
    } else {
#pragma omp simd reduction(+ : total)
        for (std::int64_t i = 0; i < size; ++i) total += __builtin_fabs(x[i]);
    }
    return total;
}

// The mean of its block for each element; the last block may be shorter. Reads and writes stay
// within `size`.
template <class R, class T>
void block_means(const T* x, std::int64_t size, std::int64_t block, bool is_signed, T* to) {
    constexpr int width = Lanes<R>::width;
    std::int64_t begin = 0;
    if (block < short_block) {
        const BlockMeans<R> blocks(block, is_signed);
        for (; begin + width * block + width <= size; begin += width * block) {
            const R mean = blocks.of(x + begin);
            for (std::int64_t k = 0; k < block; ++k) {
                store(to + begin + k * width, blocks.spread(mean, k));
            }
        }
    }
    for (; begin < size; begin += block) {
        const std::int64_t some = size - begin < block ? size - begin : block;
        const auto mean =
            static_cast<T>(sum(x + begin, some, is_signed) / static_cast<double>(some));
        for (std::int64_t i = 0; i < some; ++i) to[begin + i] = mean;
    }
}

}  // namespace isa
}  // namespace curvkern::hutchinson
