// Philox4x32-10, a counter-based random number generator.
//
// Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011), section
// 3.3: ten rounds of two 32 x 32 -> 64 bit products. Block i of a stream is a function of
// (key, i) alone, so host, device and any number of threads draw the same numbers.
#pragma once

#include <cstdint>

#include "core/hd.hpp"

namespace curvkern {
CURVKERN_PER_ISA {

struct PhiloxCounter {
    std::uint32_t word[4];
};

struct PhiloxKey {
    std::uint32_t word[2];
};

CURVKERN_HD PhiloxCounter philox4x32(PhiloxCounter counter, PhiloxKey key) {
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t product0 = std::uint64_t{0xD2511F53u} * counter.word[0];
        const std::uint64_t product1 = std::uint64_t{0xCD9E8D57u} * counter.word[2];
        const auto high0 = static_cast<std::uint32_t>(product0 >> 32);
        const auto high1 = static_cast<std::uint32_t>(product1 >> 32);
        const auto low0 = static_cast<std::uint32_t>(product0);
        const auto low1 = static_cast<std::uint32_t>(product1);
        counter = {{high1 ^ counter.word[1] ^ key.word[0], low1,
                    high0 ^ counter.word[3] ^ key.word[1], low0}};
        key.word[0] += 0x9E3779B9u;  // golden ratio
        key.word[1] += 0xBB67AE85u;  // sqrt(3) - 1
    }
    return counter;
}

}  // namespace isa
}  // namespace curvkern
