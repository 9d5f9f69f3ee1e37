// The loops over a tile. Compiled once per instruction set; everything but kernels() has
// internal linkage.
#include "hutchinson/hutchinson.hpp"
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

template <class T>
CURVKERN_HD double sum(const T* x, std::int64_t size, bool is_signed) {
    double total = 0;
    if (size < 32) {
        for (std::int64_t i = 0; i < size; ++i)
            total += is_signed ? x[i] : __builtin_fabs(x[i]);
    } else if (is_signed) {
#pragma omp simd reduction(+ : total)
        for (std::int64_t i = 0; i < size; ++i) total += x[i];
    } else {
#pragma omp simd reduction(+ : total)
        for (std::int64_t i = 0; i < size; ++i) total += __builtin_fabs(x[i]);
    }
    return total;
}

// Asks for what lies further on: five streams in tiles are more than the hardware's prefetchers
// keep apart, and a step took 1.05 to 1.1 times as long without, a page ahead no less.
template <class T>
CURVKERN_HD void ahead(const T* x) {
    __builtin_prefetch(reinterpret_cast<const char*>(x) + 1024);
}

// Lanes whose number has bit h set are of b, the others of a; and to each is added the lane
// whose number differs in that bit.
template <int h, class R>
CURVKERN_HD R folded(R a, R b) {
    constexpr int width = Lanes<R>::width;
    Bits<R> own, other;
    for (int lane = 0; lane < width; ++lane) {
        const int from = lane & h ? width : 0;
        own[lane] = static_cast<unsigned>(from + lane);
        other[lane] = static_cast<unsigned>(from + (lane ^ h));
    }
    return __builtin_shuffle(a, b, own) + __builtin_shuffle(a, b, other);
}

// Lane l becomes the sum of the lanes of x[l].
template <int h, class R>
CURVKERN_HD R lane_sums(R* x) {
    if constexpr (h == 0) {
        return x[0];
    } else {
        for (int j = 0; j < h; ++j) x[j] = folded<h>(x[j], x[j + h]);
        return lane_sums<h / 2>(x);
    }
}

// The means of as many blocks as there are lanes at a time. A block is read by whole registers,
// of the last of which lanes beyond its end are masked; so are signs. Means are stored as whole
// registers as well, whose ends the next block overwrites. Returns how far it came: reads stay
// within x.
template <class R, class T>
std::int64_t means_by_lanes(const T* x, std::int64_t size, std::int64_t block, bool is_signed,
                            T* to) {
    constexpr int width = Lanes<R>::width;
    const std::int64_t registers = (block + width - 1) / width;
    const Bits<R> all = ~Bits<R>{} >> (is_signed ? 0 : 1);
    Bits<R> last = all;
    for (int lane = 0; lane < width; ++lane) {
        if ((registers - 1) * width + lane >= block) last[lane] = 0;
    }
    const R share = c<R>(1 / static_cast<double>(block));
    std::int64_t begin = 0;
    for (; begin + width * block + width <= size; begin += width * block) {
        R sums[width];
        CURVKERN_UNROLL
        for (int lane = 0; lane < width; ++lane) {
            const T* from = x + begin + lane * block;
            ahead(from);
            R sum = from_bits<R>(bits(load<R>(from + (registers - 1) * width)) & last);
            for (std::int64_t k = 0; k + 1 < registers; ++k) {
                sum += from_bits<R>(bits(load<R>(from + k * width)) & all);
            }
            sums[lane] = sum;
        }
        T mean[width];
        store(mean, lane_sums<width / 2>(sums) * share);
        for (int lane = 0; lane < width; ++lane) {
            const R value = c<R>(0) + mean[lane];
            T* target = to + begin + lane * block;
            for (std::int64_t i = 0; i < block; i += width) store(target + i, value);
        }
    }
    return begin;
}

template <class R, class T>
void means(const void* D, std::int64_t size, std::int64_t block, bool is_signed, void* to) {
    const auto* x = static_cast<const T*>(D);
    auto* out = static_cast<T*>(to);
    std::int64_t begin = 0;
    if (block < 64) begin = means_by_lanes<R>(x, size, block, is_signed, out);
    for (; begin < size; begin += block) {
        const std::int64_t width = size - begin < block ? size - begin : block;
        const auto mean =
            static_cast<T>(sum(x + begin, width, is_signed) / static_cast<double>(width));
        for (std::int64_t i = 0; i < width; ++i) out[begin + i] = mean;
    }
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

template <class S, bool Plain>
void adahessian_tile(S* p, const S* g, const typename Computed<S>::State* D, double D_scale,
                     typename Computed<S>::State* m, typename Computed<S>::State* v,
                     std::int64_t size, const Factors& f) {
    using R = typename Computed<S>::R;
    const AdaHessianRule<R> rule(f, D_scale);
    for_registers<R>(size, [&](std::int64_t i, std::int64_t count) {
        ahead(p + i);
        ahead(g + i);
        if (D != nullptr) ahead(D + i);
        ahead(m + i);
        ahead(v + i);
        const R mean = rule.first(load<R>(m + i, count), load<R>(g + i, count));
        store(m + i, mean, count);
        R square = load<R>(v + i, count);
        if (D != nullptr) {
            square = rule.second(square, load<R>(D + i, count));
            store(v + i, square, count);
        }
        store(p + i, rule.template moved<Plain>(load<R>(p + i, count), mean, square), count);
    });
}

template <class S>
void adahessian(void* p, const void* g, const void* D, double D_scale, void* const* state,
                std::int64_t size, const Factors& f, double*) {
    using State = typename Computed<S>::State;
    const bool plain = f.power == 1 && !f.atan2;
    (plain ? adahessian_tile<S, true>
           : adahessian_tile<S, false>)(static_cast<S*>(p), static_cast<const S*>(g),
                                        static_cast<const State*>(D), D_scale,
                                        static_cast<State*>(state[0]),
                                        static_cast<State*>(state[1]), size, f);
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
                                  CURVKERN_STORAGES(moments),
                                  CURVKERN_STORAGES(finite)};
#undef CURVKERN_STORAGES
    return table;
}
}  // namespace CURVKERN_ISA_NAMESPACE

}  // namespace curvkern::hutchinson
