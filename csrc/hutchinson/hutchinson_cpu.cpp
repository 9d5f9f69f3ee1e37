// The loops over a tile. Compiled once per instruction set; everything but kernels() has
// internal linkage.
#include "hutchinson/hutchinson.hpp"
#include "hutchinson/means.hpp"
#include "hutchinson/rules.hpp"
#include "hutchinson/signs.hpp"
#include "hutchinson/storage.hpp"

namespace curvkern::hutchinson {
namespace {

void philox(Draw draw, std::uint64_t first, std::int64_t blocks, std::uint32_t* words) {
    constexpr std::int64_t lanes = Lanes<VectorDouble>::width;
    for (std::int64_t b = 0; b < blocks; b += lanes) {
        philox_blocks(draw, first + static_cast<std::uint64_t>(b), words + 4 * b);
    }
}

template <class S>
void signs(const std::uint32_t* words, std::int64_t size, void* out) {
    using R = typename Computed<S>::R;
    for_registers<R>(size, [&](std::int64_t i, std::int64_t count) {
        const R one = c<R>(1);
        store(static_cast<S*>(out) + i, from_bits<R>(bits(one) | sign_bits<R>(words, i)),
              count);
    });
}

// z hz
template <class R, class S>
CURVKERN_HD R signed_product(const void* hz, const void* z, const std::uint32_t* words,
                             std::int64_t i, std::int64_t count) {
    const R h = load<R>(static_cast<const S*>(hz) + i, count);
    if (z != nullptr) return h * load<R>(static_cast<const S*>(z) + i, count);
    if (words != nullptr) return from_bits<R>(bits(h) ^ sign_bits<R>(words, i));
    return h;
}

template <class S>
void product(const void* hz, const void* z, const std::uint32_t* words, std::int64_t size,
             double weight, bool adds, void* D) {
    using R = typename Computed<S>::R;
    auto* to = static_cast<typename Computed<S>::State*>(D);
    for_registers<R>(size, [&](std::int64_t i, std::int64_t count) {
        const R y = c<R>(weight) * signed_product<R, S>(hz, z, words, i, count);
        store(to + i, adds ? y + load<R>(to + i, count) : y, count);
    });
}

template <class R, class T>
void means(const void* D, std::int64_t size, std::int64_t block, bool is_signed, void* to) {
    block_means<R>(static_cast<const T*>(D), size, block, is_signed, static_cast<T*>(to));
}

template <class T>
double total(const void* D, std::int64_t size, bool is_signed) {
    return sum(static_cast<const T*>(D), size, is_signed);
}

template <class T>
void magnitudes(const void* from, std::int64_t size, double scale, void* to) {
    const T factor = static_cast<T>(scale);
    for (std::int64_t i = 0; i < size; ++i) {
        const T x = static_cast<const T*>(from)[i] * factor;
        static_cast<T*>(to)[i] = x < 0 ? -x : x;
    }
}

template <class T>
void constant(double value, std::int64_t size, void* to) {
    for (std::int64_t i = 0; i < size; ++i) static_cast<T*>(to)[i] = static_cast<T>(value);
}

// A tile of AdaHessian.
template <class S, bool Plain>
struct AdaHessianTile {
    using R = typename Computed<S>::R;
    using State = typename Computed<S>::State;
    S* p;
    const S* g;
    State *m, *v;
    AdaHessianRule<R> rule;

    AdaHessianTile(void* to, const void* from, void* const* state, const Factors& f,
                   double D_scale)
        : p(static_cast<S*>(to)),
          g(static_cast<const S*>(from)),
          m(static_cast<State*>(state[0])),
          v(static_cast<State*>(state[1])),
          rule(f, D_scale) {}

    // `count` elements from i on; `averaged(v)` is their new v.
    template <class Averaged>
    CURVKERN_HD void move(std::int64_t i, std::int64_t count, Averaged averaged) const {
        ahead(p + i);
        ahead(g + i);
        ahead(m + i);
        ahead(v + i);
        const R mean = rule.first(load<R>(m + i, count), load<R>(g + i, count));
        store(m + i, mean, count);
        const R square = averaged(load<R>(v + i, count));
        store(p + i, rule.template moved<Plain>(load<R>(p + i, count), mean, square), count);
    }
    CURVKERN_HD void move_with(R D, std::int64_t i, std::int64_t count) const {
        move(i, count, [&](R before) {
            const R square = rule.second(before, D);
            store(v + i, square, count);
            return square;
        });
    }
    void without_D(std::int64_t size) const {
        for_registers<R>(size, [&](std::int64_t i, std::int64_t count) {
            move(i, count, [](R before) { return before; });
        });
    }
    void with(const State* D, std::int64_t begin, std::int64_t size) const {
        for_registers<R>(size - begin, [&](std::int64_t at, std::int64_t count) {
            ahead(D + at);
            move_with(load<R>(D + at, count), begin + at, count);
        });
    }
    void with_means(const State* D, std::int64_t size, std::int64_t block,
                    bool is_signed) const {
        constexpr std::int64_t width = Lanes<R>::width;
        const std::int64_t together = width * block;
        const BlockMeans<R> blocks(block, is_signed);
        State last[width * short_block + width];  // copied, as more than it is read
        std::int64_t begin = 0;
        for (; begin + together <= size; begin += together) {
            const State* x = D + begin;
            if (begin + together + width > size) {
                copy(x, together, last);
                x = last;
            }
            const R mean = blocks.of(x);
            for (std::int64_t k = 0; k < block; ++k) {
                move_with(blocks.spread(mean, k), begin + k * width, width);
            }
        }
        if (begin == size) return;
        block_means<R>(D + begin, size - begin, block, is_signed, last);
        with(last, begin, size);
    }

  private:
    static void copy(const State* from, std::int64_t size, State* to) {
        __builtin_memcpy(to, from, sizeof(State) * static_cast<std::size_t>(size));
        __builtin_memset(to + size, 0, sizeof(R));
    }
};

template <class S, bool Plain>
void adahessian_tile(void* p, const void* g, const void* D, double D_scale, void* const* state,
                     std::int64_t size, std::int64_t block, bool is_signed, const Factors& f) {
    const AdaHessianTile<S, Plain> tile(p, g, state, f, D_scale);
    const auto* d = static_cast<const typename Computed<S>::State*>(D);
    if (d == nullptr) {
        tile.without_D(size);
    } else if (block > 1) {
        tile.with_means(d, size, block, is_signed);
    } else {
        tile.with(d, 0, size);
    }
}

template <class S>
void adahessian_by_means(void* p, const void* g, const void* D, double D_scale,
                         void* const* state, std::int64_t size, std::int64_t block,
                         bool is_signed, const Factors& f) {
    const bool plain = f.power == 1 && !f.atan2;
    (plain ? adahessian_tile<S, true> : adahessian_tile<S, false>)(p, g, D, D_scale, state,
                                                                   size, block, is_signed, f);
}

template <class S>
void adahessian(void* p, const void* g, const void* D, double D_scale, void* const* state,
                std::int64_t size, const Factors& f, double*) {
    adahessian_by_means<S>(p, g, D, D_scale, state, size, 1, false, f);
}

template <class S>
void sophia(void* p, const void* g, const void* D, double, void* const* state,
            std::int64_t size, const Factors& f, double*) {
    using R = typename Computed<S>::R;
    using State = typename Computed<S>::State;
    auto *m = static_cast<State*>(state[0]), *h = static_cast<State*>(state[1]);
    const SophiaRule<R> rule(f);
    for_registers<R>(size, [&](std::int64_t i, std::int64_t count) {
        const R mean =
            rule.first(load<R>(m + i, count), load<R>(static_cast<const S*>(g) + i, count));
        store(m + i, mean, count);
        R curvature = load<R>(h + i, count);
        if (D != nullptr) {
            curvature =
                rule.curvature(curvature, load<R>(static_cast<const State*>(D) + i, count));
            store(h + i, curvature, count);
        }
        S* to = static_cast<S*>(p) + i;
        store(to, rule.moved(load<R>(to, count), mean, curvature), count);
    });
}

template <class R>
CURVKERN_HD double lane_total(R x) {
    double total = 0;
    for (int lane = 0; lane < Lanes<R>::width; ++lane) total += x[lane];
    return total;
}

// Sums of a register's lanes go to float64 after a few registers.
template <class S>
void metric(void* p, const void* g, const void* D, double, void* const* state,
            std::int64_t size, const Factors& f, double* totals) {
    using R = typename Computed<S>::R;
    using State = typename Computed<S>::State;
    constexpr std::int64_t together = 16 * Lanes<R>::width;
    auto* average = static_cast<State*>(state[0]);
    const auto *last_p = static_cast<const State*>(state[1]),
               *last_g = static_cast<const State*>(state[2]);
    const MetricRule<R> rule(f);
    for (std::int64_t begin = 0; begin < size; begin += together) {
        R length = {}, change = {}, square = {};
        const std::int64_t some = size - begin < together ? size - begin : together;
        for_registers<R>(some, [&](std::int64_t at, std::int64_t count) {
            const std::int64_t i = begin + at;
            const R mean = rule.average(load<R>(average + i, count),
                                        load<R>(static_cast<const State*>(D) + i, count));
            store(average + i, mean, count);
            // Lanes beyond the end have g = 0, and p that is its own last one.
            const R B = rule.metric(mean);
            const R gradient = rule.gradient(load<R>(static_cast<const S*>(g) + i, count));
            square += gradient * gradient / B;
            if (!f.known) return;
            const R dw = load<R>(static_cast<const S*>(p) + i, count) -
                         load<R>(last_p + i, count),
                    dg = gradient - load<R>(last_g + i, count);
            length += dw * B * dw;
            change += dg / B * dg;
        });
        totals[0] += lane_total(length);
        totals[1] += lane_total(change);
        totals[2] += lane_total(square);
    }
}

template <class S>
void descent(void* p, const void* g, const void*, double, void* const* state, std::int64_t size,
             const Factors& f, double*) {
    using R = typename Computed<S>::R;
    using State = typename Computed<S>::State;
    const auto* average = static_cast<const State*>(state[0]);
    auto *last_p = static_cast<State*>(state[1]), *last_g = static_cast<State*>(state[2]);
    const MetricRule<R> rule(f);
    for_registers<R>(size, [&](std::int64_t i, std::int64_t count) {
        S* to = static_cast<S*>(p) + i;
        const R gradient = rule.gradient(load<R>(static_cast<const S*>(g) + i, count)),
                before = load<R>(to, count);
        if (last_p != nullptr) {
            store(last_p + i, before, count);
            store(last_g + i, gradient, count);
        }
        store(to, rule.moved(before, gradient, rule.metric(load<R>(average + i, count))),
              count);
    });
}

template <class S>
void moments(const void* hz, const void* z, const std::uint32_t* words, std::int64_t size,
             std::int64_t count, void* mean, void* square) {
    using R = typename Computed<S>::R;
    using State = typename Computed<S>::State;
    auto *first = static_cast<State*>(mean), *second = static_cast<State*>(square);
    const R share = c<R>(1 / static_cast<double>(count));
    for_registers<R>(size, [&](std::int64_t i, std::int64_t at_once) {
        const R D = signed_product<R, S>(hz, z, words, i, at_once);
        const R before = load<R>(first + i, at_once), off = D - before;
        const R after = before + off * share;
        store(first + i, after, at_once);
        if (second != nullptr) {
            store(second + i, load<R>(second + i, at_once) + off * (D - after), at_once);
        }
    });
}

template <class S>
bool finite(const void* x, std::int64_t size) {
    using R = typename Computed<S>::R;
    R zero = {};
    for_registers<R>(size, [&](std::int64_t i, std::int64_t count) {
        zero += load<R>(static_cast<const S*>(x) + i, count) * c<R>(0);
    });
    return !any(zero != c<R>(0));
}

}  // namespace

namespace CURVKERN_ISA_NAMESPACE {
const Kernels& kernels() {
#define CURVKERN_STORAGES(f)          \
    {                                 \
        f<double>, f<float>, f<Brain> \
    }
    static const Kernels table = {philox,
                                  CURVKERN_STORAGES(signs),
                                  CURVKERN_STORAGES(product),
                                  {means<VectorDouble, double>, means<VectorFloat, float>},
                                  {total<double>, total<float>},
                                  {magnitudes<double>, magnitudes<float>},
                                  {constant<double>, constant<float>},
                                  {CURVKERN_STORAGES(adahessian), CURVKERN_STORAGES(sophia),
                                   CURVKERN_STORAGES(metric), CURVKERN_STORAGES(descent)},
                                  CURVKERN_STORAGES(adahessian_by_means),
                                  CURVKERN_STORAGES(moments),
                                  CURVKERN_STORAGES(finite)};
#undef CURVKERN_STORAGES
    return table;
}
}  // namespace CURVKERN_ISA_NAMESPACE

}  // namespace curvkern::hutchinson
