// Which kernels a step runs on a queue. Tensors that are stored alike share one launch, and
// what it knows of them travels with launches before it: nothing waits for the device.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/span.hpp"
#include "hutchinson/device.hpp"
#include "hutchinson/device_kernels.hpp"

namespace curvkern::hutchinson::device {

using Word = std::uint64_t;

struct WriteWords {
    static constexpr int threads_at_most = usual_threads, blocks_at_once = 1, most = 480;
    Word* to;
    std::int64_t count;
    Word word[most];

    CURVKERN_HD void operator()(Block& block, std::int64_t) const {
        block.each([&](int thread) {
            for (std::int64_t i = thread; i < count; i += block.threads()) to[i] = word[i];
        });
    }
};

// A table on its way to the device: what is added lies where `at` says.
class Words {
  public:
    explicit Words(double* workspace) : to_(reinterpret_cast<Word*>(workspace)) {}

    template <class T>
    const T* add(const T* data, std::size_t count) {
        const std::size_t at = word_.size(), bytes = count * sizeof(T);
        word_.resize(at + (bytes + sizeof(Word) - 1) / sizeof(Word));
        if (count > 0) std::memcpy(word_.data() + at, data, bytes);
        return reinterpret_cast<const T*>(to_ + at);
    }
    template <class Queue>
    double* write(Queue& queue) {  // returns what follows
        const auto size = static_cast<std::int64_t>(word_.size());
        for (std::int64_t first = 0; first < size; first += WriteWords::most) {
            WriteWords some;
            some.to = to_ + first;
            some.count = std::min<std::int64_t>(WriteWords::most, size - first);
            std::copy_n(word_.data() + first, some.count, some.word);
            queue.run(some, 1, usual_threads);
        }
        return reinterpret_cast<double*>(to_ + size);
    }

  private:
    Word* to_;
    std::vector<Word> word_;
};

// How a tensor's elements are read: in packs of 16 bytes of the state (8 of float64's width)
// where all its tensors and tiles begin at multiples of them.
inline int width_of(const Step& step, const Leaf& leaf) {
    const int width = leaf.storage == Storage::float64 ? 2 : 4;
    const Cut cut(leaf.block);
    if (cut.stride % width != 0) return 1;
    const auto is_aligned = [&](const void* data, Storage storage) {
        return reinterpret_cast<std::uintptr_t>(data) %
                   static_cast<std::uintptr_t>(width * element_size(storage)) ==
               0;
    };
    bool all = is_aligned(leaf.p, leaf.storage) && is_aligned(leaf.g, leaf.storage);
    for (const void* state : leaf.state) {
        all = all && is_aligned(state, state_storage(leaf.storage));
    }
    for (std::int64_t probe = 0; leaf.hz != nullptr && probe < step.probes; ++probe) {
        all = all && is_aligned(leaf.hz[probe], leaf.storage);
        if (leaf.z != nullptr) all = all && is_aligned(leaf.z[probe], leaf.storage);
    }
    return all ? width : 1;
}

inline bool same(const Factors& a, const Factors& b) {
    return std::memcmp(&a, &b, sizeof(Factors)) == 0;
}

// The table of some tensors, its words added.
inline Table table_of(const Step& step, const std::vector<const Leaf*>& leaves, Words& words,
                      std::int64_t& tiles, bool& has_parts, bool& has_means) {
    std::vector<std::int64_t> first;
    std::vector<Entry> entry;
    std::vector<Factors> factors;
    std::vector<const void*> product;
    Table table{};
    tiles = 0;
    has_parts = has_means = false;
    for (const Leaf* leaf : leaves) {
        const Cut cut(leaf->block);
        first.push_back(tiles);
        tiles += cut.tiles(leaf->size);
        if (factors.empty() || !same(factors.back(), leaf->factors)) {
            factors.push_back(leaf->factors);
        }
        const bool is_new = leaf->hz != nullptr;
        entry.push_back({leaf->p,
                         leaf->g,
                         {leaf->state[0], leaf->state[1], leaf->state[2]},
                         leaf->size,
                         leaf->block,
                         leaf->offset,
                         cut.stride,
                         cut.parts,
                         cut.piece,
                         static_cast<std::int64_t>(factors.size()) - 1,
                         is_new ? static_cast<std::int64_t>(product.size()) : -1,
                         leaf->is_signed,
                         needs_signs(step, *leaf)});
        if (!is_new) continue;
        has_parts = has_parts || cut.parts > 1;
        has_means = has_means || (leaf->block > 1 && cut.parts == 1);
        table.has_z = leaf->z != nullptr;
        product.insert(product.end(), leaf->hz, leaf->hz + step.probes);
        if (table.has_z) product.insert(product.end(), leaf->z, leaf->z + step.probes);
    }
    first.push_back(tiles);
    table.first = words.add(first.data(), first.size());
    table.entry = words.add(entry.data(), entry.size());
    table.factors = words.add(factors.data(), factors.size());
    table.product = words.add(product.data(), product.size());
    table.tensors = static_cast<std::int64_t>(leaves.size());
    table.probes = step.probes;
    table.seed = step.seed;
    table.step = step.step;
    table.probe = step.probe;
    table.draws = step.draws;
    return table;
}

template <class S, int W, Work work, class Queue>
void run_table(Queue& queue, const Table& table, std::int64_t tiles, bool has_parts,
               bool has_means, double* total) {
    using Kernel = MoveTiles<S, W, work>;
    if constexpr (work == Work::adahessian) {
        if (has_parts) {
            queue.run(SumTiles<S, W>{table, total}, tiles, usual_threads);
            queue.run(MeanOfParts{table, total}, tiles, usual_threads);
        }
    }
    queue.run(Kernel{table, total}, tiles, usual_threads, has_means ? Kernel::shared_size : 0);
}

template <Work work, class Queue>
void run_work(Queue& queue, const Step& step, double* workspace) {
    constexpr Storage storages[] = {Storage::float64, Storage::float32, Storage::bfloat16};
    std::int64_t all = 0;
    for (std::int64_t i = 0; i < step.leaves; ++i) {
        all += Cut(step.leaf[i].block).tiles(step.leaf[i].size);
    }
    double* total = workspace;  // of a metric, of all tables
    double* next = workspace + (work == Work::metric ? sums * all : 0);
    std::int64_t before = 0;
    for (const Storage storage : storages) {
        for (const int wanted : {1, storage == Storage::float64 ? 2 : 4}) {
            std::vector<const Leaf*> leaves;
            for (std::int64_t i = 0; i < step.leaves; ++i) {
                const Leaf& leaf = step.leaf[i];
                if (leaf.size > 0 && leaf.storage == storage &&
                    width_of(step, leaf) == wanted) {
                    leaves.push_back(&leaf);
                }
            }
            if (leaves.empty()) continue;
            Words words(next);
            std::int64_t tiles = 0;
            bool has_parts = false, has_means = false;
            const Table table = table_of(step, leaves, words, tiles, has_parts, has_means);
            next = words.write(queue);
            double* own = work == Work::metric ? total + sums * before : next;
            const auto launch = [&]<class S, int W>() {
                run_table<S, W, work>(queue, table, tiles, has_parts, has_means, own);
            };
            if (storage == Storage::float64) {
                wanted == 1 ? launch.template operator()<double, 1>()
                            : launch.template operator()<double, 2>();
            } else if (storage == Storage::float32) {
                wanted == 1 ? launch.template operator()<float, 1>()
                            : launch.template operator()<float, 4>();
            } else {
                wanted == 1 ? launch.template operator()<Brain, 1>()
                            : launch.template operator()<Brain, 4>();
            }
            if (has_parts) next += tiles;
            before += tiles;
        }
    }
    if constexpr (work == Work::metric) {
        queue.run(AddTotals{total, all, step.sums}, 1, usual_threads);
    }
}

// At most, whatever the tensors are.
inline std::int64_t workspace_size(const Step& step) {
    constexpr auto words = [](std::size_t bytes) {
        return static_cast<std::int64_t>((bytes + sizeof(Word) - 1) / sizeof(Word));
    };
    std::int64_t tiles = 0;
    for (std::int64_t i = 0; i < step.leaves; ++i) {
        tiles += Cut(step.leaf[i].block).tiles(step.leaf[i].size);
    }
    const std::int64_t each =
        1 + words(sizeof(Entry)) + words(sizeof(Factors)) + 2 * step.probes;
    return checked_multiply(step.leaves, each) + 6 + sums * tiles;
}

template <class Queue>
void run(const Place& place, Work work, const Step& step, double* workspace) {
    Queue queue(place, "hutchinson");
    switch (work) {
        case Work::adahessian:
            return run_work<Work::adahessian>(queue, step, workspace);
        case Work::sophia:
            return run_work<Work::sophia>(queue, step, workspace);
        case Work::metric:
            return run_work<Work::metric>(queue, step, workspace);
        case Work::descent:
            return run_work<Work::descent>(queue, step, workspace);
        case Work::signs:
            return run_work<Work::signs>(queue, step, workspace);
        case Work::moments:
            return run_work<Work::moments>(queue, step, workspace);
    }
}

template <class Queue>
constexpr Calls calls_on{run<Queue>, workspace_size};

}  // namespace curvkern::hutchinson::device
