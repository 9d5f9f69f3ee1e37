// Depthwise convolutions of images that lie interleaved, the values of a pixel side by side.
// Compiled once per instruction set.
//
// A register has a pixel of as many images as it has lanes: small planes, whose rows would
// leave most of a register empty, fill it. A plane is copied to a buffer with its padding,
// which leaves no edges. Taps are summed in the order in which planes one by one are: the bits
// are the same.
#pragma once

#include "sparseconv/activation.hpp"
#include "sparseconv/depthwise.hpp"

namespace curvkern::sparseconv {
CURVKERN_PER_ISA {

// Tap t of those that are summed one after the other: by columns of the filter where planes
// one by one are (depthwise_direct.hpp).
template <class S, int K>
constexpr int tap_at(int t) {
    return t;
}
#if defined(__AVX512F__)
template <>
constexpr int tap_at<float, 3>(int t) {
    return t % 3 * 3 + t / 3;
}
template <>
constexpr int tap_at<float, 5>(int t) {
    return t % 5 * 5 + t / 5;
}
#endif

// The plane of x in the middle of a buffer of so many registers a pixel and columns a row.
template <class S>
CURVKERN_HD void copy_plane(const Depthwise& d, const S* x, std::int64_t registers,
                            const PaddedPlane& padded, Register<S>* buffer) {
    const auto end = [](std::int64_t n, std::int64_t before, std::int64_t room) {
        return n + before < room ? n : room - before;
    };
    const std::int64_t rows = end(d.height, d.top, padded.rows);
    const std::int64_t columns = end(d.width, d.left, padded.columns);
    for (std::int64_t i = 0; i < rows; ++i) {
        const S* from = x + i * d.width * d.images;
        Register<S>* to = buffer + ((i + d.top) * padded.columns + d.left) * registers;
        for (std::int64_t j = 0; j < columns; ++j, from += d.images) {
            for_lanes<S>(d.images, [&](std::int64_t image, std::int64_t some) {
                *to++ = load(from + image, some);
            });
        }
    }
}

// A filter of K x K taps, stride T.
template <class S, int K, int T>
void interleaved(const Depthwise& d, std::int64_t filter, void* memory) {
    using R = Register<S>;
    const PaddedPlane padded = padded_plane(d);
    const std::int64_t registers = (d.images + lanes_of<S> - 1) / lanes_of<S>;
    const S* x =
        static_cast<const S*>(d.x) + filter / d.multiplier * d.height * d.width * d.images;
    const S* weight = static_cast<const S*>(d.weight) + filter * K * K;
    S* y = static_cast<S*>(d.y) + filter * d.out_height * d.out_width * d.images;
    auto* buffer = static_cast<R*>(memory);
    copy_plane<S>(d, x, registers, padded, buffer);
    const R bias = d.bias == nullptr ? R{} : spread(static_cast<const S*>(d.bias) + filter);
    R tap[K * K];
    CURVKERN_UNROLL
    for (int t = 0; t < K * K; ++t) tap[t] = spread(weight + t);
    for (std::int64_t i = 0; i < d.out_height; ++i) {
        for (std::int64_t j = 0; j < d.out_width; ++j, y += d.images) {
            const R* from = buffer + (i * padded.columns + j) * T * registers;
            for_lanes<S>(d.images, [&](std::int64_t image, std::int64_t some) {
                R z[1] = {bias};
                CURVKERN_UNROLL
                for (int t = 0; t < K * K; ++t) {
                    const int u = tap_at<S, K>(t) / K, v = tap_at<S, K>(t) % K;
                    z[0] += tap[tap_at<S, K>(t)] * from[(u * padded.columns + v) * registers];
                }
                if (d.activation != Activation::none) activate(z, d.activation);
                store(y + image, z[0], some);
                ++from;
            });
        }
    }
}

}  // namespace isa
}  // namespace curvkern::sparseconv
