// One step of AdaHessian and its relatives for all tensors of all groups, and the probes that
// it is made of. AdaHessian:
//
//     D = z * hz,   Ds = mean of |D| (or of D) over a block,   m = b1 m + (1 - b1) g,
//     v = b2 v + (1 - b2) Ds^2,
//     p -= lr (m / (1 - b1^t) / ((sqrt(v) / sqrt(1 - b2^s))^k + eps) + wd p)
//
// (Yao, Gholami, Shen, Mustafa, Keutzer, Mahoney, "ADAHESSIAN: An Adaptive Second Order
// Optimizer for Machine Learning", AAAI 2021, algorithm 1.) update "atan2" has atan2(m / (1 -
// b1^t), (sqrt(v) / sqrt(1 - b2^s))^k) in place of the quotient, and no eps.
//
// The fewest bytes of a float32 parameter are 32: p, m and v are read and written, g and hz are
// read. The loops move 32, and 4 more only where the mean runs over a block longer than a
// tile; plain PyTorch, an operation after the other, moves about 160.
//
// A sign is a bit: that of element i of parameter space is bit i mod 128 of the Philox block
// with key = seed and counter = (i / 128, i / 128 >> 32, step, probe), 1 for -1. It depends on
// nothing else: neither on threads, nor on how parameters are sharded, nor on what is fused.
// Signs live on the stack, 4096 at a time.
//
// Sophia moves 32 bytes as well where the curvature is new, else 24. OASIS and SANIA choose one
// step length for all parameters, so they pass twice: 28 and 24 bytes, or 16 and 16.
//
// Tensors are cut into tiles that depend on their sizes and blocks alone, and a mean is within
// a tile or a sum of tiles in their order: no result depends on the number of threads.
#pragma once

#include <cstdint>

#include "core/isa.hpp"

namespace curvkern::hutchinson {

inline constexpr std::int64_t tile = 4096;  // elements that a thread takes at least
// Means over shorter blocks than this never leave registers.
inline constexpr std::int64_t short_block = 64;

// How parameters, gradients and products are stored; the state of bfloat16 is float32, which is
// then also what is computed in.
enum class Storage { float64, float32, bfloat16 };

constexpr std::int64_t element_size(Storage storage) {
    return storage == Storage::float64 ? 8 : storage == Storage::float32 ? 4 : 2;
}
constexpr Storage state_storage(Storage storage) {
    return storage == Storage::float64 ? Storage::float64 : Storage::float32;
}

// Which signs: those of parameter space from a flat offset on.
struct Draw {
    std::uint64_t seed;
    std::uint32_t step, probe;
};

// What a step does with D. The formulas stand in rules.hpp.
enum class Rule {
    adahessian,  // state m, v, the last Ds
    sophia,      // state m, h
    metric,      // state D, the last p, the last g: averages D and sums, moves nothing
    descent,     // the same state: moves
};
inline constexpr int rules = 4;

// The numbers of a group, and what a step makes of them. A rule reads those that it names.
struct Factors {
    double beta1, rest1;  // and 1 - beta1
    double beta2, rest2;
    double eps, power, gamma, alpha;
    double decay;         // 1 - lr wd
    double rate;          // lr / (1 - b1^t); lr itself for atan2 and the other rules
    double inverse_bias;  // 1 / (1 - b1^t)
    double root;          // 1 / sqrt(1 - b2^s)
    double scale;         // what g is to be multiplied with: 1 or -1 over the scale of the loss
    double weight;        // what z hz is to be multiplied with
    bool atan2;
    bool known;  // there are a last p and a last g
};

struct Leaf {
    void* p;
    const void* g;
    const void* const* hz;  // one per probe; null: no new products
    const void* const* z;   // likewise; null: drawn, or not needed
    void* state[3];         // of AdaHessian the last may be null; it is written with new
                            // products, else read in their place. So may those of a metric.
    std::int64_t size, block, offset;
    Storage storage;
    bool is_signed;  // the mean is of D, not of |D|
    Factors factors;
};

struct Step {
    Rule rule;
    Leaf* leaf;
    std::int64_t leaves;
    std::int64_t probes;
    bool draws;  // signs where no z is given; else hz is D already
    std::uint64_t seed;
    std::uint32_t step;
    std::uint32_t probe;  // the first
    double* sums;         // of a metric: B dw^2, dg^2 / B, g^2 / B
};
inline constexpr int sums = 3;

// Whether D needs the signs of probes.
constexpr bool needs_signs(const Step& step, const Leaf& leaf) {
    return step.rule != Rule::adahessian || step.probes > 1 ||
           (leaf.is_signed && leaf.block > 1);
}

void run(const Step& step);

// out = signs from offset on
void signs(void* out, Storage storage, std::int64_t size, std::int64_t offset, Draw draw);

// The count-th probe of a mean of D = z hz and, where square is given, of the sum of squared
// deviations from it (Welford). Both are of the state's storage.
struct Moments {
    void *mean, *square;
    const void *hz, *z;
    std::int64_t size, offset, count;
    Storage storage;
};
void accumulate(const Moments& moments, Draw draw);

bool is_finite(const void* x, Storage storage, std::int64_t size);

// What is compiled once per instruction set. `words` hold a sign a bit; a tile's D is in the
// type of the state. Arrays are indexed by storage.
struct Kernels {
    // the blocks first, first + 1, ..
    void (*philox)(Draw draw, std::uint64_t first, std::int64_t blocks, std::uint32_t* words);
    void (*signs[3])(const std::uint32_t* words, std::int64_t size, void* out);
    // D (+)= weight z hz, with z given, from words, or 1
    void (*product[3])(const void* hz, const void* z, const std::uint32_t* words,
                       std::int64_t size, double weight, bool adds, void* D);
    // the means of blocks, the last of which may be shorter, for each of their elements
    void (*means[2])(const void* D, std::int64_t size, std::int64_t block, bool is_signed,
                     void* to);
    double (*total[2])(const void* D, std::int64_t size, bool is_signed);
    // to = |from| scale, and to = value
    void (*magnitudes[2])(const void* from, std::int64_t size, double scale, void* to);
    void (*constant[2])(double value, std::int64_t size, void* to);
    // A tile of each rule. D null: there is none; else it is to be multiplied with D_scale. A
    // metric adds to `totals`.
    void (*move[rules][3])(void* p, const void* g, const void* D, double D_scale,
                           void* const* state, std::int64_t size, const Factors& factors,
                           double* totals);
    // AdaHessian's, with means of D over blocks shorter than short_block
    void (*move_by_means[3])(void* p, const void* g, const void* D, double D_scale,
                             void* const* state, std::int64_t size, std::int64_t block,
                             bool is_signed, const Factors& factors);
    void (*moments[3])(const void* hz, const void* z, const std::uint32_t* words,
                       std::int64_t size, std::int64_t count, void* mean, void* square);
    bool (*finite[3])(const void* x, std::int64_t size);
};

#define CURVKERN_DECLARE(isa) \
    namespace isa {           \
    const Kernels& kernels(); \
    }
CURVKERN_FOR_EACH_ISA(CURVKERN_DECLARE)
#undef CURVKERN_DECLARE

}  // namespace curvkern::hutchinson
