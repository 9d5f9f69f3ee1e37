// e^sigma and e^-sigma, sigma = f log(2/x), with derivatives in f: the start of Temme's series.
#pragma once

#include "taylor.hpp"

namespace curvkern::bessel {
CURVKERN_PER_ISA {

// Scaled, all are times e^-sigma and a factor: of the two e^-2sigma = (x/2)^{2f} is left.
template <class R, int N>
struct Exponentials {
    Taylor<R, N> up, down;    // e^sigma/2, e^-sigma/2
    Taylor<R, N> cosh, sinh;  // their sum, and their difference over f
    R sinh_rest;              // what rounding left of sinh.d[0]
    R up_less, down_less;     // 2 up - 1 and 2 down - 1, where sigma is below mild_sigma
};

template <bool Scaled>
inline constexpr double mild_sigma = Scaled ? 0.17 : 0.34;

// Where sinh(sigma)/f comes from its series: closed forms cancel.
template <class R>
CURVKERN_HD auto needs_series(R sigma) {
    return sigma * sigma < c<R>(is_double<R> ? 1 : 4);
}

// sinh(s)/s = sum s^2k/(2k+1)!, its derivative over s, and its second derivative
template <class R>
struct Shc {
    R value, slope, curvature;
};

template <class R>
CURVKERN_HD Shc<R> shc(R square) {
    constexpr double t[] = {1.0,
                            1.0 / 6,
                            1.0 / 120,
                            1.0 / 5040,
                            1.0 / 362880,
                            1.0 / 39916800,
                            1.0 / 6227020800,
                            1.0 / 1307674368000,
                            1.0 / 355687428096000};
    constexpr double t1[] = {
        2.0 / 6,         4.0 / 120,         6.0 / 5040,           8.0 / 362880,
        10.0 / 39916800, 12.0 / 6227020800, 14.0 / 1307674368000, 16.0 / 355687428096000};
    constexpr double t2[] = {
        2.0 / 6,         12.0 / 120,         30.0 / 5040,           56.0 / 362880,
        90.0 / 39916800, 132.0 / 6227020800, 182.0 / 1307674368000, 240.0 / 355687428096000};
    return {horner(square, t), horner(square, t1), horner(square, t2)};
}

// l = log(2/x) and sigma = f l are pairs: an error in sigma is a relative error of e^sigma.
template <int N, class R>
CURVKERN_HD Exponentials<R, N> exponentials(R f, Pair<R> log_two_over_x, Pair<R> sigma) {
    R l = log_two_over_x.hi, s = sigma.hi;
    R up = exp_normal(sigma), down = c<R>(1) / up;
    R sinh_s = c<R>(0.5) * (up - down), cosh_s = c<R>(0.5) * (up + down);
    auto series = needs_series(s);
    Shc<R> near = shc(s * s);
    R inverse = c<R>(1) / select(series, c<R>(1), s);
    Exponentials<R, N> y{};
    y.up_less = expm1_reduced(sigma);
    y.down_less = -y.up_less * down;
    y.up.d[0] = c<R>(0.5) * up;
    y.down.d[0] = c<R>(0.5) * down;
    y.cosh.d[0] = cosh_s;
    Pair<R> product = two_prod(l, near.value);
    y.sinh.d[0] = select(series, product.hi, sinh_s / select(series, c<R>(1), f));
    y.sinh_rest = select(series, product.lo + log_two_over_x.lo * cosh_s, c<R>(0));
    if constexpr (N > 0) {
        R closed = (cosh_s - sinh_s * inverse) * inverse;
        y.up.d[1] = l * y.up.d[0];
        y.down.d[1] = -l * y.down.d[0];
        y.cosh.d[1] = l * (f * y.sinh.d[0]);
        y.sinh.d[1] = l * l * select(series, s * near.slope, closed);
        if constexpr (N > 1) {
            R closed2 = (sinh_s - c<R>(2) * closed) * inverse;
            y.up.d[2] = l * y.up.d[1];
            y.down.d[2] = -l * y.down.d[1];
            y.cosh.d[2] = l * l * cosh_s;
            y.sinh.d[2] = l * l * l * select(series, near.curvature, closed2);
        }
    }
    return y;
}

// Times scale e^-sigma. e^-2sigma and the scale enter as one exponential: apart they may over-
// or underflow where their product does not.
template <class R>
struct Scale {
    R value;
    Pair<R> log;
};

template <int N, class R>
CURVKERN_HD Exponentials<R, N> scaled_exponentials(R f, Pair<R> log_two_over_x, Pair<R> sigma,
                                                   Scale<R> scale) {
    R s = sigma.hi, l = log_two_over_x.hi, half = c<R>(0.5);
    auto series = needs_series(s);
    R near_s = select(series, s, c<R>(0)), unit = exp_normal(Pair<R>{-near_s, -sigma.lo});
    Pair<R> exponent = add(scale.log, Pair<R>{c<R>(-2) * sigma.hi, c<R>(-2) * sigma.lo});
    const double lowest = is_double<R> ? -700.0 : -80.0;  // nothing beside the other terms
    exponent.hi = max(exponent.hi, c<R>(lowest));
    R square = select(series, unit * unit * scale.value, exp_normal(exponent));
    Shc<R> near = shc(near_s * near_s);
    R inverse = c<R>(1) / select(series, c<R>(1), f);
    Exponentials<R, N> y{};
    y.down_less = expm1_reduced(Pair<R>{c<R>(-2) * s, c<R>(-2) * sigma.lo});
    y.up.d[0] = half * scale.value;
    y.down.d[0] = half * square;
    R down = unit * scale.value;
    Pair<R> product = two_prod(l, down * near.value);
    R closed = (y.up.d[0] - y.down.d[0]) * inverse;
    y.sinh.d[0] = select(series, product.hi, closed);
    y.sinh_rest = select(series, product.lo + log_two_over_x.lo * down, c<R>(0));
    if constexpr (N > 0) {
        R closed1 = (l * square - closed) * inverse;
        R series1 = down * (near_s * near.slope - near.value);
        y.down.d[1] = -l * square;
        y.sinh.d[1] = select(series, l * l * series1, closed1);
        if constexpr (N > 1) {
            R closed2 = c<R>(-2) * (l * l * square + closed1) * inverse;
            R series2 =
                down * ((near.curvature - c<R>(2) * (near_s * near.slope)) + near.value);
            y.down.d[2] = c<R>(2) * (l * l * square);
            y.sinh.d[2] = select(series, l * l * l * series2, closed2);
        }
    }
    y.cosh = y.up + y.down;
    return y;
}

}  // namespace isa
}  // namespace curvkern::bessel
