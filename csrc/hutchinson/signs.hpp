// Signs as bits, and registers with their signs changed.
// Included by sources that are compiled once per instruction set.
#pragma once

#include "core/rng.hpp"
#include "hutchinson/hutchinson.hpp"
#include "hutchinson/storage.hpp"

namespace curvkern::hutchinson {
CURVKERN_PER_ISA {

using Words64 = VectorBits64;  // a 32-bit word of as many Philox blocks as there are lanes

// The product of the low halves, 64 bits wide.
CURVKERN_HD Words64 multiply(Words64 a, std::uint32_t b) {
#if defined(__AVX512F__)
    return (Words64)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
#elif defined(__AVX2__)
    return (Words64)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#elif defined(__x86_64__)
    return (Words64)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(b));
#else
    return (a & 0xffffffffu) * b;
#endif
}

// core/rng.hpp's philox4x32 for blocks first, first + 1, ..; upper halves of lanes are noise
// until the end, as only low halves are multiplied.
CURVKERN_HD void philox_blocks(Draw draw, std::uint64_t first, std::uint32_t* words) {
    constexpr int lanes = Lanes<VectorDouble>::width;
    Words64 index;
    for (int lane = 0; lane < lanes; ++lane) index[lane] = first + static_cast<unsigned>(lane);
    Words64 word[4] = {index, index >> 32, Words64{} + draw.step, Words64{} + draw.probe};
    auto key0 = static_cast<std::uint32_t>(draw.seed);
    auto key1 = static_cast<std::uint32_t>(draw.seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const Words64 product0 = multiply(word[0], 0xD2511F53u);
        const Words64 product1 = multiply(word[2], 0xCD9E8D57u);
        word[0] = (product1 >> 32) ^ word[1] ^ (Words64{} + key0);
        word[2] = (product0 >> 32) ^ word[3] ^ (Words64{} + key1);
        word[1] = product1;
        word[3] = product0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    for (int lane = 0; lane < lanes; ++lane) {
        for (int k = 0; k < 4; ++k)
            words[4 * lane + k] = static_cast<std::uint32_t>(word[k][lane]);
    }
}

// The bits i, i + 1, .. of `words` as the sign bits of a register; i is a multiple of its
// width.
template <class R>
CURVKERN_HD Bits<R> sign_bits(const std::uint32_t* words, std::int64_t i) {
    constexpr int width = Lanes<R>::width, top = 8 * sizeof(Scalar<R>) - 1;
    Bits<R> left;
    for (int lane = 0; lane < width; ++lane) left[lane] = static_cast<unsigned>(top - lane);
    const std::uint32_t word = words[i / 32] >> (i % 32);
    return (Bits<R>{} + word) << left >> top << top;
}

}  // namespace isa
}  // namespace curvkern::hutchinson
