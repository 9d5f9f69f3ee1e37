// Products of a few vectors with all rows of a window, and the row that comes in with the first
// of them, in one pass: out[r count + i] = g_i . v_r. The source is named in mfac.hpp.
//
// Fewest bytes: count d elements of the window and k d of the vectors; fewest operations: 2 k
// for each element of the window, and its conversion to float64. Vectors lie in shared memory
// in float64, where each of their elements serves all rows of a block; a thread keeps its sums
// in registers until the block has seen all its columns.
#pragma once

#include "mfac/device_rows.hpp"

namespace curvkern::mfac::device {
CURVKERN_PER_ISA {

inline constexpr int most_vectors = 8;  // in one pass

// Vectors `first` .. first + K - 1 of those asked for; beyond the last one that again.
template <class S, int Bytes, int K>
struct MultiplyRows {
    static constexpr int size = Pack<S, Bytes>::size;
    static constexpr int together = size > 1 ? 2 : 1;  // numbers of one load of shared memory
    static constexpr int ahead = std::min(8, 32 / Bytes);  // packs of each row under way
    static constexpr int threads_at_most = usual_threads;
    // As many as have their sums and packs in registers, by what the compiler makes of them.
    static constexpr int blocks_at_once = K < most_vectors ? 2 : 1;

    Window window;
    Vectors v, incoming;  // incoming.k is 1 or 0
    std::int64_t into, first;
    ProductsPlan plan;
    double* partial;  // (K, count, parts)

    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        const std::int64_t part = id / plan.groups, group = id % plan.groups;
        const std::int64_t begin = part * plan.columns;
        const std::int64_t end = smaller(begin + plan.columns, window.d);
        const bool writes = first == 0 && incoming.k > 0 && into / plan.rows == group;
        const auto first_row = [&](int thread) {
            return group * plan.rows + thread / warp_size * rows_at_once;
        };
        Block::Own<Rows<S>> rows(block);
        Block::Own<Few<rows_at_once * K>> sums(block);
        block.alone([&](int thread) { rows(thread) = rows_at<S>(window, first_row(thread)); });
        for (std::int64_t j = begin; j < end; j += plan.tile) {
            const int width = static_cast<int>(smaller(plan.tile, end - j));
            block.each([&](int thread) {
                for (int c = thread; c < width; c += block.threads()) {
                    fetch(block.shared(), j, c, writes);
                }
            });
            block.each([&](int thread) {
                if (first_row(thread) >= window.count) return;
                add(block.shared(), rows(thread), j, thread % warp_size, width / size,
                    sums(thread));
            });
        }
        block.template add_lanes<warp_size>(sums);
        block.alone([&](int thread) {
            if (thread % warp_size != 0) return;
            CURVKERN_IN_REGISTERS
            for (int q = 0; q < rows_at_once * K; ++q) {
                const std::int64_t i = first_row(thread) + q / K, k = q % K;
                if (i >= window.count || first + k >= vectors()) continue;
                partial[(k * window.count + i) * plan.parts + part] = sums(thread)[q];
            }
        });
    }

  private:
    CURVKERN_HD std::int64_t vectors() const { return incoming.k + v.k; }

    // Element j + c of each vector. What comes in is rounded to what the window stores; the one
    // block that takes its row writes it there before it reads it.
    CURVKERN_HD void fetch(double* shared, std::int64_t j, int c, bool writes) const {
        const int tile = static_cast<int>(plan.tile);
        CURVKERN_IN_REGISTERS
        for (int k = 0; k < K; ++k) {
            const std::int64_t r = smaller(first + k, vectors() - 1);
            double x;
            if (r < incoming.k) {
                S stored;
                round_to(element(incoming, window.d, r, j + c), &stored);
                x = widened(stored);
                if (writes && k == 0) {
                    static_cast<S*>(window.data)[window.slot[into] * window.stride + j + c] =
                        stored;
                }
            } else {
                x = element(v, window.d, r - incoming.k, j + c);
            }
            shared[k * tile + place(c, tile)] = x;
        }
    }

    // Where a column's number lies: loads of two numbers by the threads of a warp are side by
    // side, although these have packs of up to eight.
    CURVKERN_HD static int place(int c, int tile) {
        return (c % size / together * (tile / size) + c / size) * together + c % together;
    }

    CURVKERN_HD void add(const double* shared, const Rows<S>& rows, std::int64_t j, int lane,
                         int packs, Few<rows_at_once * K>& sums) const {
        const int tile = static_cast<int>(plan.tile);
        for (int begin = lane; begin < packs; begin += warp_size * ahead) {
            Pack<S, Bytes> g[ahead][rows_at_once];
            CURVKERN_IN_REGISTERS
            for (int u = 0; u < ahead; ++u) {
                const int p = begin + u * warp_size;
                if (p >= packs) continue;
                CURVKERN_IN_REGISTERS
                for (int r = 0; r < rows_at_once; ++r) {
                    g[u][r] = load_pack<S, Bytes>(rows.row[r] + j + p * size);
                }
            }
            CURVKERN_IN_REGISTERS
            for (int u = 0; u < ahead; ++u) {
                const int p = begin + u * warp_size;
                if (p >= packs) continue;
                CURVKERN_IN_REGISTERS
                for (int e = 0; e < size; e += together) {
                    const double* at = shared + (e / together * (tile / size) + p) * together;
                    multiply(at, tile, g[u], e, sums);
                }
            }
        }
    }

    CURVKERN_HD static void multiply(const double* at, int tile,
                                     const Pack<S, Bytes> (&g)[rows_at_once], int e,
                                     Few<rows_at_once * K>& sums) {
        double y[rows_at_once][together];
        CURVKERN_IN_REGISTERS
        for (int r = 0; r < rows_at_once; ++r) {
            CURVKERN_IN_REGISTERS
            for (int t = 0; t < together; ++t) y[r][t] = widened(g[r].value[e + t]);
        }
        CURVKERN_IN_REGISTERS
        for (int k = 0; k < K; ++k) {
            const auto x = load_pack<double, 8 * together>(at + k * tile);
            CURVKERN_IN_REGISTERS
            for (int r = 0; r < rows_at_once; ++r) {
                CURVKERN_IN_REGISTERS
                for (int t = 0; t < together; ++t) sums[r * K + k] += y[r][t] * x.value[t];
            }
        }
    }
};

// out[q] = sum of partial[q parts + ..] for q < outputs: a warp for each.
struct AddParts {
    static constexpr int threads_at_most = usual_threads, blocks_at_once = 4;
    const double* partial;
    double* out;
    std::int64_t outputs, parts;

    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        const auto output = [&](int thread) { return id * usual_warps + thread / warp_size; };
        Block::Own<Few<1>> sum(block);
        block.alone([&](int thread) {
            if (output(thread) >= outputs) return;
            const double* from = partial + output(thread) * parts;
            double total = 0;
            for (std::int64_t p = thread % warp_size; p < parts; p += warp_size) {
                total += from[p];
            }
            sum(thread)[0] = total;
        });
        block.template add_lanes<warp_size>(sum);
        block.alone([&](int thread) {
            if (thread % warp_size != 0 || output(thread) >= outputs) return;
            out[output(thread)] = sum(thread)[0];
        });
    }
};

}  // namespace isa
}  // namespace curvkern::mfac::device
