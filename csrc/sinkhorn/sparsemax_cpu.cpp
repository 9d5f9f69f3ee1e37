// The CPU loops of the projection onto the simplex, in blocks of two float64 registers.
//
// Compiled once per instruction set. The output row is the scratch: entries that may still be
// in the support are moved to its front, so that each Newton step looks at fewer of them.
#include "core/dd.hpp"
#include "sinkhorn/sparsemax.hpp"
#include "sinkhorn/sparsemax_kernels.hpp"

namespace curvkern::sparsemax {
namespace {

using Block = Twin<VectorDouble>;
constexpr int step = Lanes<Block>::width;
constexpr double infinite = __builtin_huge_val();
constexpr double largest_double = 0x1.fffffffffffffp1023;

typedef float HalfFloat __attribute__((vector_size(register_bytes / 2)));

// One register at a time: GCC 12 copies a Twin as a whole through the stack.
CURVKERN_HD Block load(const double* source) {
    Block y;
    __builtin_memcpy(&y.a, source, sizeof(y.a));
    __builtin_memcpy(&y.b, source + step / 2, sizeof(y.b));
    return y;
}

CURVKERN_HD Block load(const float* source) {
    HalfFloat a, b;
    __builtin_memcpy(&a, source, sizeof(a));
    __builtin_memcpy(&b, source + step / 2, sizeof(b));
    return {__builtin_convertvector(a, VectorDouble), __builtin_convertvector(b, VectorDouble)};
}

CURVKERN_HD void store(double* target, Block y) {
    __builtin_memcpy(target, &y.a, sizeof(y.a));
    __builtin_memcpy(target + step / 2, &y.b, sizeof(y.b));
}

CURVKERN_HD void store(float* target, Block y) {
    const HalfFloat a = __builtin_convertvector(y.a, HalfFloat);
    const HalfFloat b = __builtin_convertvector(y.b, HalfFloat);
    __builtin_memcpy(target, &a, sizeof(a));
    __builtin_memcpy(target + step / 2, &b, sizeof(b));
}

// One bit for each entry of a register that satisfies a condition.
template <class M>
CURVKERN_HD unsigned lanes(M mask) {
#if defined(__AVX512F__)
    if constexpr (sizeof(mask[0]) == 8) return _mm512_movepi64_mask((__m512i)mask);
    return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX2__)
    if constexpr (sizeof(mask[0]) == 8) {
        return static_cast<unsigned>(_mm256_movemask_pd((__m256d)mask));
    }
    return static_cast<unsigned>(_mm256_movemask_ps((__m256)mask));
#elif defined(__SSE2__)
    if constexpr (sizeof(mask[0]) == 8)
        return static_cast<unsigned>(_mm_movemask_pd((__m128d)mask));
    return static_cast<unsigned>(_mm_movemask_ps((__m128)mask));
#else
    unsigned bits = 0;
    for (std::size_t i = 0; i < sizeof(mask) / sizeof(mask[0]); ++i) {
        bits |= static_cast<unsigned>(mask[i] != 0) << i;
    }
    return bits;
#endif
}

// The same for a block.
template <class M>
CURVKERN_HD unsigned lanes(Twin<M> mask) {
    return lanes(mask.a) | lanes(mask.b) << (step / 2);
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// Byte i of entry m: where the i-th set bit of m is, in units of 32 bits.
template <int Lanes, int Words>
struct Gather {
    std::uint64_t of[1 << Lanes];

    constexpr Gather() : of{} {
        for (unsigned m = 0; m < 1u << Lanes; ++m) {
            int place = 0;
            for (unsigned lane = 0; lane < Lanes; ++lane) {
                for (unsigned word = 0; (m >> lane & 1) != 0 && word < Words; ++word) {
                    of[m] |= std::uint64_t{lane * Words + word} << 8 * place++;
                }
            }
        }
    }

    CURVKERN_HD __m256i operator[](unsigned m) const {
        return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(of[m])));
    }
};
constexpr Gather<8, 1> gather_floats;
constexpr Gather<4, 2> gather_doubles;
#endif

// Moves the entries of a block whose bit is set to `end`, which lies before the block or at it,
// and returns the new end. Writes no further than the end of the block.
CURVKERN_HD double* keep(const double* source, unsigned set, double* end) {
#if defined(__AVX512F__)
    const Block z = load(source);
    const unsigned a = set & 0xffu, b = set >> 8;
    _mm512_storeu_pd(end, _mm512_maskz_compress_pd(static_cast<__mmask8>(a), (__m512d)z.a));
    end += __builtin_popcount(a);
    _mm512_storeu_pd(end, _mm512_maskz_compress_pd(static_cast<__mmask8>(b), (__m512d)z.b));
    return end + __builtin_popcount(b);
#elif defined(__AVX2__)
    const Block z = load(source);
    const unsigned a = set & 0xfu, b = set >> 4;
    const __m256 first = _mm256_permutevar8x32_ps((__m256)z.a, gather_doubles[a]);
    const __m256 second = _mm256_permutevar8x32_ps((__m256)z.b, gather_doubles[b]);
    _mm256_storeu_pd(end, (__m256d)first);
    end += __builtin_popcount(a);
    _mm256_storeu_pd(end, (__m256d)second);
    return end + __builtin_popcount(b);
#else
    for (; set != 0; set &= set - 1) *end++ = source[__builtin_ctz(set)];
    return end;
#endif
}

CURVKERN_HD float* keep(const float* source, unsigned set, float* end) {
#if defined(__AVX512F__)
    const __m512 z = _mm512_loadu_ps(source);
    _mm512_storeu_ps(end, _mm512_maskz_compress_ps(static_cast<__mmask16>(set), z));
    return end + __builtin_popcount(set);
#elif defined(__AVX2__)
    const __m256 z = _mm256_loadu_ps(source);
    _mm256_storeu_ps(end, _mm256_permutevar8x32_ps(z, gather_floats[set]));
    return end + __builtin_popcount(set);
#else
    for (; set != 0; set &= set - 1) *end++ = source[__builtin_ctz(set)];
    return end;
#endif
}

// Does a block reach above the floor? In the dtype of the row, before anything is converted.
CURVKERN_HD bool reaches(const double* source, double floor) {
    const Block z = load(source), at = c<Block>(floor);
    return lanes((z.a > at.a) | (z.b > at.b)) != 0;
}

CURVKERN_HD bool reaches(const float* source, float floor) {
    VectorFloat z;  // as many entries as a block
    __builtin_memcpy(&z, source, sizeof(z));
    return lanes(z > c<VectorFloat>(floor)) != 0;
}

// Below all entries with d > t, however d is rounded.
template <class T>
CURVKERN_HD T floor_of(double top, double t) {
    constexpr double eps = is_double<T> ? 0x1p-52 : 0x1p-23;
    return static_cast<T>((top + t) - 4 * eps * (abs(top) + abs(t)));
}

CURVKERN_HD double total(Block x) {
    const VectorDouble y = x.a + x.b;
    double sum = y[0] + y[1];
    for (int lane = 2; lane < step / 2; lane += 2) sum += y[lane] + y[lane + 1];
    return sum;
}

// The row of a projection: whole blocks in memory, and the rest padded with -inf.
template <class T>
struct Row {
    const T* data;
    std::int64_t whole;  // entries in whole blocks
    bool has_rest;
    T rest[step];

    Row(const T* z, std::int64_t n) { set(z, n); }

    CURVKERN_HD void set(const T* z, std::int64_t n) {
        data = z;
        whole = n - n % step;
        has_rest = n > whole;
        if (!has_rest) return;
        for (T& entry : rest) entry = static_cast<T>(-infinite);
        __builtin_memcpy(rest, z + whole, sizeof(T) * static_cast<std::size_t>(n - whole));
    }

    template <class Body>
    CURVKERN_HD void for_each(Body body) const {
        for (std::int64_t i = 0; i < whole; i += step) body(load(data + i));
        if (has_rest) body(load(rest));
    }
};

struct Top {
    double value;
    bool has_nan;
};

template <class T>
CURVKERN_HD Top find_top(const Row<T>& row) {
    using V = std::conditional_t<is_double<T>, VectorDouble, VectorFloat>;
    constexpr int width = Lanes<V>::width;
    V top[2] = {c<V>(-infinite), c<V>(-infinite)};
    auto odd = top[0] != top[0];
    const auto look = [&](const T* source) {
        for (int i = 0; i < step; i += width) {
            V x;
            __builtin_memcpy(&x, source + i, sizeof(x));
            V& largest = top[i > 0];
            largest = x > largest ? x : largest;
            odd |= x != x;
        }
    };
    for (std::int64_t i = 0; i < row.whole; i += step) look(row.data + i);
    if (row.has_rest) look(row.rest);
    return {static_cast<double>(largest(max(top[0], top[1]))), any(odd)};
}

// A sum of blocks whose rounding errors are kept: it is what the mass of a row is held to.
struct Sum {
    Block high{}, low{};

    CURVKERN_HD void add(Block x) {
        const Pair<Block> y = two_sum(high, x);
        high = y.hi;
        low = low + y.lo;
    }
};

// The positive parts of d - t; the row becomes the entries that have one, moved to `kept`.
template <class T>
CURVKERN_HD Positive positive_parts(Row<T>& row, double top, double t, T* kept) {
    constexpr std::int64_t group = 8 * step;  // summed plainly
    Sum sum;
    Block part{};
    T* end = kept;
    const Block shift = c<Block>(top), at = c<Block>(t);
    const T floor = floor_of<T>(top, t);
    const auto take = [&](const T* source) {
        const Block rise = (load(source) - shift) - at;
        const auto mask = rise > c<Block>(0);
        part = part + select(mask, rise, c<Block>(0));
        return lanes(mask);
    };
    for (std::int64_t i = 0; i < row.whole;) {
        const std::int64_t stop = row.whole - i < group ? row.whole : i + group;
        for (; i < stop; i += step) {
            if (reaches(row.data + i, floor)) end = keep(row.data + i, take(row.data + i), end);
        }
        sum.add(part);
        part = c<Block>(0);
    }
    if (row.has_rest) {
        for (unsigned set = take(row.rest); set != 0; set &= set - 1) {
            *end++ = row.rest[__builtin_ctz(set)];
        }
        sum.add(part);
    }
    row.set(kept, end - kept);
    return {total(sum.high), total(sum.low), static_cast<double>(end - kept)};
}

// What lies on either side of a pivot: the entries above it, and its neighbours.
struct Split {
    double above, next_below, next_above;
};

template <class T>
CURVKERN_HD Split split(const Row<T>& row, double pivot) {
    const Block at = c<Block>(pivot);
    std::int64_t above = 0;
    Block below = c<Block>(-infinite), next = c<Block>(infinite);
    row.for_each([&](Block z) {
        const auto mask = z > at;
        above += __builtin_popcount(lanes(mask));
        below = max(below, select(mask, c<Block>(-infinite), z));
        next = min(next, select(mask, z, c<Block>(infinite)));
    });
    return {static_cast<double>(above), largest(below), -largest(-next)};
}

// The k largest of a row that has more than k in its support: their cut, then their threshold.
template <class T>
void keep_largest(const Row<T>& row, double mass, std::int64_t k, Threshold& threshold) {
    const double wanted = static_cast<double>(k);
    double high = threshold.top, above_high = 0;
    double low = __builtin_nextafter(threshold.top - mass, -infinite);
    if (low == -infinite) low = -largest_double;
    for (;;) {  // more than k entries are above `low`, fewer above `high`, which is one of them
        double pivot = low / 2 + high / 2;
        if (!(pivot > low && pivot < high)) pivot = low;
        const Split at = split(row, pivot);
        if (at.above == wanted) {
            threshold.cut = pivot;
            break;
        }
        if (at.above < wanted) {
            high = at.next_below;
            above_high = at.above;
        } else if (at.next_above == high) {
            threshold.cut = high;
            threshold.ties = k - static_cast<std::int64_t>(above_high);
            break;
        } else {
            low = pivot;
        }
    }
    const Block cut = c<Block>(threshold.cut), shift = c<Block>(threshold.top);
    const double tied = static_cast<double>(threshold.ties);
    const auto rise = [&](double t) {
        Sum sum;
        row.for_each(
            [&](Block z) { sum.add(select(z > cut, (z - shift) - c<Block>(t), c<Block>(0))); });
        const double tie = tied > 0 ? tied * ((threshold.cut - threshold.top) - t) : 0;
        return Positive{total(sum.high) + tie, total(sum.low), wanted};
    };
    threshold.t = correction(rise(0), mass);
    threshold.low = correction(rise(threshold.t), mass);
}

// All finite. `scratch` has the length of the row.
template <class T>
Threshold find_threshold(Row<T> row, double top, double mass, std::int64_t k, T* scratch) {
    Threshold threshold{top};
    threshold.t = -mass;  // tau is at least as high, as the largest entry alone takes that much
    Positive at = positive_parts(row, top, threshold.t, scratch);
    for (;;) {
        const double before = at.count, move = correction(at, mass);
        threshold.t += move;
        at = positive_parts(row, top, threshold.t, scratch);
        if (!(at.count < before)) break;
    }
    if (at.count > static_cast<double>(k)) {
        keep_largest(row, mass, k, threshold);
    } else {
        threshold.low = correction(at, mass);
    }
    return threshold;
}

// Entries of a block under a threshold; ties are a matter of order, and not here.
CURVKERN_HD Block entries(Block z, const Threshold& h) {
    const Block p = ((z - c<Block>(h.top)) - c<Block>(h.t)) - c<Block>(h.low);
    return select((z > c<Block>(h.cut)) & (p > c<Block>(0)), p, c<Block>(0));
}

template <class T>
T tied_entry(const Threshold& h) {
    const double p = ((h.cut - h.top) - h.t) - h.low;
    return static_cast<T>(p > 0 ? p : 0);
}

// A row at +inf: equal shares for its infinite entries.
template <class T>
double share_infinite(const T* z, double mass, std::int64_t k, T* p, std::int64_t n) {
    std::int64_t count = 0;
    for (std::int64_t i = 0; i < n; ++i) count += z[i] == static_cast<T>(infinite);
    if (count > k) count = k;
    std::int64_t left = count;
    for (std::int64_t i = 0; i < n; ++i) {
        const bool takes = z[i] == static_cast<T>(infinite) && left > 0;
        p[i] = takes ? static_cast<T>(mass / static_cast<double>(count)) : T{0};
        left -= takes;
    }
    return static_cast<double>(count);
}

template <class T>
double write_row(const T* z, const Threshold& h, T* p, std::int64_t n) {
    std::int64_t count = 0;
    const T floor = floor_of<T>(h.top, h.t + h.low);
    const auto put = [&](const T* source, T* target) {
        if (!reaches(source, floor)) return store(target, c<Block>(0));
        const Block y = entries(load(source), h);
        store(target, y);
        count += __builtin_popcount(lanes(y > c<Block>(0)));
    };
    const Row<T> row(z, n);
    for (std::int64_t i = 0; i < row.whole; i += step) put(z + i, p + i);
    if (row.has_rest) {
        T last[step];
        put(row.rest, last);
        __builtin_memcpy(p + row.whole, last,
                         sizeof(T) * static_cast<std::size_t>(n - row.whole));
    }

    std::int64_t ties = h.ties;
    for (std::int64_t i = 0; ties > 0; ++i) {
        if (static_cast<double>(z[i]) != h.cut) continue;
        p[i] = tied_entry<T>(h);
        --ties;
    }
    return static_cast<double>(count + h.ties);
}

template <class T>
void project(const T* z, const double* mass, std::int64_t k, T* p, double* tau, double* support,
             std::int64_t rows, std::int64_t n) {
    for (std::int64_t r = 0; r < rows; ++r, z += n, p += n) {
        const Row<T> row(z, n);
        const Top top = find_top(row);
        tau[r] = top.value;
        support[r] = 0;
        switch (kind_of(top.value, top.has_nan, mass[r])) {
            case Kind::ordinary: {
                const Threshold h = find_threshold(row, top.value, mass[r], k, p);
                tau[r] = h.tau();
                support[r] = write_row(z, h, p, n);
                break;
            }
            case Kind::infinite:
                support[r] = share_infinite(z, mass[r], k, p, n);
                break;
            case Kind::empty:
                for (std::int64_t i = 0; i < n; ++i) p[i] = 0;
                break;
            case Kind::undefined:
                tau[r] = __builtin_nan("");
                for (std::int64_t i = 0; i < n; ++i) p[i] = static_cast<T>(tau[r]);
        }
    }
}

template <class T>
void jacobian(const T* p, const T* grad, T* out, std::int64_t rows, std::int64_t n) {
    for (std::int64_t r = 0; r < rows; ++r, p += n, grad += n, out += n) {
        Block sum{};
        std::int64_t count = 0;
        const Row<T> row(p, n), slope(grad, n);
        const auto add = [&](const T* at, const T* from) {
            const auto mask = load(at) > c<Block>(0);
            sum = sum + select(mask, load(from), c<Block>(0));
            count += __builtin_popcount(lanes(mask));
        };
        for (std::int64_t i = 0; i < row.whole; i += step) add(p + i, grad + i);
        if (row.has_rest) add(row.rest, slope.rest);
        const Block mean = c<Block>(count > 0 ? total(sum) / static_cast<double>(count) : 0);
        const auto put = [&](const T* at, const T* from, T* target) {
            const Block q = load(at);
            const Block y = select(q > c<Block>(0), load(from) - mean, c<Block>(0));
            store(target, select(q >= c<Block>(0), y, q));  // NaN, where the row is
        };
        for (std::int64_t i = 0; i < row.whole; i += step) put(p + i, grad + i, out + i);
        if (!row.has_rest) continue;
        T last[step];
        put(row.rest, slope.rest, last);
        __builtin_memcpy(out + row.whole, last,
                         sizeof(T) * static_cast<std::size_t>(n - row.whole));
    }
}

// The nonzeros of a column in order, `value` and `rows` with room for all.
Column pick_column(const double* z, const Threshold& h, double* value, std::int64_t* rows,
                   std::int64_t n) {
    std::int64_t count = 0, ties = h.ties;
    double square = 0;
    const double floor = floor_of<double>(h.top, h.t + h.low);
    for (std::int64_t i = 0; i < n; i += step) {
        const int entries = static_cast<int>(n - i < step ? n - i : step);
        if (entries == step && !reaches(z + i, floor)) continue;
        for (int lane = 0; lane < entries; ++lane) {
            const double at = z[i + lane], p = ((at - h.top) - h.t) - h.low;
            const bool tied = at == h.cut && ties > 0;
            if (!(p > 0) || !(at > h.cut || tied)) continue;
            ties -= tied;
            value[count] = p;
            rows[count++] = i + lane;
            square += p * p;
        }
    }
    return {h.tau(), square, count, rows, value};
}

void columns(const double* cost, const double* f, const double* mass, std::int64_t k,
             std::int64_t begin, std::int64_t end, std::int64_t n, double* scratch,
             std::int64_t* rows, Visit visit, void* context) {
    double *z = scratch, *kept = scratch + n, *value = scratch + 2 * n;
    for (std::int64_t j = begin; j < end; ++j) {
        const double* price = cost + j * n;
        for (std::int64_t i = 0; i < n; ++i) z[i] = f[i] - price[i];
        const Row<double> row(z, n);
        const double top = find_top(row).value;
        if (mass[j] == 0) {
            visit(context, j, Column{top, 0, 0, rows, value});
        } else {
            const Threshold h = find_threshold(row, top, mass[j], k, kept);
            visit(context, j, pick_column(z, h, value, rows, n));
        }
    }
}

}  // namespace

namespace CURVKERN_ISA_NAMESPACE {
const Kernels& kernels() {
    static const Kernels table{project<double>, project<float>, jacobian<double>,
                               jacobian<float>, columns};
    return table;
}
}  // namespace CURVKERN_ISA_NAMESPACE

}  // namespace curvkern::sparsemax
