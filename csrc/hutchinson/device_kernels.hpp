// The step of many tensors by the threads of a GPU.
//
// A block of threads takes a tile of a tensor. Where no means are taken, a thread has W
// elements (16 bytes of float32 and float64, 8 of bfloat16) of all tensors of its parameter
// under way at a time; with means, the tile's D lies in shared memory between. On an H100 (132
// multiprocessors, 3.35 TB/s, latency about 600 ns) 15 KB have to be under way in each
// multiprocessor: five loads of 16 bytes in each of 256 threads of 2 blocks are 40 KB. Two
// blocks may use 128 registers a thread, where nothing is spilled (nvcc 13, sm_75, 80, 90);
// four, with 64, would spill 220 bytes a thread.
//
// Prediction for float32 there, at the 3.0 TB/s that a copy reaches: 32 bytes a parameter, 10.7
// ps; the fewest bytes are 32, and what comes beside (a tile's place among the tensors, 30
// words a tile, and one launch for each 480 words of them) is below 1 % from 10 million
// parameters on. 1.05 times the time of 32 bytes is expected, 1.10 with means, whose blocks
// wait for their tile's last load before p, g, m and v are asked for. No GPU has run it yet.
#pragma once

#include "hutchinson/cut.hpp"
#include "hutchinson/device.hpp"
#include "hutchinson/device_elements.hpp"
#include "hutchinson/rules.hpp"

namespace curvkern::hutchinson::device {
CURVKERN_PER_ISA {

inline constexpr int usual_threads = 256;
inline constexpr int warps = usual_threads / warp_size;

// What a kernel knows of a tensor; `factors` and `hz` are places in tables.
struct Entry {
    void* p;
    const void* g;
    void* state[3];
    std::int64_t size, block, offset, stride, parts, piece;
    std::int64_t factors, hz;  // hz: of the first probe, or -1; z follow
    std::int64_t is_signed, needs_signs;
};

struct Table {
    const std::int64_t* first;  // tile of each tensor, and the number of all
    const Entry* entry;
    const Factors* factors;
    const void* const* product;
    std::int64_t tensors, probes;
    std::uint64_t seed;
    std::uint32_t step, probe;  // the first
    bool draws, has_z;
};

// A tile of a tensor: elements begin .. begin + size - 1.
struct Tile {
    Entry entry;
    std::int64_t begin;
    int size;
    std::int64_t part, number;  // among the parts of its block; among the tensor's tiles
};

CURVKERN_HD std::int64_t smallest(std::int64_t a, std::int64_t b) {
    return a < b ? a : b;
}

CURVKERN_HD Tile tile_of(const Table& table, std::int64_t id) {
    std::int64_t low = 0, high = table.tensors;  // first[low] <= id < first[high]
    while (high - low > 1) {
        const std::int64_t middle = (low + high) / 2;
        (table.first[middle] <= id ? low : high) = middle;
    }
    Tile t{table.entry[low], 0, 0, 0, id - table.first[low]};
    const Entry& e = t.entry;
    const std::int64_t row = t.number / e.parts;
    t.part = t.number % e.parts;
    t.begin = row * e.stride + t.part * e.piece;
    const std::int64_t end =
        smallest(t.begin + e.piece, smallest((row + 1) * e.stride, e.size));
    t.size = end > t.begin ? static_cast<int>(end - t.begin) : 0;
    return t;
}

// D of W elements before their mean.
template <class S, int W>
CURVKERN_HD Numbers<State<S>, W> products(const Table& table, const Tile& t, int i, int count) {
    using R = State<S>;
    Numbers<R, W> D;
    const R share = static_cast<R>(1 / static_cast<double>(table.probes));
    for (std::int64_t probe = 0; probe < table.probes; ++probe) {
        const auto* hz = static_cast<const S*>(table.product[t.entry.hz + probe]);
        Numbers<R, W> y = load<W>(hz + t.begin + i, count);
        if (t.entry.needs_signs && table.has_z) {
            const auto* z =
                static_cast<const S*>(table.product[t.entry.hz + table.probes + probe]);
            const Numbers<R, W> sign = load<W>(z + t.begin + i, count);
            CURVKERN_IN_REGISTERS
            for (int j = 0; j < W; ++j) y[j] *= sign[j];
        } else if (t.entry.needs_signs && table.draws) {
            Signs signs(table.seed, table.step,
                        table.probe + static_cast<std::uint32_t>(probe));
            const auto element = static_cast<std::uint64_t>(t.entry.offset + t.begin + i);
            CURVKERN_IN_REGISTERS
            for (int j = 0; j < W; ++j) {
                if (signs.is_minus(element + static_cast<unsigned>(j))) y[j] = -y[j];
            }
        }
        CURVKERN_IN_REGISTERS
        for (int j = 0; j < W; ++j) D[j] += share * y[j];
    }
    return D;
}

template <class R>
CURVKERN_HD R size_of(R x, bool is_signed) {
    return is_signed ? x : abs(x);
}

// Sums over tiles, for means of blocks that are longer than one.
template <class S, int W>
struct SumTiles {
    static constexpr int threads_at_most = usual_threads, blocks_at_once = 3;
    Table table;
    double* total;

    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        const Tile t = tile_of(table, id);
        Block::Own<Few<1>> sum(block);
        block.alone([&](int thread) {
            if (t.entry.hz < 0 || t.entry.parts == 1) return;
            for (int i = thread * W; i < t.size; i += block.threads() * W) {
                const auto D = products<S, W>(table, t, i, t.size - i);
                for (int j = 0; j < W; ++j) sum(thread)[0] += size_of(D[j], t.entry.is_signed);
            }
        });
        const double all = block.sum(sum)[0];
        block.alone([&](int thread) {
            if (thread == 0) total[id] = all;
        });
    }
};

// The mean of a long block to the place of its first tile.
struct MeanOfParts {
    static constexpr int threads_at_most = usual_threads, blocks_at_once = 4;
    Table table;
    double* total;

    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        const Tile t = tile_of(table, id);
        const bool leads = t.entry.parts > 1 && t.part == 0;
        Block::Own<Few<1>> sum(block);
        block.alone([&](int thread) {
            for (std::int64_t k = thread; leads && k < t.entry.parts; k += block.threads()) {
                sum(thread)[0] += total[id + k];
            }
        });
        const double all = block.sum(sum)[0];
        block.alone([&](int thread) {
            const std::int64_t width = smallest(t.entry.stride, t.entry.size - t.begin);
            if (leads && thread == 0) total[id] = all / static_cast<double>(width);
        });
    }
};

// The sums of a metric, tile after tile.
struct AddTotals {
    static constexpr int threads_at_most = usual_threads, blocks_at_once = 1;
    const double* total;  // (tiles, sums)
    std::int64_t tiles;
    double* out;

    CURVKERN_HD void operator()(Block& block, std::int64_t) const {
        Block::Own<Few<sums>> own(block);
        block.alone([&](int thread) {
            for (std::int64_t k = thread; k < tiles; k += block.threads()) {
                CURVKERN_IN_REGISTERS
                for (int s = 0; s < sums; ++s) own(thread)[s] += total[k * sums + s];
            }
        });
        const Few<sums> all = block.sum(own);
        block.alone([&](int thread) {
            CURVKERN_IN_REGISTERS
            for (int s = 0; s < sums; ++s) {
                if (thread == s) out[s] = all[s];
            }
        });
    }
};

// All tiles of the tensors of a table, which are stored as S.
template <class S, int W, Work work>
struct MoveTiles {
    using R = State<S>;
    using Some = Numbers<R, W>;
    static constexpr int threads_at_most = usual_threads;
    // As many as have what they work on in registers, by what the compiler makes of them.
    static constexpr int blocks_at_once = work == Work::descent || work == Work::signs ? 4 : 2;
    // Of float64 numbers, where there are means: a tile's D and the means of pairs at least.
    static constexpr std::int64_t shared_size =
        (tile + tile / 2) * static_cast<std::int64_t>(sizeof(R)) / 8;

    Table table;
    double* total;  // long means, or what a metric adds

    CURVKERN_HD void operator()(Block& block, std::int64_t id) const {
        const Tile t = tile_of(table, id);
        const Factors f = table.factors[t.entry.factors];
        if constexpr (work == Work::adahessian) {
            if (has_short_means(t.entry)) take_means(block, t);
        }
        Block::Own<Few<sums>> own(block);
        block.alone([&](int thread) {
            for (int i = thread * W; i < t.size; i += block.threads() * W) {
                const int count = t.size - i;
                if constexpr (work == Work::adahessian) {
                    adahessian(block, t, f, id, i, count);
                } else if constexpr (work == Work::sophia) {
                    sophia(t, f, i, count);
                } else if constexpr (work == Work::metric) {
                    metric(t, f, i, count, own(thread));
                } else if constexpr (work == Work::descent) {
                    descent(t, f, i, count);
                } else if constexpr (work == Work::signs) {
                    signs(t, i, count);
                } else {
                    moments(t, f, i, count);
                }
            }
        });
        if constexpr (work == Work::metric) {
            const Few<sums> all = block.sum(own);
            block.alone([&](int thread) {
                CURVKERN_IN_REGISTERS
                for (int s = 0; s < sums; ++s) {
                    if (thread == s) total[id * sums + s] = all[s];
                }
            });
        }
    }

  private:
    CURVKERN_HD static bool has_short_means(const Entry& e) {
        return e.hz >= 0 && e.block > 1 && e.parts == 1;
    }
    CURVKERN_HD static R* at(const Tile& t, int k, int i) {
        return static_cast<R*>(t.entry.state[k]) + t.begin + i;
    }
    CURVKERN_HD static S* parameter(const Tile& t, int i) {
        return static_cast<S*>(t.entry.p) + t.begin + i;
    }
    CURVKERN_HD static Some gradient(const Tile& t, int i, int count) {
        return load<W>(static_cast<const S*>(t.entry.g) + t.begin + i, count);
    }

    // Means of the tile's blocks to shared memory, after its D: short blocks by a thread each,
    // others by a warp.
    CURVKERN_HD void take_means(Block& block, const Tile& t) const {
        auto* D = reinterpret_cast<R*>(block.shared());
        const int width = static_cast<int>(t.entry.block);
        const int blocks = (t.size + width - 1) / width;
        block.each([&](int thread) {
            for (int i = thread * W; i < t.size; i += block.threads() * W) {
                const Some d = products<S, W>(table, t, i, t.size - i);
                CURVKERN_IN_REGISTERS
                for (int j = 0; j < W; ++j) {
                    if (i + j < t.size) D[i + j] = size_of(d[j], t.entry.is_signed);
                }
            }
        });
        const bool is_short = width < warp_size;
        const int lanes = is_short ? 1 : warp_size, at_once = is_short ? usual_threads : warps;
        for (int first = 0; first < blocks; first += at_once) {
            Block::Own<Few<1>> sum(block);
            block.alone([&](int thread) {
                const int begin = (first + thread / lanes) * width;
                const int end = begin + width < t.size ? begin + width : t.size;
                for (int i = begin + thread % lanes; i < end; i += lanes) {
                    sum(thread)[0] += D[i];
                }
            });
            if (!is_short) block.template add_lanes<warp_size>(sum);
            block.alone([&](int thread) {
                const int b = first + thread / lanes, rest = t.size - b * width;
                if (b < blocks && thread % lanes == 0) {
                    D[tile + b] =
                        static_cast<R>(sum(thread)[0] / (rest < width ? rest : width));
                }
            });
        }
        block.barrier();
    }

    CURVKERN_HD void adahessian(Block& block, const Tile& t, const Factors& f, std::int64_t id,
                                int i, int count) const {
        const bool is_kept = t.entry.state[2] != nullptr;
        Some D, m = load<W>(at(t, 0, i), count), v = load<W>(at(t, 1, i), count);
        const Some g = gradient(t, i, count);
        Some p = load<W>(parameter(t, i), count);
        double scale = f.scale;
        if (t.entry.hz >= 0) {
            if (t.entry.parts > 1) {
                const R mean = static_cast<R>(total[id - t.part]);
                CURVKERN_IN_REGISTERS
                for (int j = 0; j < W; ++j) D[j] = mean;
            } else if (t.entry.block > 1) {
                const auto* mean = reinterpret_cast<const R*>(block.shared()) + tile;
                CURVKERN_IN_REGISTERS
                for (int j = 0; j < W; ++j) {
                    D[j] = j < count ? mean[(i + j) / static_cast<int>(t.entry.block)] : R{};
                }
            } else {
                D = products<S, W>(table, t, i, count);
            }
            if (is_kept) {
                CURVKERN_IN_REGISTERS
                for (int j = 0; j < W; ++j) D[j] = abs(D[j] * static_cast<R>(scale));
                store<W>(at(t, 2, i), D, count);
                scale = 1;
            }
        } else if (is_kept) {
            D = load<W>(at(t, 2, i), count);
            scale = 1;
        }
        const AdaHessianRule<R> rule(f, scale);
        CURVKERN_IN_REGISTERS
        for (int j = 0; j < W; ++j) m[j] = rule.first(m[j], g[j]);
        store<W>(at(t, 0, i), m, count);
        if (t.entry.hz >= 0 || is_kept) {
            CURVKERN_IN_REGISTERS
            for (int j = 0; j < W; ++j) v[j] = rule.second(v[j], D[j]);
            store<W>(at(t, 1, i), v, count);
        }
        if (f.power == 1 && !f.atan2) {
            CURVKERN_IN_REGISTERS
            for (int j = 0; j < W; ++j) p[j] = rule.template moved<true>(p[j], m[j], v[j]);
        } else {
            CURVKERN_IN_REGISTERS
            for (int j = 0; j < W; ++j) p[j] = rule.template moved<false>(p[j], m[j], v[j]);
        }
        store<W>(parameter(t, i), p, count);
    }

    CURVKERN_HD void sophia(const Tile& t, const Factors& f, int i, int count) const {
        const SophiaRule<R> rule(f);
        Some m = load<W>(at(t, 0, i), count), h = load<W>(at(t, 1, i), count);
        const Some g = gradient(t, i, count);
        Some p = load<W>(parameter(t, i), count);
        CURVKERN_IN_REGISTERS
        for (int j = 0; j < W; ++j) m[j] = rule.first(m[j], g[j]);
        store<W>(at(t, 0, i), m, count);
        if (t.entry.hz >= 0) {
            const Some D = products<S, W>(table, t, i, count);
            CURVKERN_IN_REGISTERS
            for (int j = 0; j < W; ++j) h[j] = rule.curvature(h[j], D[j]);
            store<W>(at(t, 1, i), h, count);
        }
        CURVKERN_IN_REGISTERS
        for (int j = 0; j < W; ++j) p[j] = rule.moved(p[j], m[j], h[j]);
        store<W>(parameter(t, i), p, count);
    }

    CURVKERN_HD void metric(const Tile& t, const Factors& f, int i, int count,
                            Few<sums>& own) const {
        const MetricRule<R> rule(f);
        Some A = load<W>(at(t, 0, i), count);
        const Some D = products<S, W>(table, t, i, count), g = gradient(t, i, count);
        Some last_p, last_g, p;
        if (f.known) {
            last_p = load<W>(at(t, 1, i), count);
            last_g = load<W>(at(t, 2, i), count);
            p = load<W>(parameter(t, i), count);
        }
        CURVKERN_IN_REGISTERS
        for (int j = 0; j < W; ++j) {
            A[j] = rule.average(A[j], D[j]);
            const R B = rule.metric(A[j]), gradient = rule.gradient(g[j]);
            const R dw = p[j] - last_p[j], dg = f.known ? gradient - last_g[j] : R{};
            own[0] += dw * B * dw;
            own[1] += dg / B * dg;
            own[2] += gradient * gradient / B;
        }
        store<W>(at(t, 0, i), A, count);
    }

    CURVKERN_HD void descent(const Tile& t, const Factors& f, int i, int count) const {
        const MetricRule<R> rule(f);
        const Some A = load<W>(at(t, 0, i), count);
        Some g = gradient(t, i, count), p = load<W>(parameter(t, i), count);
        CURVKERN_IN_REGISTERS
        for (int j = 0; j < W; ++j) g[j] = rule.gradient(g[j]);
        if (t.entry.state[1] != nullptr) {
            store<W>(at(t, 1, i), p, count);
            store<W>(at(t, 2, i), g, count);
        }
        CURVKERN_IN_REGISTERS
        for (int j = 0; j < W; ++j) p[j] = rule.moved(p[j], g[j], rule.metric(A[j]));
        store<W>(parameter(t, i), p, count);
    }

    CURVKERN_HD void signs(const Tile& t, int i, int count) const {
        Signs signs(table.seed, table.step, table.probe);
        const auto element = static_cast<std::uint64_t>(t.entry.offset + t.begin + i);
        Some z;
        CURVKERN_IN_REGISTERS
        for (int j = 0; j < W; ++j) {
            z[j] = static_cast<R>(signs.is_minus(element + static_cast<unsigned>(j)) ? -1 : 1);
        }
        store<W>(parameter(t, i), z, count);
    }

    // Welford's: weight is 1 / count.
    CURVKERN_HD void moments(const Tile& t, const Factors& f, int i, int count) const {
        const Some D = products<S, W>(table, t, i, count);
        const R share = static_cast<R>(f.weight);
        Some mean = load<W>(at(t, 0, i), count), off;
        CURVKERN_IN_REGISTERS
        for (int j = 0; j < W; ++j) {
            off[j] = D[j] - mean[j];
            mean[j] = mean[j] + off[j] * share;
        }
        store<W>(at(t, 0, i), mean, count);
        if (t.entry.state[1] == nullptr) return;
        Some square = load<W>(at(t, 1, i), count);
        CURVKERN_IN_REGISTERS
        for (int j = 0; j < W; ++j) square[j] = square[j] + off[j] * (D[j] - mean[j]);
        store<W>(at(t, 1, i), square, count);
    }
};

}  // namespace isa
}  // namespace curvkern::hutchinson::device
