// The threshold of a row on the CPU; formulas in sparsemax.hpp.
//
// Entries that may still be in the support are moved together, so that each Newton step looks
// at fewer of them.
#pragma once

#include "core/dd.hpp"
#include "sinkhorn/sparsemax.hpp"
#include "sinkhorn/sparsemax_blocks.hpp"

namespace curvkern::sparsemax {
CURVKERN_PER_ISA {

inline constexpr double largest_double = 0x1.fffffffffffffp1023;

// Below all entries with d > t, however d is rounded.
template <class T>
CURVKERN_HD T floor_of(double top, double t) {
    constexpr double eps = is_double<T> ? 0x1p-52 : 0x1p-23;
    return static_cast<T>((top + t) - 4 * eps * (abs(top) + abs(t)));
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

}  // namespace isa
}  // namespace curvkern::sparsemax
