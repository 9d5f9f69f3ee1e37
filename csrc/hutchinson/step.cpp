#include <algorithm>
#include <atomic>
#include <type_traits>
#include <vector>

#include "core/parallel.hpp"
#include "hutchinson/cut.hpp"

namespace curvkern::hutchinson {
namespace {

constexpr int word_bits = 32, block_bits = 128;
// A tile's words, with a block more at either end, and what the widest register draws at once.
constexpr std::int64_t most_words = (tile / block_bits + 2 + 8) * (block_bits / word_bits);

const Kernels& table() {
    return CURVKERN_SELECT_ISA(, ::kernels());
}

int index(Storage storage) {
    return static_cast<int>(storage);
}

template <class T>
T* shifted(T* data, std::int64_t elements, Storage storage) {
    using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
    if (data == nullptr) return nullptr;
    return static_cast<Byte*>(data) + elements * element_size(storage);
}

// The signs from offset on: the first of them is the first bit of word[0].
class Signs {
  public:
    const std::uint32_t* draw(std::int64_t offset, std::int64_t size, Draw draw) {
        const std::int64_t first = offset / block_bits;
        const std::int64_t blocks = (offset + size - 1) / block_bits - first + 1;
        table().philox(draw, static_cast<std::uint64_t>(first), blocks, word_);
        const std::int64_t skipped = offset % block_bits;
        const std::uint32_t* from = word_ + skipped / word_bits;
        const auto shift = static_cast<int>(skipped % word_bits);
        if (shift == 0) return from;
        const std::int64_t words = (size + word_bits - 1) / word_bits;
        for (std::int64_t k = 0; k < words; ++k) {
            word_[k] = from[k] >> shift | from[k + 1] << (word_bits - shift);
        }
        return word_;
    }

  private:
    std::uint32_t word_[most_words + 1] = {};
};

// The tiles of all tensors, numbered through.
class Tiles {
  public:
    explicit Tiles(const Step& step) {
        first_.reserve(static_cast<std::size_t>(step.leaves) + 1);
        first_.push_back(0);
        for (std::int64_t i = 0; i < step.leaves; ++i) {
            cut_.emplace_back(step.leaf[i].block);
            first_.push_back(first_.back() + cut_.back().tiles(step.leaf[i].size));
            elements_ += step.leaf[i].size;
        }
    }
    // visit(leaf, its cut, its tile) for all, shared among threads where it is worth while.
    template <class Visit>
    void each(Visit visit) const {
        const std::int64_t tiles = first_.back();
        const std::int64_t chunk = elements_ < few ? tiles : 1;
        if (tiles == 0) return;
        parallel_chunks(tiles, chunk, nullptr, [&](std::int64_t begin, std::int64_t end) {
            auto leaf = static_cast<std::size_t>(
                std::upper_bound(first_.begin(), first_.end(), begin) - first_.begin() - 1);
            for (std::int64_t at = begin; at < end; ++at) {
                while (at >= first_[leaf + 1]) ++leaf;
                visit(static_cast<std::int64_t>(leaf), cut_[leaf], at - first_[leaf]);
            }
        });
    }
    std::int64_t first(std::int64_t leaf) const {
        return first_[static_cast<std::size_t>(leaf)];
    }
    std::int64_t count() const { return first_.back(); }
    bool has_parts() const {
        return std::any_of(cut_.begin(), cut_.end(),
                           [](const Cut& cut) { return cut.parts > 1; });
    }

  private:
    static constexpr std::int64_t few = 8 * tile;  // elements that one thread takes quicker
    std::vector<std::int64_t> first_;
    std::vector<Cut> cut_;
    std::int64_t elements_ = 0;
};

// D of a tile before its mean: of the only product itself where its sign does not matter.
const void* products(const Step& step, const Leaf& leaf, std::int64_t begin, std::int64_t size,
                     void* D) {
    const bool sign_matters = needs_signs(step, leaf);
    const bool is_copied = leaf.storage == Storage::bfloat16 ||
                           (sign_matters && (step.draws || leaf.z || step.probes > 1));
    if (!is_copied) return shifted(leaf.hz[0], begin, leaf.storage);
    Signs signs;
    for (std::int64_t probe = 0; probe < step.probes; ++probe) {
        const bool draws = sign_matters && leaf.z == nullptr && step.draws;
        const std::uint32_t* words =
            draws ? signs.draw(
                        leaf.offset + begin, size,
                        {step.seed, step.step, step.probe + static_cast<std::uint32_t>(probe)})
                  : nullptr;
        const void* z = sign_matters && leaf.z != nullptr
                            ? shifted(leaf.z[probe], begin, leaf.storage)
                            : nullptr;
        table().product[index(leaf.storage)](shifted(leaf.hz[probe], begin, leaf.storage), z,
                                             words, size, 1 / static_cast<double>(step.probes),
                                             probe > 0, D);
    }
    return D;
}

// The mean of each block that is longer than a tile, at the place of its first part.
std::vector<double> long_means(const Step& step, const Tiles& tiles) {
    std::vector<double> mean;
    if (!tiles.has_parts()) return mean;
    mean.resize(static_cast<std::size_t>(tiles.count()));
    tiles.each([&](std::int64_t at, const Cut& cut, std::int64_t i) {
        const Leaf& leaf = step.leaf[at];
        const std::int64_t begin = cut.begin(i), size = cut.end(i, leaf.size) - begin;
        if (leaf.hz == nullptr || cut.parts == 1 || size <= 0) return;
        alignas(64) double D[tile];
        const void* d = products(step, leaf, begin, size, D);
        mean[static_cast<std::size_t>(tiles.first(at) + i)] =
            table().total[index(state_storage(leaf.storage))](d, size, leaf.is_signed);
    });
    for (std::int64_t at = 0; at < step.leaves; ++at) {
        const Cut cut(step.leaf[at].block);
        if (cut.parts == 1) continue;
        for (std::int64_t i = tiles.first(at); i < tiles.first(at + 1); i += cut.parts) {
            const std::int64_t begin = cut.begin(i - tiles.first(at));
            double* part = mean.data() + i;
            for (std::int64_t k = 1; k < cut.parts; ++k) part[0] += part[k];
            part[0] /= static_cast<double>(std::min(cut.stride, step.leaf[at].size - begin));
        }
    }
    return mean;
}

}  // namespace

void run(const Step& step) {
    const Tiles tiles(step);
    const Kernels& kernels = table();
    const std::vector<double> long_mean = long_means(step, tiles);
    std::vector<double> partial;  // a metric's, of tiles
    if (step.rule == Rule::metric) {
        partial.resize(static_cast<std::size_t>(sums * tiles.count()));
    }
    tiles.each([&](std::int64_t at, const Cut& cut, std::int64_t i) {
        const Leaf& leaf = step.leaf[at];
        const std::int64_t begin = cut.begin(i), size = cut.end(i, leaf.size) - begin;
        if (size <= 0) return;
        const Storage state = state_storage(leaf.storage);
        alignas(64) double buffer[tile], means[tile];
        void* here[3];
        for (int k = 0; k < 3; ++k) here[k] = shifted(leaf.state[k], begin, state);
        void* stale = step.rule == Rule::adahessian ? here[2] : nullptr;
        const void* D = stale;
        double scale = 1;
        if (leaf.hz != nullptr) {
            scale = leaf.factors.scale;
            if (cut.parts > 1) {
                const std::int64_t first = tiles.first(at) + i / cut.parts * cut.parts;
                kernels.constant[index(state)](long_mean[static_cast<std::size_t>(first)], size,
                                               buffer);
                D = buffer;
            } else {
                D = products(step, leaf, begin, size, buffer);
                if (leaf.block > 1 && leaf.block < short_block && stale == nullptr) {
                    kernels.move_by_means[index(leaf.storage)](
                        shifted(leaf.p, begin, leaf.storage),
                        shifted(leaf.g, begin, leaf.storage), D, scale, here, size, leaf.block,
                        leaf.is_signed, leaf.factors);
                    return;
                }
                if (leaf.block > 1) {
                    kernels.means[index(state)](D, size, leaf.block, leaf.is_signed, means);
                    D = means;
                }
            }
            if (stale != nullptr) {
                kernels.magnitudes[index(state)](D, size, scale, stale);
                D = stale;
                scale = 1;
            }
        }
        double* totals = partial.empty()
                             ? nullptr
                             : &partial[static_cast<std::size_t>(sums * (tiles.first(at) + i))];
        kernels.move[static_cast<int>(step.rule)][index(leaf.storage)](
            shifted(leaf.p, begin, leaf.storage), shifted(leaf.g, begin, leaf.storage), D,
            scale, here, size, leaf.factors, totals);
    });
    if (step.rule == Rule::metric) {
        std::fill_n(step.sums, sums, 0.0);
        for (std::size_t i = 0; i < partial.size(); ++i) step.sums[i % sums] += partial[i];
    }
}

void signs(void* out, Storage storage, std::int64_t size, std::int64_t offset, Draw draw) {
    parallel_chunks(size, tile, nullptr, [&](std::int64_t begin, std::int64_t end) {
        Signs signs;
        table().signs[index(storage)](signs.draw(offset + begin, end - begin, draw),
                                      end - begin, shifted(out, begin, storage));
    });
}

void accumulate(const Moments& moments, Draw draw) {
    const Storage state = state_storage(moments.storage);
    parallel_chunks(moments.size, tile, nullptr, [&](std::int64_t begin, std::int64_t end) {
        Signs signs;
        const std::uint32_t* words = moments.z == nullptr
                                         ? signs.draw(moments.offset + begin, end - begin, draw)
                                         : nullptr;
        table().moments[index(moments.storage)](
            shifted(moments.hz, begin, moments.storage),
            shifted(moments.z, begin, moments.storage), words, end - begin, moments.count,
            shifted(moments.mean, begin, state), shifted(moments.square, begin, state));
    });
}

bool is_finite(const void* x, Storage storage, std::int64_t size) {
    std::atomic<bool> finite{true};
    parallel_chunks(size, 8 * tile, nullptr, [&](std::int64_t begin, std::int64_t end) {
        if (!table().finite[index(storage)](shifted(x, begin, storage), end - begin)) {
            finite = false;
        }
    });
    return finite;
}

}  // namespace curvkern::hutchinson
