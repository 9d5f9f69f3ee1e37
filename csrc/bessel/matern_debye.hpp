// log of the Matern correlation for orders from 11 (5) on, with all its derivatives.
//
// With R = sqrt(1 + w) = r/nu, w = 2 rho^2/nu, u = (R - 1)/2, p = 1/(nu R), tau = 1/R^2 the
// uniform expansion of K (debye.hpp) and Stirling's series of Gamma(nu) join to
//   log M = nu (log1p(u) - u) - rho^2/(1 + R) - log1p(w)/4 + [S(-p, tau) - S(-1/nu, 1)],
// where S(-q, 1) = S~(q) is Stirling's series. The bracket is a sum of two differences, each
// with its factor taken out, so that nothing cancels as rho -> 0:
//   S(-p, tau) - S(-p, 1) = -(1 - tau) sum_k d~_k(tau) (-p)^k     (tables::debye_quotient)
//   S~(p) - S~(1/nu)      = -(1/nu - p) sum_m s_m h_m(p, 1/nu),   S~(q) = sum_m s_m q^{2m+1}
// with h_m = (p^{2m+1} - y^{2m+1})/(p - y), y = 1/nu.
#pragma once

#include "debye.hpp"
#include "jet.hpp"

namespace curvkern::bessel {
CURVKERN_PER_ISA {

// log(1 + u) - u, u >= 0; near zero -s (u - tail) with s = u/(2 + u), log(1 + u) = 2 atanh(s)
template <class R>
CURVKERN_HD Jet<R> log1p_less(const Jet<R>& u) {
    R s = u.f / (c<R>(2) + u.f);
    R near = -s * (u.f - atanh_tail(s * s)), far = log1p(u.f) - u.f;
    R slope = c<R>(1) / (c<R>(1) + u.f);
    return compose(select(u.f < c<R>(0.4), near, far), -u.f * slope, -slope * slope, u);
}

// sum_k d~_k(tau) q^k
template <int Order, class R>
CURVKERN_HD Jet<R> debye_quotient(const Jet<R>& q, const Jet<R>& tau, int terms) {
    DebyeSum<R> s = Order == 0 ? debye_sum_quick<0, true>(q.f, tau.f, terms)
                               : debye_sum<Order, true>(q.f, tau.f, terms);
    R inverse = c<R>(1) / q.f;
    R v = q.v * inverse, x = q.x * inverse;  // derivatives of log q
    R vv = q.vv * inverse - v * v, vx = q.vx * inverse - v * x, xx = q.xx * inverse - x * x;
    R two = c<R>(2);
    return {s.s,
            s.q1 * v + s.t1 * tau.v,
            s.q1 * x + s.t1 * tau.x,
            (s.q1 * vv + s.t1 * tau.vv) +
                (s.q2 * (v * v) + two * (s.q1t1 * (v * tau.v)) + s.t2 * (tau.v * tau.v)),
            (s.q1 * vx + s.t1 * tau.vx) + (s.q2 * (v * x) + s.t2 * (tau.v * tau.x)) +
                s.q1t1 * (v * tau.x + x * tau.v),
            (s.q1 * xx + s.t1 * tau.xx) +
                (s.q2 * (x * x) + two * (s.q1t1 * (x * tau.x)) + s.t2 * (tau.x * tau.x))};
}

// sum_m s_m h_m(p, y): h_m = p^2 h_{m-1} + y^{2m-1} (p + y)
template <class R>
CURVKERN_HD Jet<R> stirling_quotient(const Jet<R>& p, const Jet<R>& y) {
    Jet<R> square = p * p, step = y * y, h{}, power = y * (p + y), total{};
    h.f = c<R>(1);
    constexpr int terms = is_double<R> ? 7 : 4;
    for (int m = 0; m < terms; ++m) {
        total = total + c<R>(stirling_series[m]) * h;
        h = square * h + power;
        power = power * step;
    }
    return total;
}

// Unused derivatives cost nothing: the compiler drops what nobody reads.
template <int Order, class R>
CURVKERN_HD Jet<R> log_matern_debye(R v, R rho, int terms) {
    using J = Jet<R>;
    R one = c<R>(1);
    J order = J::order(v), distance = J::argument(rho), y = reciprocal(order);
    J square = distance * distance, w = c<R>(2) * (square * y);
    J root = sqrt(w + one), t = reciprocal(root), tau = t * t, p = t * y;
    J half = reciprocal(root + one), u = c<R>(0.5) * (w * half);
    J main = order * log1p_less(u) + -one * (square * half) + c<R>(-0.25) * log1p(w);
    J first = (w * tau) * debye_quotient<Order>(-one * p, tau, terms);
    J second = (c<R>(2) * (u * p)) * stirling_quotient(p, y);  // 1/nu - p = 2 u p
    return main + -one * (first + second);
}

template <int Order, class R>
CURVKERN_HD void evaluate_matern_debye(R v, R rho, int terms, R* out) {
    Jet<R> y = log_matern_debye<Order>(v, rho, terms);
    R value = exp(y.f);
    if constexpr (Order == 0) out[0] = min(value, c<R>(1));
    if constexpr (Order == 1) {
        out[0] = value * y.v;
        out[1] = value * y.x;
    }
    if constexpr (Order == 2) {
        out[0] = value * (y.vv + y.v * y.v);
        out[1] = value * (y.vx + y.v * y.x);
        out[2] = value * (y.xx + y.x * y.x);
    }
}

}  // namespace isa
}  // namespace curvkern::bessel
