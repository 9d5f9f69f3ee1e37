// Which formula serves a point (v, x). Kernels sort a block of points by region first, so that
// no point pays for a formula it does not need.
//
// The Debye radii come from the exact coefficients: the first terms dropped are below 2^-55
// (2^-26) for every v/x. The longest sum starts a little later where v > x: its coefficients
// alternate there and would cost digits.
#pragma once

#include "../core/math.hpp"
#include "bessel.hpp"

namespace curvkern::bessel {
CURVKERN_PER_ISA {

template <class R>
struct Limits {
    static constexpr int tiers = is_double<R> ? 5 : 3;
    static constexpr int terms(int tier) {
        constexpr int f64[] = {24, 14, 9, 6, 3}, f32[] = {11, 5, 2, 2, 2};
        return is_double<R> ? f64[tier] : f32[tier];
    }
    static constexpr double radius(int tier) {
        constexpr double f64[] = {22.5, 32.5, 75.0, 255.0, 8000.0};
        constexpr double f32[] = {10.4, 19.5, 170.0, 0, 0};
        return is_double<R> ? f64[tier] : f32[tier];
    }
    // lower ends of the intervals of x of the fits for v <= 1
    static constexpr int pieces = is_double<R> ? 3 : 2;
    static constexpr double piece(int i) {
        constexpr double low[] = {1.2, 3.2, 8.5};
        return low[i];
    }
    // below: Temme's series for K, the derivative of the power series for I
    static constexpr double small(bool k) { return k ? 0.06 : 1.2; }
};

// Where the plain Debye formulas lose: on the zero curve of r - v asinh(v/x), an angle good to
// 2^-60 (2^-31) is not enough beyond v = 64; squares of huge numbers overflow, and so does v/x for
// tiny x (up to v = 128 the power series takes those).
template <class R>
struct Careful {
    static constexpr double band_order = 64.0, band_width = 0x1p-5;
    static constexpr double huge = is_double<R> ? 0x1p500 : 0x1p50;
    static constexpr double tiny = is_double<R> ? 0x1p-500 : 0x1p-60;
    static constexpr int terms = is_double<R> ? 9 : 5;  // for r >= 75
};

// Codes of the regions; debye + tier for the sums of Limits::terms(tier).
enum Region {
    edge = 0,       // x or v outside (0, inf) x [0, inf): IEEE results, one by one
    debye = 1,      // .. 5
    small_low = 6,  // x < Limits::small; low and high order
    small_high = 7,
    middle_low = 8,  // between Limits::small and the Debye region
    middle_high = 9,
    special = 10,  // see evaluate_special()
    wide_series = 11,
    careful = 12,  // Debye beyond the plain range: r - v asinh(v/x) near zero, huge v or x
    hankel = 13,  // v <= 1: Hankel's expansion
    fitted = 14,  // .. 16: v <= 1 below it, by intervals of x
    region_count = 17
};

// Formulas without a loop that depends on the data: any point may run through them.
template <class R>
constexpr bool is_straight(int code) {
    return code >= hankel || (code >= debye && code < debye + Limits<R>::tiers);
}

constexpr bool is_k(Function f) {
    return f == Function::log_kv || f == Function::log_kve || f == Function::kv_ratio;
}
constexpr bool is_hyp(Function f) {
    return f == Function::log_hyp0f1;
}
constexpr bool is_ratio(Function f) {
    return f == Function::iv_ratio || f == Function::kv_ratio;
}
constexpr bool is_scaled(Function f) {
    return f == Function::log_ive || f == Function::log_kve;
}

constexpr bool is_slope_of_i(Function f, int order) {
    return order > 0 && !is_k(f) && !is_ratio(f) && !is_hyp(f);
}
constexpr bool has_hankel(Function f, int order) {
    return order < 2 && !is_ratio(f) && !is_hyp(f);
}
constexpr bool has_fit(Function f, int order) {
    return has_hankel(f, order) && (order == 1 || is_k(f) || is_scaled(f));
}
constexpr bool has_zero_band(Function f, int order) {
    return order == 0 && has_hankel(f, order) && !is_scaled(f);
}

template <Function F, int Order, class R>
CURVKERN_HD R region_of(R v, R x) {
    using L = Limits<R>;
    constexpr bool slope_of_i = is_slope_of_i(F, Order);
    R x2 = x * x, v2 = v * v, r2 = x2 + v2;
    R code = c<R>(debye);
    for (int tier = 1; tier < L::tiers; ++tier) {
        code = code + select(r2 >= c<R>(L::radius(tier) * L::radius(tier)), c<R>(1), c<R>(0));
    }
    using C = Careful<R>;
    auto tiny = x < c<R>(C::tiny);
    auto huge = (r2 > c<R>(C::huge * C::huge)) | (tiny & (v > c<R>(128)));
    if constexpr (has_zero_band(F, Order)) {
        R off = abs(x - c<R>(0.66274341934918) * v);
        auto band = (v > c<R>(C::band_order)) & (off < v * c<R>(C::band_width));
        code = select(band | huge, c<R>(careful), code);
    } else {
        code = select(huge, c<R>(careful), code);
    }
    if constexpr (slope_of_i && Order > 1) {
        // the recessive solution K shows in d/dv log I: v/x against pi e^-2x
        auto near = (v < c<R>(1)) & (x < c<R>(is_double<R> ? 40.0 : 20.0));
        auto tiny =
            (v < c<R>(is_double<R> ? 1e-14 : 1e-6)) & (x < c<R>(is_double<R> ? 400.0 : 60.0));
        code = select(near | tiny, c<R>(special), code);
    }
    if constexpr (is_hyp(F)) {
        code = select(v < c<R>(is_double<R> ? 11.0 : 5.0), c<R>(special), code);
        code = select(x2 < c<R>(16) * (v + c<R>(1)), c<R>(wide_series), code);
    }
    auto inner =
        (x2 + c<R>(0.8) * v2 < c<R>(L::radius(0) * L::radius(0))) | (tiny & (v <= c<R>(128)));
    R low = select(v <= c<R>(slope_of_i ? 0.5 : 1.0), c<R>(0), c<R>(1));
    R kind = select(x < c<R>(L::small(is_k(F))), c<R>(small_low), c<R>(middle_low));
    code = select(inner, kind + low, code);
    if constexpr (is_k(F)) {
        // (x/2)^{2v} below 2^-64 (2^-34): log2 from the exponent bits, an octave to spare
        R octaves = fold(x).exponent - c<R>(1);
        auto power = (v * octaves < c<R>(is_double<R> ? -33.0 : -18.0)) & (x < c<R>(0.06));
        code = select(inner & power, c<R>(special), code);
    }
    if constexpr (has_hankel(F, Order)) {
        R by_x = select(x < c<R>(L::radius(0)), code, c<R>(hankel));
        if constexpr (has_fit(F, Order)) {
            for (int i = L::pieces - 1; i >= 0; --i) {
                double end = i + 1 < L::pieces ? L::piece(i + 1) : L::radius(0);
                auto inside = (x >= c<R>(L::piece(i))) & (x < c<R>(end));
                by_x = select(inside, c<R>(fitted + i), by_x);
            }
        }
        code = select((v <= c<R>(1)) & (x < c<R>(C::huge)), by_x, code);
    }
    auto regular = (x > c<R>(0)) & (x < infinity<R>()) & (v >= c<R>(0)) & (v < infinity<R>());
    return select(regular, code, c<R>(edge));
}

}  // namespace isa
}  // namespace curvkern::bessel
