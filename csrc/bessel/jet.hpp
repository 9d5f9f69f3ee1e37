// A function of order and argument with its first and second derivatives in both.
//
// Second derivatives of the ratios: as differences of products (Riccati's equation) they would
// lose all digits for large arguments, carried along they lose none.
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

}  // namespace isa
}  // namespace curvkern::bessel
