// The uniform (Debye) expansion of log I_v(x) and log K_v(x), with its derivatives.
//
// With r = sqrt(v^2 + x^2), p = 1/r, tau = (v/r)^2 and L = asinh(v/x) (DLMF 10.41.3-4, in the
// logarithm and in p instead of 1/v, so that v = 0 is no special case and Hankel's expansion is
// its limit):
//   log I_v(x) =  (r - v L) - log(2 pi r)/2 + S(p),      S(q) = sum_{k=1..K} d_k(tau) q^k
//   log K_v(x) = -(r - v L) + log(pi / (2 r))/2 + S(-p)
// Truncation is below 2^-55 (2^-26 in float32) for r >= Limits::radius(tier) and its number of
// terms, for every v >= 0 and x > 0. r - vL passes through zero where the other terms are
// small, so it is computed as a pair.
#pragma once

#include "low_order.hpp"
#include "regions.hpp"

namespace curvkern::bessel {
CURVKERN_PER_ISA {

// S and its derivatives: by q (times q) and by tau.
template <class R>
struct DebyeSum {
    R s, q1, q2, t1, t2, q1t1;  // S, q S_q, q (q S_q)_q, S_tau, S_tau_tau, q S_q_tau
};

// Quotient: of (S(q, 1) - S(q, tau)) / (1 - tau), whose polynomials are one degree lower.
template <bool Quotient>
CURVKERN_HD double debye_coefficient(int k, int j) {
    return Quotient ? tables::debye_quotient[k][j] : tables::debye[k][j];
}

template <int Order, bool Quotient, class R>
CURVKERN_HD DebyeSum<R> debye_sum_inline(R q, R tau, int terms) {
    DebyeSum<R> y{};
    for (int k = terms; k >= 1; --k) {
        R e{}, e1{}, e2{};  // d_k(tau), its first derivative, half its second
        for (int j = Quotient ? k - 1 : k; j >= 0; --j) {
            if constexpr (Order > 1) e2 = e2 * tau + e1;
            if constexpr (Order > 0) e1 = e1 * tau + e;
            e = e * tau + c<R>(debye_coefficient<Quotient>(k, j));
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

template <int Order, bool Quotient = false, class R>
CURVKERN_SHARED DebyeSum<R> debye_sum(R q, R tau, int terms) {
    return debye_sum_inline<Order, Quotient>(q, tau, terms);
}

// Short sums serve large arguments, the common case of big arrays, and are worth inlining.
template <int Order, bool Quotient = false, class R>
CURVKERN_HD DebyeSum<R> debye_sum_quick(R q, R tau, int terms) {
    constexpr int last = Limits<R>::terms(Limits<R>::tiers - 1), middle = Limits<R>::terms(1);
    if (terms == last) return debye_sum_inline<Order, Quotient>(q, tau, last);
    if (middle != last && terms == middle) {
        return debye_sum_inline<Order, Quotient>(q, tau, middle);
    }
    return debye_sum<Order, Quotient>(q, tau, terms);
}

// v and x as the formulas take them: as they are, or (Extreme) times a power of two that brings
// the larger one to [2, 4).
template <class R>
struct Scaling {
    R v, x;
    R up, down;  // the power of two and its inverse
    R exponent;  // log2(down)
};

template <bool Extreme, class R>
CURVKERN_HD Scaling<R> scaling(R v, R x) {
    using F = Float<R>;
    if constexpr (!Extreme) return {v, x, c<R>(1), c<R>(1), c<R>(0)};
    Bits<R> biased = bits(max(v, x)) >> F::significand_bits;
    R up = from_bits<R>((2 * F::bias + 1 - biased) << F::significand_bits);
    R down = from_bits<R>((biased - 1) << F::significand_bits);
    R exponent = from_bits<R>(biased | bits(c<R>(F::integer_magic))) -
                 c<R>(F::integer_magic + F::bias + 1);
    return {v * up, x * up, up, down, exponent};
}

template <class R>
struct Polar {
    Pair<R> r;  // sqrt(v^2 + x^2), scaled like v and x
    R inverse;  // 1/r
};

template <class R>
CURVKERN_HD Polar<R> polar_scaled(R v, R x) {  // r by one Newton step in pairs
    Pair<R> square = add(two_prod(v, v), two_prod(x, x));
    R over = inverse_sqrt(square.hi), r = square.hi * over;
    Pair<R> back = two_prod(r, r);
    R rest = ((square.hi - back.hi) - back.lo) + square.lo;
    return {fast_two_sum(r, rest * (c<R>(0.5) * over)), over};
}

// asinh(v/x) = log((v + r)/x)
template <bool Extreme, class R>
CURVKERN_HD Pair<R> angle_pair(const Scaling<R>& s, R x, const Pair<R>& r) {
    Pair<R> top = fast_two_sum(r.hi, s.v);
    top = fast_two_sum(top.hi, top.lo + r.lo);
    return Extreme ? log_ratio(top, x, s.exponent) : log_quotient(top, x);
}

// Below this v/x the quotient (v + r)/x is 1 + v/x, and its logarithm has lost the digits of
// v/x: asinh(z) = z - z^3/6 + ..
template <class R>
inline constexpr double flat_below = is_double<R> ? 0x1p-17 : 0x1p-8;

// What value, slopes and ratios need of the point.
template <class R>
struct Point {
    R r, p, a, b;  // sqrt(v^2 + x^2), 1/r, v/r, x/r
    R angle;       // asinh(v/x), to a few ulp also where v/x is small
};

template <bool Extreme, class R>
CURVKERN_HD Point<R> point(R v, R x) {
    Scaling<R> s = scaling<Extreme>(v, x);
    Polar<R> z = polar_scaled(s.v, s.x);
    R q = v / x;
    auto flat = q < c<R>(flat_below<R>);
    Pair<R> pair = angle_pair<Extreme>(s, x, z.r);
    R angle = select(flat, q - q * q * q * c<R>(1.0 / 6), pair.hi + pair.lo);
    return {z.r.hi * s.down, z.inverse * s.up, s.v * z.inverse, s.x * z.inverse, angle};
}

template <class R>
CURVKERN_HD R flip(bool k, R y) {  // the sign that distinguishes K from I
    return k ? -y : y;
}

// asinh(v/x) as a pair also there
template <class R>
CURVKERN_HD Pair<R> flat_angle(R v, R x, Pair<R> angle) {
    Pair<R> z = div(Pair<R>{v, c<R>(0)}, Pair<R>{x, c<R>(0)});
    auto flat = z.hi < c<R>(flat_below<R>);
    z.lo = z.lo - z.hi * z.hi * z.hi * c<R>(1.0 / 6);
    return {select(flat, z.hi, angle.hi), select(flat, z.lo, angle.lo)};
}

// r - v asinh(v/x), for the scaled functions less x. Below Careful::far the rounding of r is
// harmless, beyond (Extreme) r - x is v^2/(r + x).
template <bool Extreme, class R>
CURVKERN_HD Pair<R> debye_main(const Scaling<R>& s, R x, const Pair<R>& r, Scalar<R> scale) {
    Pair<R> angle = angle_pair<Extreme>(s, x, r), lead = r;
    if (scale != 0 && Extreme) {
        angle = flat_angle(s.v, s.x, angle);
        lead = div(two_prod(s.v, s.v), add(r, s.x));
    } else if (scale != 0) {
        lead = fast_two_sum(r.hi, -s.x);
        lead.lo = lead.lo + r.lo;
    }
    Pair<R> turned = mul(angle, s.v);
    Pair<R> main = two_sum(lead.hi, -turned.hi);
    main.lo = main.lo + (lead.lo - turned.lo);
    return {main.hi * s.down, main.lo * s.down};
}

template <bool Extreme, class R>
CURVKERN_HD R debye_value(bool k, R v, R x, int terms, Scalar<R> scale) {
    Scaling<R> by = scaling<Extreme>(v, x);
    Polar<R> z = polar_scaled(by.v, by.x);
    R a = by.v * z.inverse;
    R s = debye_sum_quick<0>(flip(k, z.inverse * by.up), a * a, terms).s;
    Pair<R> main = debye_main<Extreme>(by, x, z.r, scale);
    Folded<R> part = fold_normal(z.r.hi);
    part.exponent = part.exponent + by.exponent;
    Pair<R> half_log = log_circle(k, part);
    Pair<R> y = two_sum(flip(k, main.hi), half_log.hi);
    R value = y.hi + (y.lo + ((flip(k, main.lo) + half_log.lo) + s));
    // infinite where the result overflows; the pairs are NaN then
    return Extreme ? select(abs(main.hi) == infinity<R>(), flip(k, main.hi), value) : value;
}

// One for both functions: it is long.
template <class R>
CURVKERN_SHARED R debye_value_careful(bool k, R v, R x, Scalar<R> scale) {
    return debye_value<true>(k, v, x, Careful<R>::terms, scale);
}

// First derivatives of log I or log K.
template <class R>
struct DebyeSlopes {
    R dv, dx_small;  // d/dv; d/dx = +-r/x + dx_small
    R A;             // the sum's own derivative in v is a p A
};

template <bool K, bool Quick = false, class R>
CURVKERN_HD DebyeSlopes<R> debye_slopes(const Point<R>& z, int terms) {
    R tau = z.a * z.a, sigma = z.b * z.b;
    DebyeSum<R> s = Quick ? debye_sum_quick<1>(flip(K, z.p), tau, terms)
                          : debye_sum<1>(flip(K, z.p), tau, terms);
    R A = c<R>(2) * sigma * s.t1 - s.q1, B = -(s.q1 + c<R>(2) * tau * s.t1);
    return {z.a * z.p * (A - c<R>(0.5)) - flip(K, z.angle), z.b * z.p * (B - c<R>(0.5)), A};
}

template <class R>
struct Curvature {
    R vv, vx, xx;
};

// Second derivatives without the leading +-(1/r, v/(x r), v^2/(x^2 r)) terms.
template <bool K, class R>
CURVKERN_HD Curvature<R> debye_curvature_small(const Point<R>& z, int terms) {
    R tau = z.a * z.a, sigma = z.b * z.b, two = c<R>(2);
    DebyeSum<R> s = debye_sum<2>(flip(K, z.p), tau, terms);
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
