// Elements of tensors as the threads of a GPU read and write them, and their signs.
#pragma once

#include "core/block.hpp"
#include "core/element.hpp"
#include "core/rng.hpp"
#include "hutchinson/hutchinson.hpp"

namespace curvkern::hutchinson::device {
CURVKERN_PER_ISA {

template <class S>
struct StateOf {
    using Type = float;
};
template <>
struct StateOf<double> {
    using Type = double;
};
template <class S>
using State = typename StateOf<S>::Type;

// W elements, which one load brings.
template <class S, int W>
struct alignas(sizeof(S) * W) [[gnu::may_alias]] Pack {
    S value[W];
};

// W numbers of a thread.
template <class T, int W>
struct Numbers {
    T value[W] = {};
    CURVKERN_HD T& operator[](int i) { return value[i]; }
    CURVKERN_HD T operator[](int i) const { return value[i]; }
};

// The first `count` of W elements; the rest is zero.
template <int W, class S>
CURVKERN_HD Numbers<State<S>, W> load(const S* from, int count) {
    Numbers<State<S>, W> y;
    if (count >= W) {
        const auto pack = *reinterpret_cast<const Pack<S, W>*>(from);
        CURVKERN_IN_REGISTERS
        for (int j = 0; j < W; ++j) y[j] = widened(pack.value[j]);
    } else {
        CURVKERN_IN_REGISTERS
        for (int j = 0; j < W; ++j) {
            if (j < count) y[j] = widened(from[j]);
        }
    }
    return y;
}

template <int W, class S>
CURVKERN_HD void store(S* to, const Numbers<State<S>, W>& x, int count) {
    if (count >= W) {
        Pack<S, W> pack;
        CURVKERN_IN_REGISTERS
        for (int j = 0; j < W; ++j) round_to(x[j], &pack.value[j]);
        *reinterpret_cast<Pack<S, W>*>(to) = pack;
    } else {
        CURVKERN_IN_REGISTERS
        for (int j = 0; j < W; ++j) {
            if (j < count) round_to(x[j], to + j);
        }
    }
}

// The signs of neighbouring elements: their Philox block stays in registers. To draw it for
// four elements alone is 100 operations, a sixth of what a H100 has time for while memory
// brings their 128 bytes.
class Signs {
  public:
    CURVKERN_HD Signs(std::uint64_t seed, std::uint32_t step, std::uint32_t probe)
        : key_{{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)}},
          step_(step),
          probe_(probe) {}

    CURVKERN_HD bool is_minus(std::uint64_t element) {
        const std::uint64_t block = element / 128;
        if (block != drawn_) {
            drawn_ = block;
            bits_ = philox4x32({{static_cast<std::uint32_t>(block),
                                 static_cast<std::uint32_t>(block >> 32), step_, probe_}},
                               key_);
        }
        const auto bit = static_cast<unsigned>(element % 128);
        const std::uint32_t low = bit & 32 ? bits_.word[1] : bits_.word[0];
        const std::uint32_t high = bit & 32 ? bits_.word[3] : bits_.word[2];
        return ((bit & 64 ? high : low) >> (bit % 32) & 1) != 0;
    }

  private:
    PhiloxKey key_;
    std::uint32_t step_, probe_;
    std::uint64_t drawn_ = ~std::uint64_t{0};  // no block has this number
    PhiloxCounter bits_{};
};

}  // namespace isa
}  // namespace curvkern::hutchinson::device
