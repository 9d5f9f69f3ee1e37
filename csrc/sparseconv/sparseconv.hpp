// 1 x 1 convolutions with sparse weights on channel-major activations: Y = act(W X + b + R).
//
// E. Elsen, M. Dukhan, T. Gale, K. Simonyan, "Fast Sparse ConvNets", CVPR 2020: a strip of
// pixels stays in registers while a row of W walks its nonzeros, each of which multiplies the
// same pixels of one channel.
//
// A nonzero costs a multiply-add and a load of activations per register of pixels, so the loads
// decide, and of those a core does two a cycle from L1 only, and one where a register straddles
// two cache lines, as in rows of 49 or 196 floats. Hence:
//
// - a strip of up to `most_vectors` registers of pixels is copied to an aligned buffer, some
//   channels at a time so that they (`working_bytes`) and the streams beside them stay in L1;
// - what a row has summed over these channels waits in a scratch of aligned rows (L2) for the
//   next channels. Within a chunk the order of rows is free: they are sorted by how many
//   nonzeros they have there, so that the end of a row is never a mispredicted branch;
// - rows of images that are aligned as they are, do not fall on each other in L1, and are used
//   by few rows of W, are read where they lie;
// - columns are 16-bit numbers, beside float32 or float64 weights: 6 bytes a nonzero;
// - rows of a block of 2 or 4 rows that share their columns share loads and offsets.
//
// Every output is summed over its nonzeros by columns, one after the other, whatever the
// strips, chunks and threads: results do not depend on them.
#pragma once

#include <cstdint>

#include "core/isa.hpp"

namespace curvkern::sparseconv {

inline constexpr int most_vectors = 8;                 // registers in a strip
inline constexpr std::int64_t chunk_bytes = 52 << 10;  // of activations at a time, at most
inline constexpr int widest_register = 64;
inline constexpr std::int64_t most_step = 1 << 20;  // of strides, dilations and padding
inline constexpr int rows_ahead = 2;  // of the one that is worked on, which are prefetched

enum class Storage { float64, float32, bfloat16 };
enum class Activation { none, relu, relu6, silu, hardswish };

constexpr std::int64_t element_size(Storage storage) {
    return storage == Storage::float64 ? 8 : storage == Storage::float32 ? 4 : 2;
}

// Of what is computed in.
constexpr std::int64_t wide_size(Storage storage) {
    return storage == Storage::float64 ? 8 : 4;
}

// Rows that follow each other and have as many entries each.
struct Run {
    std::int32_t rows, entries;
};

// The nonzeros of some rows in some channels. A row stands for `height` rows of W, and an entry
// for as many values.
struct Piece {
    const Run* run;
    std::int64_t runs;
    const std::int32_t* row;       // and rows_ahead more
    const std::uint16_t* channel;  // of those that are worked on
    const void* value;             // float64 or, for both other storages, float32
};

// Where a strip of pixels goes. Rows are so many elements apart, of `out` and of `residual`.
struct Target {
    void* out;
    const void* bias;      // an element a row, or null
    const void* residual;  // or null
    std::int64_t row_size, residual_row_size, count;
    Activation activation;
};

// What is compiled once per instruction set; arrays are indexed by storage.
struct Kernels {
    int register_bytes;
    // `count` elements of each of `rows` rows, `stride` apart, widened, to rows `pitch` bytes
    // apart, and zeros up to a whole register
    void (*pack[3])(const void* x, std::int64_t stride, std::int64_t rows, std::int64_t count,
                    std::int64_t pitch, void* packed);
    // that many bytes of each of `rows` rows will soon be read
    void (*expect)(const void* x, std::int64_t stride, std::int64_t rows, std::int64_t bytes);
    // sums (+)= W x, or, with a target, the result; whole registers of x at aligned addresses,
    // channels `stride` bytes apart. Indexed by float64 and float32, the height
    // (1, 2 or 4) and the number of registers less one.
    void (*multiply[2][3][most_vectors])(const Piece& piece, const void* x, std::int64_t stride,
                                         void* sums, std::int64_t pitch, bool first,
                                         const Target* target);
    // sums to their target
    void (*finish[3])(const void* sums, std::int64_t pitch, std::int64_t rows,
                      const Target& target);
    // to[i] = from[source[i]], widened
    void (*gather[3])(const void* from, const std::uint32_t* source, std::int64_t n, void* to);
    // to[source[i]] = from[i], rounded
    void (*scatter[3])(const void* from, const std::uint32_t* source, std::int64_t n, void* to);
    // values of W at the entries of a piece: += sums over pixels of g x, x packed
    void (*correlate[2])(const Piece& piece, const void* packed, const void* g,
                         std::int64_t pitch, int vectors, void* sums);
};

#define CURVKERN_DECLARE(isa) \
    namespace isa {           \
    const Kernels& kernels(); \
    }
CURVKERN_FOR_EACH_ISA(CURVKERN_DECLARE)
#undef CURVKERN_DECLARE

inline const Kernels& table() {
    return CURVKERN_SELECT_ISA(sparseconv::, ::kernels());
}

}  // namespace curvkern::sparseconv
