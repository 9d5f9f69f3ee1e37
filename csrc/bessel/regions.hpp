// Which formula serves a point (v, x). Kernels sort a block of points by region first, so that
// no point pays for a formula it does not need.
//
// The Debye radii come from the exact coefficients: the first terms dropped are below 2^-55
// (2^-26) for every v/x. The longest sum starts a little later where v > x: its coefficients
// alternate there and would cost digits. The tiers are few: a point outside the tier of most of
// its block is evaluated a second time, which costs more than ten more terms for all.
#pragma once

#include "bessel.hpp"
#include "tables.hpp"
#include "taylor.hpp"

namespace curvkern::bessel {
CURVKERN_PER_ISA {

template <class R>
struct Limits {
    static constexpr int tiers = is_double<R> ? 3 : 2;
    static constexpr int terms(int tier) {
        constexpr int f64[] = {24, 12, 6}, f32[] = {11, 5, 5};
        return is_double<R> ? f64[tier] : f32[tier];
    }
    static constexpr double radius(int tier) {
        constexpr double f64[] = {22.5, 41.5, 255.0}, f32[] = {10.4, 19.5, 0};
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
// 2^-60 (2^-31) is not enough beyond v = 128; squares of huge numbers overflow, and so does v/x
// for tiny x (up to v = 128 the power series takes those).
template <class R>
struct Careful {
    static constexpr double band_order = 128.0, band_width = 0x1p-5;
    static constexpr double huge = is_double<R> ? 0x1p500 : 0x1p50;
    // the scaled functions have lost r - x to the rounding of r there
    static constexpr double far = is_double<R> ? 0x1p50 : 0x1p20;
    static constexpr double tiny = is_double<R> ? 0x1p-500 : 0x1p-60, tiny_order = 128.0;
    static constexpr int terms = is_double<R> ? 9 : 5;  // for r >= 75
};

static_assert(Limits<double>::piece(0) == tables::ends_double[0] &&
              Limits<double>::piece(2) == tables::ends_double[2] &&
              Limits<double>::radius(0) == tables::ends_double[3]);
static_assert(Limits<float>::piece(0) == tables::ends_float[0] &&
              Limits<float>::piece(1) == tables::ends_float[1] &&
              Limits<float>::radius(0) == tables::ends_float[2]);

// Codes of the regions; debye + tier for the sums of Limits::terms(tier).
enum Region {
    edge = 0,       // x or v zero, infinite, negative or NaN: IEEE results, one by one
    debye = 1,      // .. 3
    small_low = 4,  // x < Limits::small (Matern: piece(0)), v <= 1
    small_high = 5,
    middle_low = 6,  // between Limits::small and the Debye region, v <= 1
    middle_high = 7,
    kv_power = 8,      // K and Matern: (x/2)^{2v} vanishes beside 1
    recessive = 9,     // second derivatives of log I: K shows in the mixed one
    debye_gamma = 10,  // log 0F1 and Matern in the Debye region, too low for Stirling's series
    hyp_wide = 11,     // log 0F1 where x^2 < 16 (v + 1)
    careful = 12,      // Debye beyond the plain range, see Careful
    hankel = 13,       // v <= 1: Hankel's expansion
    fitted = 14,       // .. 16: v <= 1 below it, by intervals of x; Matern: of any order
    region_count = 17
};

// What a formula is told at run time.
template <class T>
struct Call {
    int region;  // which of those that share the formula
    T scale;     // 1 for the scaled functions, log I - x and log K + x, else 0
};

// Formulas without a loop that the data can make long: any point may run through them.
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
constexpr bool is_matern(Function f) {
    return f == Function::matern;
}
constexpr bool is_ratio(Function f) {
    return f == Function::iv_ratio || f == Function::kv_ratio;
}
constexpr bool is_scaled(Function f) {
    return f == Function::log_ive || f == Function::log_kve;
}

constexpr bool has_recessive(Function f, int order) {
    return order == 2 && !is_k(f) && !is_ratio(f) && !is_hyp(f) && !is_matern(f);
}
// Hankel's expansion and the fits: v <= 1
constexpr bool has_fits(Function f, int order) {
    return order < 2 && !is_ratio(f) && !is_hyp(f) && !is_matern(f);
}
constexpr bool has_zero_band(Function f, int order) {
    return order == 0 && has_fits(f, order);
}

// The scaled functions differ from the plain ones by a term that a run-time factor turns off.
constexpr Function plain(Function f) {
    return f == Function::log_ive   ? Function::log_iv
           : f == Function::log_kve ? Function::log_kv
                                    : f;
}

// The lowest order of derivative with the same regions, but for bounds_of().
constexpr int order_of_regions(Function f, int order) {
    if (is_ratio(f) || is_hyp(f)) return 0;
    return is_matern(f) && order < 2 ? 0 : order;
}

// The lowest of the regions that share a formula; their differences are decided at run time.
constexpr int formula_of(Function f, int order, int code) {
    if (code >= fitted) return fitted;
    if (code >= debye && code < small_low) return debye;
    if (code < small_low || code > middle_high) return code;
    if (is_hyp(f) || f == Function::iv_ratio) return small_low;
    if (is_matern(f)) return code >= middle_low ? middle_low : small_low;
    if (f == Function::log_iv && order == 0) return code == middle_high ? small_high : code;
    return code == small_high ? small_low : code;
}

// Can region_of() name this formula?
constexpr bool has_formula(Function f, int order, int code) {
    if (formula_of(f, order, code) != code) return false;
    switch (code) {
        case middle_low:  // the fits leave nothing to it
            return is_matern(f) ? order == 2 : is_k(f) || !has_fits(f, order);
        case kv_power:
            return is_k(f) || is_matern(f);
        case recessive:
            return has_recessive(f, order);
        case debye_gamma:
            return is_hyp(f) || is_matern(f);
        case hyp_wide:
            return is_hyp(f);
        case careful:
            return !is_matern(f);
        case hankel:
            return has_fits(f, order);
        case fitted:
            return has_fits(f, order) || (is_matern(f) && order < 2);
        default:
            return true;
    }
}

// x < radius(0): the interval of x of the fits, or `code` below the first
template <class R>
CURVKERN_HD R fitted_region(R x, R code) {
    for (int i = 0; i < Limits<R>::pieces; ++i) {
        code = select(x >= c<R>(Limits<R>::piece(i)), c<R>(fitted + i), code);
    }
    return code;
}

// What separates regions and depends on the call.
template <class T>
struct Bounds {
    T margin;  // of the tiers
    T far;     // the radius from which the plain Debye formulas lose
};

// What a sum leaves out grows with every derivative that is taken of it.
template <class T>
constexpr Bounds<T> bounds_of(Function f, int order, T scale) {
    const int derivatives = order + (is_ratio(f) ? 1 : 0);
    const double far = order == 0 && scale != 0 ? Careful<T>::far : Careful<T>::huge;
    return {static_cast<T>(derivatives > 1 ? 1.5 : 1.0), static_cast<T>(far)};
}

// Tiers of the Debye region, and what lies below it.
template <class R>
CURVKERN_HD R debye_tier(R square, Scalar<R> margin) {
    R code = c<R>(debye);
    for (int tier = 1; tier < Limits<R>::tiers; ++tier) {
        const double radius = Limits<R>::radius(tier) * margin;
        code = code + select(square >= c<R>(radius * radius), c<R>(1), c<R>(0));
    }
    return code;
}

template <class R>
CURVKERN_HD auto is_below_debye(R v2, R x2) {
    constexpr double radius = Limits<R>::radius(0);
    return x2 + c<R>(0.8) * v2 < c<R>(radius * radius);
}

// Orders below which log 0F1 and the Matern correlation need log Gamma itself.
template <class R>
inline constexpr double stirling_order = is_double<R> ? 11.0 : 5.0;

// (x/2)^{2v} is below 2^-66 (2^-36), by the exponent bits of x/2; v may be negative
template <class R>
CURVKERN_HD auto is_power(R v, R x) {
    R octaves = fold(x).exponent - c<R>(1);
    return v * octaves < c<R>(is_double<R> ? -33.0 : -18.0);
}

// The Matern correlation is 0 beyond this distance, and that of infinite order beyond this one.
template <class R>
inline constexpr double far_away = is_double<R> ? 1e150 : 1e17;
template <class R>
inline constexpr double huge_order = is_double<R> ? 1e300 : 1e37;

// The Matern correlation takes v = nu and the distance in length scales; z is K's argument.
template <int Order, class R>
CURVKERN_HD R matern_region(R v, R rho, Scalar<R> margin) {
    R z2 = c<R>(2) * v * rho * rho, z = sqrt(c<R>(2) * v) * rho;
    R code = debye_tier(v * v + z2, margin);
    code = select(v < c<R>(stirling_order<R>), c<R>(debye_gamma), code);
    R high = select(v <= c<R>(1), c<R>(0), c<R>(1));
    R kind = select(z < c<R>(Limits<R>::piece(0)), c<R>(small_low), c<R>(middle_low));
    // dM/drho, too, has lost the terms of the other series
    auto power =
        is_power(v - c<R>(1), max(z, c<R>(Float<R>::smallest_normal))) & (v > c<R>(1.1));
    R inner = select(power, c<R>(kv_power), kind + high);
    if constexpr (Order < 2) inner = fitted_region(z, inner);
    code = select(is_below_debye(v * v, z2), inner, code);
    R far = select(v < c<R>(stirling_order<R>), c<R>(far_away<R>), c<R>(1e4));
    auto regular = (rho > c<R>(0)) & (rho < far) & (v > c<R>(0)) & (v < c<R>(huge_order<R>));
    return select(regular, code, c<R>(edge));
}

template <Function F, int Order, class R>
CURVKERN_HD R region_of(R v, R x, Bounds<Scalar<R>> bounds) {
    if constexpr (is_matern(F)) return matern_region<Order>(v, x, bounds.margin);
    using L = Limits<R>;
    using C = Careful<R>;
    R x2 = x * x, v2 = v * v, r2 = x2 + v2;
    R code = debye_tier(r2, bounds.margin);
    auto tiny = x < c<R>(C::tiny);
    auto careful_here =
        (r2 > c<R>(bounds.far * bounds.far)) | (tiny & (v > c<R>(C::tiny_order)));
    if constexpr (has_zero_band(F, Order)) {
        R off = abs(x - c<R>(0.66274341934918) * v);
        careful_here =
            careful_here | ((v > c<R>(C::band_order)) & (off < v * c<R>(C::band_width)));
    }
    code = select(careful_here, c<R>(careful), code);
    if constexpr (has_recessive(F, Order)) {
        // d2/dvdx is near 1/x times v/x, against pi e^-2x
        auto near = (v < c<R>(1)) & (x < c<R>(is_double<R> ? 40.0 : 20.0));
        auto flat =
            (v < c<R>(is_double<R> ? 1e-14 : 1e-6)) & (x < c<R>(is_double<R> ? 400.0 : 60.0));
        code = select(near | flat, c<R>(recessive), code);
    }
    if constexpr (is_hyp(F)) {
        code = select(v < c<R>(stirling_order<R>), c<R>(debye_gamma), code);
        code = select(x2 < c<R>(16) * (v + c<R>(1)), c<R>(hyp_wide), code);
    }
    auto inner = is_below_debye(v2, x2) | (tiny & (v <= c<R>(C::tiny_order)));
    R high = select(v <= c<R>(1), c<R>(0), c<R>(1));
    R kind = select(x < c<R>(L::small(is_k(F))), c<R>(small_low), c<R>(middle_low));
    code = select(inner, kind + high, code);
    if constexpr (is_k(F)) {
        code = select(inner & is_power(v, x) & (x < c<R>(0.06)), c<R>(kv_power), code);
    }
    if constexpr (has_fits(F, Order)) {
        auto here = (v <= c<R>(1)) & (x < c<R>(C::huge));
        R low = select(x >= c<R>(L::radius(0)), c<R>(hankel), fitted_region(x, code));
        code = select(here, low, code);
    }
    auto regular = (x > c<R>(0)) & (x < infinity<R>()) & (v >= c<R>(0)) & (v < infinity<R>());
    return select(regular, code, c<R>(edge));
}

}  // namespace isa
}  // namespace curvkern::bessel
