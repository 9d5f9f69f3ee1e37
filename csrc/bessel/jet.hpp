// A function of order and argument with its first and second derivatives in both.
//
// Used where the chain rule by hand would be longer or lose digits: the Matern correlation of
// large order, and second derivatives of the ratios, which as differences of products
// (Riccati's equation) lose all digits for large arguments and carried along lose none.
#pragma once

#include "taylor.hpp"

namespace curvkern::bessel {
CURVKERN_PER_ISA {

template <class R>
struct Jet {
    R f, v, x, vv, vx, xx;

    static CURVKERN_HD Jet order(R v) {
        Jet y{};
        y.f = v;
        y.v = c<R>(1);
        return y;
    }
    static CURVKERN_HD Jet argument(R x) {
        Jet y{};
        y.f = x;
        y.x = c<R>(1);
        return y;
    }
};

template <class R>
CURVKERN_HD Jet<R> operator+(const Jet<R>& a, const Jet<R>& b) {
    return {a.f + b.f, a.v + b.v, a.x + b.x, a.vv + b.vv, a.vx + b.vx, a.xx + b.xx};
}

template <class R>
CURVKERN_HD Jet<R> operator+(Jet<R> a, R b) {
    a.f = a.f + b;
    return a;
}

template <class R>
CURVKERN_HD Jet<R> operator*(R a, const Jet<R>& b) {
    return {a * b.f, a * b.v, a * b.x, a * b.vv, a * b.vx, a * b.xx};
}

template <class R>
CURVKERN_HD Jet<R> operator*(const Jet<R>& a, const Jet<R>& b) {
    R two = c<R>(2);
    return {a.f * b.f,
            a.v * b.f + a.f * b.v,
            a.x * b.f + a.f * b.x,
            a.vv * b.f + two * (a.v * b.v) + a.f * b.vv,
            (a.vx * b.f + a.f * b.vx) + (a.v * b.x + a.x * b.v),
            a.xx * b.f + two * (a.x * b.x) + a.f * b.xx};
}

template <class R>
CURVKERN_HD Jet<R> reciprocal(const Jet<R>& a) {
    R y = c<R>(1) / a.f, two = c<R>(2);
    R v = a.v * y, x = a.x * y;  // logarithmic derivatives
    return {y,
            -v * y,
            -x * y,
            y * (two * (v * v) - a.vv * y),
            y * (two * (v * x) - a.vx * y),
            y * (two * (x * x) - a.xx * y)};
}

// f(a) from the value and the two derivatives of f at a
template <class R>
CURVKERN_HD Jet<R> compose(R f, R f1, R f2, const Jet<R>& a) {
    return {f,
            f1 * a.v,
            f1 * a.x,
            f1 * a.vv + f2 * (a.v * a.v),
            f1 * a.vx + f2 * (a.v * a.x),
            f1 * a.xx + f2 * (a.x * a.x)};
}

template <class R>
CURVKERN_HD Jet<R> sqrt(const Jet<R>& a) {
    R y = sqrt(a.f), slope = c<R>(0.5) / y;
    return compose(y, slope, c<R>(-0.5) * slope / a.f, a);
}

template <class R>
CURVKERN_HD Jet<R> log1p(const Jet<R>& a) {
    R slope = c<R>(1) / (c<R>(1) + a.f);
    return compose(log1p(a.f), slope, -slope * slope, a);
}

}  // namespace isa
}  // namespace curvkern::bessel
