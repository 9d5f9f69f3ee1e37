// log I_v(x) and log K_v(x) for v <= 1 and x >= Limits::radius(0): Hankel's expansion.
//
//   log I = x - log(2 pi x)/2 + H(1/x),  log K = -x + log(pi/(2 x))/2 + H(-1/x)
// H(q) = log(1 + sum a_k(v) q^k) (DLMF 10.40.1, 10.40.2) vanishes at v = 1/2 and at q = 0:
// H(q) = q (w - 1/4) sum c_ij q^i w^j with w = v^2, fitted to 2^-55 (2^-28) of 1. Nothing here
// cancels, so nothing but the logarithm is a pair.
#pragma once

#include "tables.hpp"
#include "taylor.hpp"

namespace curvkern::bessel {
CURVKERN_PER_ISA {

// -log(2 pi r)/2 for I, log(pi / (2 r))/2 for K. The constant is split so that its leading part
// and the exponent's share add exactly.
template <bool K, class R>
CURVKERN_HD Pair<R> log_circle(Folded<R> r) {
    constexpr double hi = is_double<R> ? (K ? -0x1.ce6bb25cp-2 : 0x1.d67f1c86p0)
                                       : (K ? -0x1.ce8p-2 : 0x1.d68p0);
    constexpr double lo = is_double<R> ? (K ? 7.976431919561874e-11 : 6.90480230046292e-11)
                                       : (K ? 7.745096054513528e-05 : -1.355859065451644e-05);
    Pair<R> y = log_folded(r, hi, lo);
    return {c<R>(-0.5) * y.hi, c<R>(-0.5) * y.lo};
}

template <int Rows, int Columns, class R>
CURVKERN_HD R hankel_sum(R q, R w, const double (&table)[Rows][Columns],
                         const int (&length)[Rows]) {
    R sum = c<R>(0);
    CURVKERN_UNROLL
    for (int i = Rows - 1; i >= 0; --i) {
        R row = c<R>(table[i][length[i] - 1]);
        for (int j = length[i] - 2; j >= 0; --j) row = row * w + c<R>(table[i][j]);
        sum = sum * q + row;
    }
    return sum;
}

template <bool K, bool Scaled, class R>
CURVKERN_HD R hankel_value(R v, R x) {
    R q = c<R>(K ? -1 : 1) / x, w = v * v;
    R sum = is_double<R> ? hankel_sum(q, w, tables::hankel_double, tables::hankel_double_length)
                         : hankel_sum(q, w, tables::hankel_float, tables::hankel_float_length);
    R h = q * (w - c<R>(0.25)) * sum;
    Pair<R> half_log = log_circle<K>(fold_normal(x));
    if constexpr (Scaled) return half_log.hi + (half_log.lo + h);
    Pair<R> y = two_sum(K ? -x : x, half_log.hi);
    return y.hi + (y.lo + (half_log.lo + h));
}

}  // namespace isa
}  // namespace curvkern::bessel
