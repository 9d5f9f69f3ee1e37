// Combinations of all rows of a window in one pass: out_r = alpha v_r + sum_i c_ri g_i. The
// source is named in mfac.hpp.
//
// Fewest bytes: count d elements of the window, k d of v and of the result; fewest operations:
// 2 k for each element of the window, and its conversion to float64. The blocks begin with the
// last columns, which the cache still holds of the products before.
#pragma once

#include "mfac/device_rows.hpp"

namespace curvkern::mfac::device {
CURVKERN_PER_ISA {

inline constexpr int most_combinations = 4;            // in one pass
inline constexpr std::int64_t coefficient_rows = 512;  // whose coefficients are at hand

// Combinations `first` .. first + K - 1; beyond the last one that again.
template <class S, int Bytes, int K>
struct CombineRows {
    using Element = Pack<S, Bytes>;
    static constexpr int size = Element::size;
    static constexpr int packs = widest / Bytes;                          // of a thread
    static constexpr int numbers = widest / static_cast<int>(sizeof(S));  // of a thread
    static constexpr int panel = numbers * warp_size;
    // As many as have their sums and packs in registers, by what the compiler makes of them.
    static constexpr int registers = numbers * K + (packs > 2 ? 2 * packs : 0);
    static constexpr int blocks_at_once = registers <= 8 ? 4 : registers <= 16 ? 3 : 2;
    static constexpr int threads_at_most = usual_threads;

    Window window;
    const double* coefficient;  // (k, count)
    double alpha;
    Vectors v, out;  // v.data may be null
    std::int64_t first;
    CombinePlan plan;

    static std::int64_t shared_size(std::int64_t count) {
        const std::int64_t rows = std::min(count + rows_at_once - 1, coefficient_rows);
        return std::max<std::int64_t>(rows * K, usual_warps * panel);
    }

    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        const std::int64_t begin = (plan.blocks - 1 - id) * columns();
        Block::Own<Few<numbers * K>> sums(block);
        for (std::int64_t i = 0; i < window.count; i += coefficient_rows) {
            const int rows = static_cast<int>(smaller(coefficient_rows, window.count - i));
            block.each([&](int thread) {
                const int padded = (rows + rows_at_once - 1) / rows_at_once * rows_at_once;
                for (int q = thread; q < padded * K; q += block.threads()) {
                    const std::int64_t r = smaller(first + q % K, out.k - 1);
                    block.shared()[q] =
                        q / K < rows ? coefficient[r * window.count + i + q / K] : 0;
                }
            });
            block.each(
                [&](int thread) { add(block.shared(), i, rows, begin, thread, sums(thread)); });
        }
        CURVKERN_IN_REGISTERS
        for (int k = 0; k < K; ++k) finish(block, begin, k, sums);
    }

  private:
    CURVKERN_HD std::int64_t columns() const { return usual_warps / plan.slices * panel; }

    // Where element e of a thread's pack u is among the columns of its block.
    CURVKERN_HD int column(int thread, int u, int e) const {
        return thread / warp_size / plan.slices * panel +
               (u * warp_size + thread % warp_size) * size + e;
    }

    // Rows i .. i + rows - 1 of the thread's slice; c (rows, K) in shared memory.
    CURVKERN_HD void add(const double* c, std::int64_t i, int rows, std::int64_t begin,
                         int thread, Few<numbers * K>& sums) const {
        const int slice = thread / warp_size % plan.slices;
        for (int at = slice * rows_at_once; at < rows; at += plan.slices * rows_at_once) {
            const Rows<S> here = rows_at<S>(window, i + at);
            Element g[packs][rows_at_once];
            CURVKERN_IN_REGISTERS
            for (int u = 0; u < packs; ++u) {
                const std::int64_t j = begin + column(thread, u, 0);
                if (j >= window.d) continue;
                CURVKERN_IN_REGISTERS
                for (int r = 0; r < rows_at_once; ++r) {
                    g[u][r] = load_pack<S, Bytes>(here.row[r] + j);
                }
            }
            CURVKERN_IN_REGISTERS
            for (int r = 0; r < rows_at_once; ++r) {
                double scale[K];
                CURVKERN_IN_REGISTERS
                for (int k = 0; k < K; ++k) scale[k] = c[(at + r) * K + k];
                CURVKERN_IN_REGISTERS
                for (int u = 0; u < packs; ++u) {
                    if (begin + column(thread, u, 0) >= window.d) continue;
                    CURVKERN_IN_REGISTERS
                    for (int e = 0; e < size; ++e) {
                        const double y = widened(g[u][r].value[e]);
                        CURVKERN_IN_REGISTERS
                        for (int k = 0; k < K; ++k) {
                            double& sum = sums[k * numbers + u * size + e];
                            sum = scale[k] * y + sum;
                        }
                    }
                }
            }
        }
    }

    // The slices' sums in their order, of one combination.
    CURVKERN_HD void finish(Block& block, std::int64_t begin, int k,
                            Block::Own<Few<numbers * K>>& sums) const {
        const auto width = static_cast<int>(columns());
        block.each([&](int thread) {
            double* to = block.shared() + thread / warp_size % plan.slices * width;
            CURVKERN_IN_REGISTERS
            for (int u = 0; u < packs; ++u) {
                CURVKERN_IN_REGISTERS
                for (int e = 0; e < size; ++e) {
                    to[column(thread, u, e)] = sums(thread)[k * numbers + u * size + e];
                }
            }
        });
        block.each([&](int thread) {
            const std::int64_t r = first + k;
            for (int c = thread; c < width && r < out.k; c += block.threads()) {
                const std::int64_t j = begin + c;
                if (j >= window.d) break;
                double y = v.data == nullptr ? 0 : alpha * element(v, window.d, r, j);
                for (int slice = 0; slice < plan.slices; ++slice) {
                    y += block.shared()[slice * width + c];
                }
                if (out.is_float32) {
                    static_cast<float*>(out.data)[r * window.d + j] = static_cast<float>(y);
                } else {
                    static_cast<double*>(out.data)[r * window.d + j] = y;
                }
            }
        });
    }
};

}  // namespace isa
}  // namespace curvkern::mfac::device
