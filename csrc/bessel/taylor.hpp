// A function of the order v carried with its first N derivatives: forward-mode differentiation.
//
// Used where a recurrence defines the function (Temme's series, the continued fraction of the
// ratio), so that value and derivatives come from one formula.
#pragma once

#include "../core/gamma.hpp"

namespace curvkern::bessel {
CURVKERN_PER_ISA {

using curvkern::abs, curvkern::max, curvkern::select, curvkern::sqrt, curvkern::horner,
    curvkern::log1p;

template <class R, int N>
struct Taylor {
    R d[N + 1];  // value, first and second derivative

    static CURVKERN_HD Taylor constant(R a) {
        Taylor y{};
        y.d[0] = a;
        return y;
    }

    static CURVKERN_HD Taylor variable(R a) {
        Taylor y = constant(a);
        if constexpr (N > 0) y.d[1] = c<R>(1);
        return y;
    }
};

template <class R, int N>
CURVKERN_HD Taylor<R, N> operator+(Taylor<R, N> a, Taylor<R, N> b) {
    for (int i = 0; i <= N; ++i) a.d[i] = a.d[i] + b.d[i];
    return a;
}

template <class R, int N>
CURVKERN_HD Taylor<R, N> operator-(Taylor<R, N> a, Taylor<R, N> b) {
    for (int i = 0; i <= N; ++i) a.d[i] = a.d[i] - b.d[i];
    return a;
}

template <class R, int N>
CURVKERN_HD Taylor<R, N> operator*(Taylor<R, N> a, Taylor<R, N> b) {
    Taylor<R, N> y;
    y.d[0] = a.d[0] * b.d[0];
    if constexpr (N > 0) y.d[1] = a.d[1] * b.d[0] + a.d[0] * b.d[1];
    if constexpr (N > 1)
        y.d[2] = a.d[2] * b.d[0] + c<R>(2) * (a.d[1] * b.d[1]) + a.d[0] * b.d[2];
    return y;
}

template <class R, int N>
CURVKERN_HD Taylor<R, N> operator*(R a, Taylor<R, N> b) {
    for (int i = 0; i <= N; ++i) b.d[i] = a * b.d[i];
    return b;
}

template <class R, int N>
CURVKERN_HD Taylor<R, N> operator+(Taylor<R, N> a, R b) {
    a.d[0] = a.d[0] + b;
    return a;
}

template <class R, int N>
CURVKERN_HD Taylor<R, N> reciprocal(Taylor<R, N> a) {
    Taylor<R, N> y;
    y.d[0] = c<R>(1) / a.d[0];
    if constexpr (N > 0) y.d[1] = -(a.d[1] * y.d[0]) * y.d[0];
    if constexpr (N > 1) y.d[2] = -(a.d[2] * y.d[0] + c<R>(2) * (a.d[1] * y.d[1])) * y.d[0];
    return y;
}

template <class R, int N, int M>
CURVKERN_HD Taylor<R, N> horner(Taylor<R, N> x, const double (&table)[M]) {
    auto sum = Taylor<R, N>::constant(c<R>(table[M - 1]));
    for (int k = M - 2; k >= 0; --k) sum = sum * x + c<R>(table[k]);
    return sum;
}

template <class R, int N>
CURVKERN_HD Taylor<R, N> select(auto mask, Taylor<R, N> yes, Taylor<R, N> no) {
    for (int i = 0; i <= N; ++i) yes.d[i] = curvkern::select(mask, yes.d[i], no.d[i]);
    return yes;
}

}  // namespace isa
}  // namespace curvkern::bessel
