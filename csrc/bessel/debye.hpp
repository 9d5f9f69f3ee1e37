// The uniform (Debye) expansion of log I_v(x) and log K_v(x), with its derivatives.
//
// With r = sqrt(v^2 + x^2), p = 1/r, tau = (v/r)^2 and L = asinh(v/x) (DLMF 10.41.3-4, in the
// logarithm and in p instead of 1/v, so that v = 0 is no special case and Hankel's expansion is
// its limit):
//   log I_v(x) =  (r - v L) - log(2 pi r)/2 + S(p),      S(q) = sum_{k=1..K} d_k(tau) q^k
//   log K_v(x) = -(r - v L) + log(pi / (2 r))/2 + S(-p)
// Truncation is below 2^-55 (2^-26 in float32) for r >= radius(K), for every v >= 0 and x > 0;
// the radii are those of regions.hpp. r - vL passes through zero where the other terms are
// small, so it is computed as a pair. Everything runs on v, x scaled by a power of two: v^2
// never overflows.
#pragma once

#include "bessel.hpp"
#include "tables.hpp"
#include "taylor.hpp"

namespace curvkern::bessel {
CURVKERN_PER_ISA {

// S and its derivatives: by q (times q) and by tau.
template <class R>
struct DebyeSum {
    R s, q1, q2, t1, t2, q1t1;  // S, q S_q, q (q S_q)_q, S_tau, S_tau_tau, q S_q_tau
};

template <int K, int Order, class R>
CURVKERN_HD DebyeSum<R> debye_sum_inline(R q, R tau) {
    DebyeSum<R> y{};
    for (int k = K; k >= 1; --k) {
        R e{}, e1{}, e2{};  // d_k(tau), its first derivative, half its second
        for (int j = k; j >= 0; --j) {
            if constexpr (Order > 1) e2 = e2 * tau + e1;
            if constexpr (Order > 0) e1 = e1 * tau + e;
            e = e * tau + c<R>(tables::debye[k][j]);
        }
        y.s = (y.s + e) * q;
        if constexpr (Order > 0) {
            // q S_q = sum k e_k q^k: fold k into the coefficient
            y.q1 = (y.q1 + c<R>(k) * e) * q;
            y.t1 = (y.t1 + e1) * q;
        }
        if constexpr (Order > 1) {
            y.q2 = (y.q2 + c<R>(k * k) * e) * q;
            y.t2 = (y.t2 + c<R>(2) * e2) * q;
            y.q1t1 = (y.q1t1 + c<R>(k) * e1) * q;
        }
    }
    return y;
}

template <int K, int Order, class R>
CURVKERN_SHARED DebyeSum<R> debye_sum_called(R q, R tau) {
    return debye_sum_inline<K, Order>(q, tau);
}

// Short sums serve large arguments, the common case of big arrays, and are worth inlining.
template <int K>
inline constexpr bool is_short = K < 10;

template <int K, int Order, class R>
CURVKERN_HD DebyeSum<R> debye_sum(R q, R tau) {
    if constexpr (is_short<K>) return debye_sum_inline<K, Order>(q, tau);
    return debye_sum_called<K, Order>(q, tau);
}

template <class R>
struct Polar {
    R r, p, a, b;         // sqrt(v^2 + x^2), 1/r, v/r, x/r
    Pair<R> angle;        // asinh(v/x)
    Pair<R> main;         // r - v asinh(v/x)
    Pair<R> main_scaled;  // r - x - v asinh(v/x)
    Pair<R> log_r;
};

// Leading terms of the angle's logarithm summed as pairs. Enough for |r - v asinh(v/x)| above
// 2^-18 v or v below 2^18 (2^-9, 2^9 in float32); the band around the zero curve takes all.
template <class R>
inline constexpr int few_pairs = is_double<R> ? 4 : 2;

template <int Pairs, class R>
CURVKERN_HD Polar<R> polar_inline(R v, R x) {
    using F = Float<R>;
    // scale = 2^(1-e) with 2^e <= max(v, x) < 2^(e+1)
    Bits<R> biased = bits(max(v, x)) >> F::significand_bits;
    R scale = from_bits<R>((2 * F::bias + 1 - biased) << F::significand_bits);
    R unscale = from_bits<R>((biased - 1) << F::significand_bits);
    R exponent = from_bits<R>(biased | bits(c<R>(F::integer_magic))) -
                 c<R>(F::integer_magic + F::bias + 1);
    R vs = v * scale, xs = x * scale;
    // r by one Newton step in pairs
    Pair<R> square = add(two_prod(vs, vs), two_prod(xs, xs));
    Pair<R> r = {sqrt(square.hi), c<R>(0)};
    R inverse = c<R>(1) / r.hi;
    Pair<R> back = two_prod(r.hi, r.hi);
    r.lo = (((square.hi - back.hi) - back.lo) + square.lo) * (c<R>(0.5) * inverse);

    Pair<R> top = two_sum(r.hi, vs);
    Pair<R> angle = log_ratio<Pairs>(fast_two_sum(top.hi, top.lo + r.lo), x, exponent);
    // For small v/x the quotient is 1 + v/x and its logarithm has no correct digits left:
    // asinh(z) = z - z^3/6 + ..
    R z = v / x;
    auto flat = z < c<R>(is_double<R> ? 0x1p-17 : 0x1p-8);
    Pair<R> quotient = two_prod(z, x * scale);
    R rest = ((vs - quotient.hi) - quotient.lo) / (x * scale);
    angle.hi = select(flat, z, angle.hi);
    angle.lo = select(flat, rest - z * z * z * c<R>(1.0 / 6), angle.lo);
    angle = fast_two_sum(angle.hi, angle.lo);

    Polar<R> y;
    y.r = r.hi * unscale;
    y.p = inverse * scale;
    y.a = vs * inverse;
    y.b = xs * inverse;
    y.angle = angle;
    Pair<R> main = add(r, negate(mul(angle, vs)));
    y.main = {main.hi * unscale, main.lo * unscale};
    Pair<R> less = div(two_prod(vs, vs), add(r, xs));
    less = add(less, negate(mul(angle, vs)));
    y.main_scaled = {less.hi * unscale, less.lo * unscale};
    y.log_r = log_split(r.hi, exponent);
    return y;
}

template <int Pairs, class R>
CURVKERN_SHARED Polar<R> polar_called(R v, R x) {
    return polar_inline<Pairs>(v, x);
}

template <int Terms, int Pairs, class R>
CURVKERN_HD Polar<R> polar(R v, R x) {
    if constexpr (is_short<Terms>) return polar_inline<Pairs>(v, x);
    return polar_called<Pairs>(v, x);
}

template <bool K, class R>
CURVKERN_HD R flip(R y) {  // the sign that distinguishes K from I
    return K ? -y : y;
}

// log I or log K. Scaled: r - vL - x in place of r - vL, as v^2/(r + x) - vL.
template <int Terms, bool K, bool Scaled, int Pairs, class R>
CURVKERN_HD R debye_value(R v, R x) {
    Polar<R> z = polar<Terms, Pairs>(v, x);
    R s = debye_sum<Terms, 0>(flip<K>(z.p), z.a * z.a).s;
    if constexpr (Scaled) z.main = z.main_scaled;
    Pair<R> main = {flip<K>(z.main.hi), flip<K>(z.main.lo)};
    main = add(main, Pair<R>{c<R>(-0.5) * z.log_r.hi, c<R>(-0.5) * z.log_r.lo});
    const double log_factor = K ? 0.22579135264472744 : -half_log_2pi;  // log(pi/2)/2
    main = add(main, c<R>(log_factor));
    const double rest = K ? (is_double<R> ? -6.46e-18 : 0.0) : (is_double<R> ? 3.88e-17 : 0.0);
    R y = main.hi + (main.lo + (s + c<R>(rest)));
    R lead = flip<K>(z.main.hi);  // infinite where the result overflows; the pairs are NaN then
    return select(abs(lead) == infinity<R>(), lead, y);
}

// First derivatives of log I or log K, and what the second ones and the ratios share with them.
template <class R>
struct DebyeSlopes {
    R dv, dx_small;  // d/dv; d/dx = +-r/x + dx_small
    R A, B;          // S_v = a p A, S_x = b p B
};

template <int Terms, bool K, class R>
CURVKERN_HD DebyeSlopes<R> debye_slopes(const Polar<R>& z) {
    R tau = z.a * z.a, sigma = z.b * z.b;
    DebyeSum<R> s = debye_sum<Terms, 1>(flip<K>(z.p), tau);
    DebyeSlopes<R> y;
    y.A = c<R>(2) * sigma * s.t1 - s.q1;
    y.B = -(s.q1 + c<R>(2) * tau * s.t1);
    y.dv = -flip<K>(z.angle.hi) + z.a * z.p * (y.A - c<R>(0.5));
    y.dx_small = z.b * z.p * (y.B - c<R>(0.5));
    return y;
}

template <class R>
struct Curvature {
    R vv, vx, xx;
};

// Second derivatives without the leading +-(1/r, v/(x r), v^2/(x^2 r)) terms.
template <int Terms, bool K, class R>
CURVKERN_HD Curvature<R> debye_curvature_small(const Polar<R>& z) {
    R tau = z.a * z.a, sigma = z.b * z.b, two = c<R>(2);
    DebyeSum<R> s = debye_sum<Terms, 2>(flip<K>(z.p), tau);
    R A = two * sigma * s.t1 - s.q1 - c<R>(0.5);
    R B = -(s.q1 + two * tau * s.t1) - c<R>(0.5);
    R pAp = two * sigma * s.q1t1 - s.q2;
    R At = two * sigma * s.t2 - two * s.t1 - s.q1t1;
    R pBp = -(s.q2 + two * tau * s.q1t1);
    R Bt = -(s.q1t1 + two * s.t1 + two * tau * s.t2);
    R p2 = z.p * z.p;
    return {p2 * ((sigma - tau) * A + tau * (two * sigma * At - pAp)),
            -z.a * z.b * p2 * (two * A + pAp + two * tau * At),
            p2 * ((tau - sigma) * B - sigma * (pBp + two * tau * Bt))};
}

}  // namespace isa
}  // namespace curvkern::bessel
