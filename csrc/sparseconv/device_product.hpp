// Products with a sparse matrix on channel-major images: Y = act(W X + b + R).
//
// A subwarp of `lanes` threads takes a row, or up to eight of a row of blocks, and a tile of
// pixels, some neighbouring ones a thread: the 1-D tiling of T. Gale, M. Zaharia, C. Young,
// E. Elsen, "Sparse GPU Kernels for Deep Learning", SC 2020, on an image in place of a matrix.
// Pixels are numbered through the batch, so that of 7 x 7 images the last lanes alone are idle.
//
// - Four values and four columns of a row come with a load each: the row begins at the multiple
//   of four below its offset, and what belongs to its neighbours is passed over, not multiplied
//   by zero, which an infinity would make NaN. All lanes load from the same address, which
//   costs no more than shared memory would and needs no barrier; the next four are under way
//   while these are multiplied. Where a load would reach beyond the last value there are single
//   ones.
// - Rows are taken by falling length, so that those of a warp and of a block end together.
// - Blocks of one tile of pixels follow each other: all rows find its channels in the caches.
// - Rows of a block of r x c share activations: c loads serve r c multiply-adds of each pixel.
//
// Every output is the sum over its nonzeros by columns, one after the other, by one thread:
// results depend on nothing else.
//
// Predictions, for an H100 (132 multiprocessors at 1.7 GHz, each with 128 float32 multiply-adds
// and 128 bytes of L1 a clock; 3 TB/s); nothing here has been timed:
// - Rows in float32, four pixels a load: a nonzero costs a warp 512 bytes, 4 clocks of L1, for
//   128 multiply-adds that take one, and 9 instructions, 2.3 clocks. A quarter of the
//   arithmetic at most, then: 14 TFLOP/s. In bfloat16 half of the bytes but 11 instructions: 20
//   TFLOP/s.
// - Blocks of 2 x 1: half of the arithmetic; of 4 x 1 and taller: nearly all, 45 TFLOP/s.
// - Single pixels (7 x 7 images, odd sizes): 5 instructions for 32 multiply-adds, an eighth.
// - By their registers 4 blocks of 8 warps are on a multiprocessor for rows, 3 and 2 for blocks
//   of up to 4 and 8 rows, without spills (ptxas, sm_75 to sm_90); a warp has 2 KB under way.
// - Memory: x and y once while a tile's channels stay in L2 (50 MB), and 8 bytes a nonzero. 512
//   to 512 channels at 14 x 14, batch 32, 90 % zeros: 26 MB, 9 us; 0.33 GFLOP, 23 us.
// - Where dense wins: without TF32 it does 45 TFLOP/s, so that product takes 73 us, 3 times as
//   long. On tensor cores TF32 does 400 and bfloat16 800: it is then bound by memory, 9 us, and
//   quicker than this. Where arithmetic decides, unstructured rows need 96 % zeros to reach
//   TF32 and 98 % to reach bfloat16, blocks of 4 x 1 89 % and 94 %.
#pragma once

#include "sparseconv/device_element.hpp"

namespace curvkern::sparseconv::device {
CURVKERN_PER_ISA {

// Which pixels and which row a thread has: N pixels from a multiple of N on.
template <int N>
struct Tiling {
    std::int64_t pixels, total;  // of an image, of all
    std::int64_t slots, groups;  // rows, or parts of rows of blocks; how many blocks they take
    int lanes;

    Tiling(const Product& p, std::int64_t rows, int threads)
        : pixels(p.pixels), total(p.batch * p.pixels), slots(rows), lanes(int(p.lanes)) {
        groups = divided(slots, threads / lanes);
    }
    std::int64_t blocks() const { return groups * divided(total, std::int64_t{N} * lanes); }

    struct Place {
        std::int64_t slot, image, pixel;
        bool is_inside;
    };
    CURVKERN_HD Place of(const Block& block, std::int64_t id, int thread) const {
        const std::int64_t tile = id / groups, group = id % groups;
        const std::int64_t slot = group * (block.threads() / lanes) + thread / lanes;
        const std::int64_t n = (tile * lanes + thread % lanes) * N;
        const Quotient at = divide(n, pixels);
        return {slot, at.value, at.rest, slot < slots && n < total};
    }
};

// Rows of single values.
template <class S, int N>
struct MultiplyRows {
    using A = Sum<S>;
    static constexpr int threads_at_most = usual_threads;
    static constexpr int blocks_at_once = sizeof(A) == 8 ? 3 : 4;
    static constexpr int step = 4;  // values of a load

    Product p;
    Tiling<N> tiling;

    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        block.alone([&](int thread) {
            const auto at = tiling.of(block, id, thread);
            if (!at.is_inside) return;
            const std::int64_t row = p.matrix.order[at.slot];
            const S* x =
                static_cast<const S*>(p.x) + at.image * p.columns * p.pixels + at.pixel;
            Sums<A, N> z;
            add(x, p.matrix.crow[row], p.matrix.crow[row + 1], z);
            const std::int64_t to = (at.image * p.matrix.rows + row) * p.pixels + at.pixel;
            const auto* bias = static_cast<const S*>(p.bias);
            const auto* residual = static_cast<const S*>(p.residual);
            finish<N>(z.value, bias == nullptr ? A(0) : widened(bias[row]),
                      residual == nullptr ? nullptr : residual + to,
                      static_cast<S*>(p.out) + to, p.activation);
        });
    }

  private:
    struct Entries {
        Pack<S, step> value;
        Pack<std::int32_t, step> col;
    };

    CURVKERN_HD Entries entries(std::int64_t at, std::int64_t end) const {
        const auto* values = static_cast<const S*>(p.values);
        if (at + step <= p.matrix.count) {
            return {load_pack<step>(values + at), load_pack<step>(p.matrix.col + at)};
        }
        Entries some{};
        CURVKERN_IN_REGISTERS
        for (int e = 0; e < step; ++e) {
            if (at + e >= end) continue;
            some.value.value[e] = values[at + e];
            some.col.value[e] = p.matrix.col[at + e];
        }
        return some;
    }

    CURVKERN_HD void add(const S* x, std::int64_t begin, std::int64_t end,
                         Sums<A, N>& z) const {
        std::int64_t at = begin / step * step;
        if (begin >= end) return;
        Entries next = entries(at, end);
        for (; at < end; at += step) {
            const Entries here = next;
            if (at + step < end) next = entries(at + step, end);
            if (at >= begin && at + step <= end) {
                Pack<S, N> g[step];
                CURVKERN_IN_REGISTERS
                for (int e = 0; e < step; ++e) {
                    g[e] = load_pack<N>(x + here.col.value[e] * p.pixels);
                }
                CURVKERN_IN_REGISTERS
                for (int e = 0; e < step; ++e) multiply(here.value.value[e], g[e], z);
            } else {
                CURVKERN_IN_REGISTERS
                for (int e = 0; e < step; ++e) {
                    if (at + e < begin || at + e >= end) continue;
                    const auto g = load_pack<N>(x + here.col.value[e] * p.pixels);
                    multiply(here.value.value[e], g, z);
                }
            }
        }
    }

    CURVKERN_HD static void multiply(S value, const Pack<S, N>& g, Sums<A, N>& z) {
        const A w = widened(value);
        CURVKERN_IN_REGISTERS
        for (int e = 0; e < N; ++e) z[e] = w * widened(g.value[e]) + z[e];
    }
};

// Up to `Rows` rows of a row of blocks of any size.
template <class S, int N, int Rows>
struct MultiplyBlocks {
    using A = Sum<S>;
    static constexpr int threads_at_most = usual_threads;
    static constexpr int sums = N * Rows * static_cast<int>(sizeof(A)) / 4;
    static constexpr int blocks_at_once = Rows * sizeof(A) >= 32 ? 2 : sums <= 2 ? 4 : 3;
    // values of a load
    static constexpr int piece = std::min(Rows, widest / static_cast<int>(sizeof(S)));

    Product p;
    Tiling<N> tiling;

    static std::int64_t slots(const Product& p) {
        return p.matrix.rows * divided(p.matrix.height, Rows);
    }

    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        block.alone([&](int thread) {
            const auto at = tiling.of(block, id, thread);
            if (!at.is_inside) return;
            const Quotient part = divide(at.slot, (p.matrix.height + Rows - 1) / Rows);
            const std::int64_t row = p.matrix.order[part.value], from = part.rest * Rows;
            const S* x =
                static_cast<const S*>(p.x) + at.image * p.columns * p.pixels + at.pixel;
            const std::int64_t begin = p.matrix.crow[row], end = p.matrix.crow[row + 1];
            Sums<A, N> z[Rows];
            if (p.matrix.width == 1 && p.matrix.height % Rows == 0) {
                std::int64_t k = begin;
                for (; k + 2 <= end; k += 2) add_tall<2>(x, k, from, z);
                if (k < end) add_tall<1>(x, k, from, z);
            } else {
                for (std::int64_t k = begin; k < end; ++k) add(x, k, from, z);
            }
            const auto* bias = static_cast<const S*>(p.bias);
            const auto* residual = static_cast<const S*>(p.residual);
            CURVKERN_IN_REGISTERS
            for (int q = 0; q < Rows; ++q) {
                if (from + q >= p.matrix.height) continue;
                const std::int64_t of_out = row * p.matrix.height + from + q;
                const std::int64_t to =
                    (at.image * p.matrix.rows * p.matrix.height + of_out) * p.pixels + at.pixel;
                finish<N>(z[q].value, bias == nullptr ? A(0) : widened(bias[of_out]),
                          residual == nullptr ? nullptr : residual + to,
                          static_cast<S*>(p.out) + to, p.activation);
            }
        });
    }

  private:
    // Blocks k .. k + Count - 1 of one column, whose rows are all there.
    template <int Count>
    CURVKERN_HD void add_tall(const S* x, std::int64_t k, std::int64_t from,
                              Sums<A, N> (&z)[Rows]) const {
        Pack<S, piece> w[Count][Rows / piece];
        Pack<S, N> g[Count];
        CURVKERN_IN_REGISTERS
        for (int i = 0; i < Count; ++i) {
            const S* values =
                static_cast<const S*>(p.values) + (k + i) * p.matrix.height + from;
            CURVKERN_IN_REGISTERS
            for (int q = 0; q < Rows / piece; ++q) {
                w[i][q] = load_pack<piece>(values + q * piece);
            }
            g[i] = load_pack<N>(x + p.matrix.col[k + i] * p.pixels);
        }
        CURVKERN_IN_REGISTERS
        for (int i = 0; i < Count; ++i) {
            CURVKERN_IN_REGISTERS
            for (int q = 0; q < Rows; ++q) {
                multiply(w[i][q / piece].value[q % piece], g[i], z[q]);
            }
        }
    }

    CURVKERN_HD void add(const S* x, std::int64_t k, std::int64_t from,
                         Sums<A, N> (&z)[Rows]) const {
        const std::int64_t height = p.matrix.height, width = p.matrix.width;
        const S* values = static_cast<const S*>(p.values) + (k * height + from) * width;
        const S* channel = x + p.matrix.col[k] * width * p.pixels;
        for (std::int64_t j = 0; j < width; ++j) {
            const auto g = load_pack<N>(channel + j * p.pixels);
            CURVKERN_IN_REGISTERS
            for (int q = 0; q < Rows; ++q) {
                if (from + q < height) multiply(values[q * width + j], g, z[q]);
            }
        }
    }

    CURVKERN_HD static void multiply(S value, const Pack<S, N>& g, Sums<A, N>& z) {
        const A w = widened(value);
        CURVKERN_IN_REGISTERS
        for (int e = 0; e < N; ++e) z[e] = w * widened(g.value[e]) + z[e];
    }
};

// The values of W' by its rows: what a product with W' reads as it reads those of W. It costs 8
// to 16 bytes a value, against a value's work at every pixel.
template <class S>
struct Transpose {
    static constexpr int threads_at_most = usual_threads, blocks_at_once = 4;
    Transposition t;

    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        block.alone([&](int thread) {
            const std::int64_t i = id * block.threads() + thread, size = t.height * t.width;
            if (i >= t.count * size) return;
            const Quotient of = divide(i, size), in = divide(of.rest, t.height);
            const std::int64_t from = t.source[of.value] * size + in.rest * t.width + in.value;
            static_cast<S*>(t.out)[i] = static_cast<const S*>(t.values)[from];
        });
    }
};

}  // namespace isa
}  // namespace curvkern::sparseconv::device
