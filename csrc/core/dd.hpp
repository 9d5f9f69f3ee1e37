// Double-double and float-float numbers: a value as an unevaluated sum hi + lo, |lo| <=
// ulp(hi)/2.
//
// Dekker, "A floating-point technique for extending the available precision" (1971); Knuth,
// TAOCP vol. 2, 4.2.2; error bounds in Joldes, Muller, Popescu, "Tight and rigorous error
// bounds for basic building blocks of double-word arithmetic" (2017). Products here drop lo*lo:
// relative error below 8 u^2, u = 2^-53 or 2^-24.
#pragma once

#include "twin.hpp"

namespace curvkern {
CURVKERN_PER_ISA {

template <class R>
struct Pair {
    R hi, lo;
};

template <class R>
CURVKERN_HD Pair<R> fast_two_sum(R a, R b) {  // needs |a| >= |b| or a == 0
    R s = a + b;
    return {s, b - (s - a)};
}

template <class R>
CURVKERN_HD Pair<R> two_sum(R a, R b) {
    R s = a + b;
    R t = s - a;
    return {s, (a - (s - t)) + (b - t)};
}

template <class R>
CURVKERN_ELEMENTARY Pair<R> two_prod(R a, R b) {
    R p = a * b;
#if defined(CURVKERN_HAS_FMA)
    return {p, fma_exact(a, b, -p)};
#else
    // Veltkamp split; callers keep |a|, |b| below 1e290 (1e30 in float32).
    const R factor = c<R>(is_double<R> ? 134217729.0 : 4097.0);
    R ta = factor * a, tb = factor * b;
    R ah = ta - (ta - a), bh = tb - (tb - b);
    R al = a - ah, bl = b - bh;
    return {p, ((ah * bh - p) + ah * bl + al * bh) + al * bl};
#endif
}

// Absolute error below 4 u^2 (|a| + |b|): no better than that where a and b cancel.
template <class R>
CURVKERN_ELEMENTARY Pair<R> add(Pair<R> a, Pair<R> b) {
    Pair<R> s = two_sum(a.hi, b.hi);
    return fast_two_sum(s.hi, s.lo + (a.lo + b.lo));
}

template <class R>
CURVKERN_HD Pair<R> add(Pair<R> a, R b) {
    Pair<R> s = two_sum(a.hi, b);
    return fast_two_sum(s.hi, s.lo + a.lo);
}

template <class R>
CURVKERN_HD Pair<R> negate(Pair<R> a) {
    return {-a.hi, -a.lo};
}

template <class R>
CURVKERN_ELEMENTARY Pair<R> mul(Pair<R> a, Pair<R> b) {
    Pair<R> p = two_prod(a.hi, b.hi);
    return fast_two_sum(p.hi, p.lo + (a.hi * b.lo + a.lo * b.hi));
}

template <class R>
CURVKERN_ELEMENTARY Pair<R> mul(Pair<R> a, R b) {
    Pair<R> p = two_prod(a.hi, b);
    return fast_two_sum(p.hi, p.lo + a.lo * b);
}

template <class R>
CURVKERN_ELEMENTARY Pair<R> div(Pair<R> a, Pair<R> b, R over) {  // over is 1/b.hi, nearly
    R q = a.hi * over;
    Pair<R> p = two_prod(q, b.hi);
    R rest = ((a.hi - p.hi) - p.lo) + (a.lo - q * b.lo);
    return fast_two_sum(q, rest * over);
}

template <class R>
CURVKERN_ELEMENTARY Pair<R> div(Pair<R> a, Pair<R> b) {
    return div(a, b, c<R>(1) / b.hi);
}

}  // namespace isa
}  // namespace curvkern
