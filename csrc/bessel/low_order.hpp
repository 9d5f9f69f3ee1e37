// Logarithms and first derivatives of I_v(x) and K_v(x) for v <= 1, 1.2 <= x.
//
// K and the even part of I are entire in w = v^2:
//   E = (I_v + I_-v)/2,  I_v = E - sin(pi v)/pi K_v            (DLMF 10.27.2)
//   E = e^x/sqrt(2 pi x) e^e,  K = sqrt(pi/(2 x)) e^-x e^k
// e and k vanish at v = 1/2. From Limits::radius(0) on they are Hankel's expansion,
// e = H(1/x), k = H(-1/x) (DLMF 10.40.1-2); below, polynomials in 1/x and w on short intervals,
// all cut at 2^-59 (2^-29). d/dv log I is a sum of terms that hardly cancel, even where it
// falls to -K_0/I_0 ~ -pi e^-2x as v -> 0.
#pragma once

#include "tables.hpp"
#include "taylor.hpp"

namespace curvkern::bessel {
CURVKERN_PER_ISA {

// A polynomial in t and w with its first derivatives.
template <class R>
struct Surface {
    R f, t, w;
};

// Rows First, First + Stride, .. of a table, as a polynomial in t^Stride.
template <int Order, int First, int Stride, int Rows, int Columns, class R>
CURVKERN_HD Surface<R> surface(R t, R w, const double (&table)[Rows][Columns],
                               const int (&length)[Rows]) {
    constexpr int last = First + (Rows - 1 - First) / Stride * Stride;
    Surface<R> y{};
    CURVKERN_UNROLL
    for (int i = last; i >= First; i -= Stride) {
        R row = c<R>(table[i][length[i] - 1]), slope = c<R>(0);
        for (int j = length[i] - 2; j >= 0; --j) {
            if constexpr (Order > 0) slope = slope * w + row;
            row = row * w + c<R>(table[i][j]);
        }
        if constexpr (Order > 0) {
            y.t = y.t * t + y.f;
            y.w = y.w * t + slope;
        }
        y.f = y.f * t + row;
    }
    return y;
}

#define CURVKERN_FIT(table) \
    return surface<Order, 0, 1>(q - c<R>(table##_centre), w - c<R>(0.5), table, table##_length)

// The fitted pieces, called: several functions use each.
template <int Piece, int Order, class R>
CURVKERN_SHARED Surface<R> kv_piece(R q, R w) {
    using namespace tables;
    if constexpr (is_double<R>) {
        if constexpr (Piece == 0) CURVKERN_FIT(kv_double_0);
        if constexpr (Piece == 1) CURVKERN_FIT(kv_double_1);
        if constexpr (Piece == 2) CURVKERN_FIT(kv_double_2);
    } else {
        if constexpr (Piece == 0) CURVKERN_FIT(kv_float_0);
        if constexpr (Piece == 1) CURVKERN_FIT(kv_float_1);
    }
}

template <int Piece, int Order, class R>
CURVKERN_SHARED Surface<R> even_iv_piece(R q, R w) {
    using namespace tables;
    if constexpr (is_double<R>) {
        if constexpr (Piece == 0) CURVKERN_FIT(even_iv_double_0);
        if constexpr (Piece == 1) CURVKERN_FIT(even_iv_double_1);
        if constexpr (Piece == 2) CURVKERN_FIT(even_iv_double_2);
    } else {
        if constexpr (Piece == 0) CURVKERN_FIT(even_iv_float_0);
        if constexpr (Piece == 1) CURVKERN_FIT(even_iv_float_1);
    }
}
#undef CURVKERN_FIT

template <int Order, class R>
CURVKERN_HD Surface<R> kv_surface(R q, R w, int piece) {
    if constexpr (is_double<R>) {
        if (piece == 2) return kv_piece<2, Order>(q, w);
    }
    return piece == 1 ? kv_piece<1, Order>(q, w) : kv_piece<0, Order>(q, w);
}

template <int Order, class R>
CURVKERN_HD Surface<R> even_iv_surface(R q, R w, int piece) {
    if constexpr (is_double<R>) {
        if (piece == 2) return even_iv_piece<2, Order>(q, w);
    }
    return piece == 1 ? even_iv_piece<1, Order>(q, w) : even_iv_piece<0, Order>(q, w);
}

// H(q) / (q (w - 1/4)) = even(q^2) + q odd(q^2)
template <int Order, class R>
struct Hankel {
    Surface<R> even, odd;
};

template <int Order, class R>
CURVKERN_HD Hankel<Order, R> hankel_surface(R q, R w) {
    R square = q * q;
    w = w - c<R>(0.5);
    if constexpr (is_double<R>) {
        using tables::hankel_double, tables::hankel_double_length;
        return {surface<Order, 0, 2>(square, w, hankel_double, hankel_double_length),
                surface<Order, 1, 2>(square, w, hankel_double, hankel_double_length)};
    } else {
        using tables::hankel_float, tables::hankel_float_length;
        return {surface<Order, 0, 2>(square, w, hankel_float, hankel_float_length),
                surface<Order, 1, 2>(square, w, hankel_float, hankel_float_length)};
    }
}

// -log(2 pi r)/2 for I, log(pi / (2 r))/2 for K. The constant is split so that its leading part
// and the exponent's share add exactly.
template <class R>
CURVKERN_HD Pair<R> log_circle(bool k, Folded<R> r) {
    const double hi =
        is_double<R> ? (k ? -0x1.ce6bb25cp-2 : 0x1.d67f1c86p0) : (k ? -0x1.ce8p-2 : 0x1.d68p0);
    const double lo = is_double<R> ? (k ? 7.976431919561874e-11 : 6.90480230046292e-11)
                                   : (k ? 7.745096054513528e-05 : -1.355859065451644e-05);
    Pair<R> y = log_folded(r, hi, lo);
    return {c<R>(-0.5) * y.hi, c<R>(-0.5) * y.lo};
}

// log I or log K from e or k
template <bool K, class R>
CURVKERN_HD R low_order_value(R x, R rest, Scalar<R> scale) {
    Pair<R> half_log = log_circle(K, fold_normal(x));
    Pair<R> y = two_sum((K ? scale - 1 : 1 - scale) * x, half_log.hi);
    return y.hi + (y.lo + (half_log.lo + rest));
}

template <bool K, class R>
CURVKERN_HD R hankel_value(R v, R x, Scalar<R> scale) {
    R q = c<R>(1) / x, w = v * v;
    Hankel<0, R> h = hankel_surface<0>(q, w);
    R up = K ? -q : q;
    R rest = up * (w - c<R>(0.25)) * (h.even.f + up * h.odd.f);
    return low_order_value<K>(x, rest, scale);
}

template <class R>
CURVKERN_HD R fitted_kv_value(R v, R x, int piece, Scalar<R> scale) {
    R w = v * v;
    R k = (w - c<R>(0.25)) * kv_surface<0>(c<R>(1) / x, w, piece).f;
    return low_order_value<true>(x, k, scale);
}

// log I = x - log(2 pi x)/2 + log(e^e - sin(pi v) e^(k - 2x))
template <class R>
CURVKERN_HD R fitted_iv_value(R v, R x, int piece, Scalar<R> scale) {
    R q = c<R>(1) / x, w = v * v, off = w - c<R>(0.25);
    R k = off * kv_surface<0>(q, w, piece).f, e = off * even_iv_surface<0>(q, w, piece).f;
    R recessive = cos_sin_pi(v).sin * exp_normal(k - c<R>(2) * x);
    return low_order_value<false>(x, log1p(e - recessive), scale);
}

// e and k: the derivatives in w and x, and k - e.
template <class R>
struct LowOrder {
    R e_w, e_x, k_w, k_x;
    R exponent;  // log(K/E) = log(pi) - 2x + exponent; for the fits less their e
    R e_factor;  // e^e of the fits
};

template <class R>
CURVKERN_HD LowOrder<R> hankel_slopes(R v, R x) {
    R q = c<R>(1) / x, w = v * v, off = w - c<R>(0.25), q2 = q * q;
    Hankel<1, R> h = hankel_surface<1>(q, w);
    R even = h.even.f, odd = q * h.odd.f;
    R even_w = even + off * h.even.w, odd_w = odd + off * (q * h.odd.w);
    // d(q f(q))/dq for both parts; t = q^2
    R even_q = even + c<R>(2) * q2 * h.even.t;
    R odd_q = c<R>(2) * (odd + q2 * (q * h.odd.t));
    R back = -q2 * off;
    return {q * (even_w + odd_w),    back * (even_q + odd_q),   q * (odd_w - even_w),
            back * (odd_q - even_q), c<R>(-2) * q * off * even, c<R>(1)};
}

template <class R>
CURVKERN_HD LowOrder<R> fitted_slopes(R v, R x, int piece) {
    R q = c<R>(1) / x, w = v * v, off = w - c<R>(0.25), back = -(q * q) * off;
    Surface<R> k = kv_surface<1>(q, w, piece), e = even_iv_surface<1>(q, w, piece);
    R factor = c<R>(1) + off * e.f, inverse = c<R>(1) / factor;
    return {(e.f + off * e.w) * inverse,
            back * e.t * inverse,
            k.f + off * k.w,
            back * k.t,
            off * k.f,
            factor};
}

template <bool K, class R>
CURVKERN_HD void write_low_order_slopes(R v, R x, const LowOrder<R>& y, Scalar<R> scale,
                                        R* out) {
    R half = c<R>(0.5) / x;
    if constexpr (K) {
        out[0] = c<R>(2) * v * y.k_w;
        out[1] = (y.k_x - half) - (1 - scale);
        return;
    }
    Pair<R> exponent = two_sum(c<R>(-2) * x, y.exponent);
    // K beside v/(2x): below its last digit it is dropped, as processors take a hundred cycles
    // over the subnormal numbers that it ends in
    auto lost = (exponent.hi < c<R>(is_double<R> ? -200.0 : -60.0)) &
                (v > c<R>(is_double<R> ? 1e-60 : 1e-15));
    R decay = exp(select(lost, c<R>(0), exponent.hi)) * (c<R>(1) + exponent.lo);
    R k_over_e = select(lost, c<R>(0), c<R>(pi) * decay / y.e_factor);
    CosSin<R> turn = cos_sin_pi(v);
    R sine = turn.sin * c<R>(1 / pi);
    R over_i = c<R>(1) / (c<R>(1) - sine * k_over_e);
    R slope = c<R>(2) * v * (y.e_w - k_over_e * (sine * y.k_w));
    out[0] = (slope - k_over_e * turn.cos) * over_i;
    // I' = E' - sin(pi v)/pi K', E'/E = 1 - half + e_x, K'/K = -1 - half + k_x
    R scaled = ((y.e_x - half) + (sine * k_over_e) * ((c<R>(2) + half) - y.k_x)) * over_i;
    out[1] = (1 - scale) + scaled;
}

}  // namespace isa
}  // namespace curvkern::bessel
