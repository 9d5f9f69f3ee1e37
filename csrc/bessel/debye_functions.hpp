// Every function of the family from the uniform expansion.
#pragma once

#include "debye.hpp"
#include "jet.hpp"
#include "regions.hpp"

namespace curvkern::bessel {
CURVKERN_PER_ISA {

template <class R>
struct Slope {
    R dv, dx;
};

// x/(v + r), where v + r overflows from a = v/r and b = x/r
template <bool Extreme, class R>
CURVKERN_HD R half_angle_tangent(R v, R x, const Point<R>& z) {
    return Extreme ? z.b / (c<R>(1) + z.a) : x / (v + z.r);
}

template <Function F, bool Extreme, class R>
CURVKERN_HD R debye_ratio(R v, R x, const Point<R>& z, int terms) {
    R small = debye_slopes<is_k(F)>(z, terms).dx_small;
    if constexpr (!is_k(F)) return half_angle_tangent<Extreme>(v, x, z) + small;
    return (Extreme ? (c<R>(1) + z.a) / z.b : (v + z.r) / x) - small;
}

// Derivatives of the ratios in v and x, from the second derivatives of the logarithms.
template <Function F, class R>
CURVKERN_HD Slope<R> debye_ratio_slope([[maybe_unused]] R v, R x, const Point<R>& z,
                                       int terms) {
    Curvature<R> s = debye_curvature_small<is_k(F)>(z, terms);
    R above = c<R>(1) + z.a;
    if constexpr (is_k(F)) return {above / x - s.vx, -above * (v / x) / x - s.xx};
    return {s.vx - z.b * z.p / above, z.a * z.p / above + s.xx};
}

// Second derivatives of the ratios: the leading terms in closed form, the sums as jets.
template <Function F, class R>
CURVKERN_SHARED void debye_ratio_hess(R v, R x, const Point<R>& z, int terms, R* out) {
    using J = Jet<R>;
    R one = c<R>(1), two = c<R>(2);
    J p = {z.p, z.a, z.b, z.b * z.b * z.p, -z.a * z.b * z.p, z.a * z.a * z.p};
    p.f = z.r;
    p = reciprocal(p);
    J a = J::order(v) * p, tau = a * a, q = is_k(F) ? -one * p : p;
    J q1{}, t1{};
    for (int k = terms; k >= 1; --k) {
        J e{}, e1{};
        for (int j = k; j >= 0; --j) {
            e1 = e1 * tau + e;
            e = e * tau + c<R>(tables::debye[k][j]);
        }
        q1 = (q1 + c<R>(k) * e) * q;
        t1 = (t1 + e1) * q;
    }
    J small = (J::argument(x) * (p * p)) * (-one * q1 + -two * (tau * t1) + c<R>(-0.5));
    R above = one + z.a, p2 = z.p * z.p;
    if constexpr (is_k(F)) {  // of (v + r)/x
        R by_x = z.a * z.b * z.p;
        out[0] = (z.b * z.b * z.p) / x - small.vv;
        out[1] = -(by_x + above / x) / x - small.vx;
        out[2] = ((by_x + two * (above / x)) * (v / x)) / x - small.xx;
    } else {  // of x/(v + r)
        out[0] = z.b * p2 + small.vv;
        out[1] = p2 * ((z.b * z.b - z.a) / above) + small.vx;
        out[2] = -z.a * z.b * p2 * ((one + above) / (above * above)) + small.xx;
    }
}

// log 0F1 for v >= 11 (5): log Gamma(v+1) - v log(x/2) + log I_v(x) with everything that
// cancels cancelled by hand, u = (r - v)/(2v).
template <bool Extreme, class R>
CURVKERN_HD R debye_hyp(R v, R x, int terms) {
    Point<R> z = point<Extreme>(v, x);
    R u = c<R>(0.5) * (x / v) * half_angle_tangent<Extreme>(v, x, z);
    R s = debye_sum<0>(z.p, z.a * z.a, terms).s;
    R q = x / v;
    // log(r/v)/2; q^2 overflows where v is far below x
    R log_r = select(q < c<R>(0x1p30), c<R>(0.25) * log1p(q * q), c<R>(0.5) * log(z.r / v));
    return v * (c<R>(2) * u - log1p(u)) - log_r + (s + stirling_tail(v));
}

template <Function F, int Order, bool Extreme, class R>
CURVKERN_HD void evaluate_debye(R v, R x, int terms, Scalar<R> scale, R* out) {
    constexpr bool k = is_k(F);
    if constexpr (Order == 0) {
        if constexpr (is_hyp(F)) {
            out[0] = debye_hyp<Extreme>(v, x, terms);
        } else if constexpr (is_ratio(F)) {
            out[0] = debye_ratio<F, Extreme>(v, x, point<Extreme>(v, x), terms);
        } else {
            out[0] = Extreme ? debye_value_careful(k, v, x, scale)
                             : debye_value<false>(k, v, x, terms, scale);
        }
        return;
    }
    Point<R> z = point<Extreme>(v, x);
    if constexpr (Order == 1) {
        if constexpr (is_ratio(F)) {
            Slope<R> s = debye_ratio_slope<F>(v, x, z, terms);
            out[0] = s.dv;
            out[1] = s.dx;
            return;
        }
        DebyeSlopes<R> s = debye_slopes<k, !is_hyp(F)>(z, terms);
        if constexpr (is_hyp(F)) {
            R u = c<R>(0.5) * (x / v) * half_angle_tangent<Extreme>(v, x, z);
            out[0] = z.a * z.p * s.A + c<R>(0.5) * z.b * z.b / v - digamma_tail(v) - log1p(u);
            out[1] = half_angle_tangent<Extreme>(v, x, z) + s.dx_small;
        } else {
            out[0] = s.dv;
            R main = Extreme ? c<R>(1) / z.b : z.r / x;
            if (scale != 0) main = (v / x) * (z.a / (c<R>(1) + z.b));  // r/x - 1
            out[1] = flip(k, main) + s.dx_small;
        }
    } else if constexpr (is_ratio(F)) {
        debye_ratio_hess<F>(v, x, z, terms, out);
    } else {
        Curvature<R> s = debye_curvature_small<k>(z, terms);
        if constexpr (is_hyp(F)) {
            R above = c<R>(1) + z.a;
            R vv = z.b * (half_angle_tangent<Extreme>(v, x, z) / v) - c<R>(0.5) / v / v +
                   trigamma_tail(v);
            out[0] = vv + s.vv;
            out[1] = s.vx - z.b * z.p / above;
            out[2] = z.a * z.p / above + s.xx;
        } else {
            out[0] = flip(k, -z.p) + s.vv;
            out[1] = flip(k, z.a / x) + s.vx;
            out[2] = flip(k, -z.a * (v / x) / x) + s.xx;
        }
    }
}

}  // namespace isa
}  // namespace curvkern::bessel
