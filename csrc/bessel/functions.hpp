// evaluate<F, Order, RegionCode>(v, x, out): one function, one order of derivative, one region.
//
// Every branch here is taken at compile time; what runs is one formula per region.
#pragma once

#include "debye.hpp"
#include "ratio.hpp"
#include "regions.hpp"
#include "series.hpp"
#include "temme.hpp"
#include "trapezoid.hpp"

namespace curvkern::bessel {
CURVKERN_PER_ISA {

template <class R>
struct Slope {
    R dv, dx;
};

// ---- Debye ----------------------------------------------------------------------------------

template <Function F, int Terms, class R>
CURVKERN_HD R debye_ratio(R v, R x, const Point<R>& z) {
    R small = debye_slopes<Terms, is_k(F)>(z).dx_small;
    if constexpr (is_k(F)) return (v + z.r) / x - small;
    return x / (v + z.r) + small;
}

// Derivatives of the ratios in v and x, from the second derivatives of the logarithms.
template <Function F, int Terms, class R>
CURVKERN_HD Slope<R> debye_ratio_slope(R x, const Point<R>& z) {
    Curvature<R> s = debye_curvature_small<Terms, is_k(F)>(z);
    R above = c<R>(1) + z.a;
    if constexpr (is_k(F)) return {above / x - s.vx, -above * (z.a * z.r / x) / x - s.xx};
    return {s.vx - z.b * z.p / above, z.a * z.p / above + s.xx};
}

// Second derivatives of the ratios: the leading terms in closed form, the sums as jets.
template <Function F, int Terms, class R>
CURVKERN_SHARED void debye_ratio_hess(R v, R x, const Point<R>& z, R* out) {
    using J = Jet<R>;
    R one = c<R>(1), two = c<R>(2);
    J p = {z.p, z.a, z.b, z.b * z.b * z.p, -z.a * z.b * z.p, z.a * z.a * z.p};
    p.f = z.r;
    p = reciprocal(p);
    J a = J::order(v) * p, tau = a * a, q = is_k(F) ? -one * p : p;
    J q1{}, t1{};
    for (int k = Terms; k >= 1; --k) {
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

// Riccati's equation for K_{v+1}/K_v, rho' = rho^2 - 1 - (2v+1) rho/x, once more differentiated,
// in v and in x. Only below the Debye region: it cancels for large arguments.
template <class R>
CURVKERN_HD void riccati_hess(R v, R x, R rho, Slope<R> slope, R vv, R* out) {
    R twice = c<R>(2) * rho;
    R order = (c<R>(2) * v + c<R>(1)) / x;
    out[0] = vv;
    out[1] = (twice - order) * slope.dv - c<R>(2) * (rho / x);
    out[2] = twice * slope.dx - order * (slope.dx - rho / x);
}

// log 0F1 for v >= 15 (7): log Gamma(v+1) - v log(x/2) + log I_v(x) with everything that
// cancels cancelled by hand, u = (r - v)/(2v).
template <int Terms, bool Extreme, class R>
CURVKERN_HD R debye_hyp(R v, R x) {
    Point<R> z = point<Extreme>(v, x);
    R u = c<R>(0.5) * (x / v) * (x / (z.r + v));
    R s = debye_sum<Terms, 0>(z.p, z.a * z.a).s;
    R q = x / v;
    // log(r/v)/2; q^2 overflows where v is far below x
    R log_r = select(q < c<R>(0x1p30), c<R>(0.25) * log1p(q * q), c<R>(0.5) * log(z.r / v));
    return v * (c<R>(2) * u - log1p(u)) - log_r + (s + stirling_tail(v));
}

template <class R>
CURVKERN_HD R digamma_tail(R v) {  // log v + 1/(2v) - psi(v+1), v >= 15 (7)
    constexpr double t[] = {1.0 / 12,  -1.0 / 120,     1.0 / 252, -1.0 / 240,
                            1.0 / 132, -691.0 / 32760, 1.0 / 12};
    R square = (c<R>(1) / v) / v;
    return square * horner(square, t);
}

template <class R>
CURVKERN_HD R trigamma_tail(R v) {  // psi'(v+1) - 1/v + 1/(2v^2)
    constexpr double t[] = {1.0 / 6,  -1.0 / 30,     1.0 / 42, -1.0 / 30,
                            5.0 / 66, -691.0 / 2730, 7.0 / 6};
    R square = (c<R>(1) / v) / v;
    return (square / v) * horner(square, t);
}

template <Function F, int Order, int Terms, bool Extreme, class R>
CURVKERN_HD void evaluate_debye(R v, R x, R* out) {
    constexpr bool k = is_k(F);
    if constexpr (Order == 0) {
        if constexpr (is_hyp(F)) {
            out[0] = debye_hyp<Terms, Extreme>(v, x);
        } else if constexpr (is_ratio(F)) {
            out[0] = debye_ratio<F, Terms>(v, x, point<Extreme>(v, x));
        } else {
            out[0] = debye_value<Terms, k, is_scaled(F), Extreme>(v, x);
        }
        return;
    }
    Point<R> z = point<Extreme>(v, x);
    if constexpr (Order == 1) {
        if constexpr (is_ratio(F)) {
            Slope<R> s = debye_ratio_slope<F, Terms>(x, z);
            out[0] = s.dv;
            out[1] = s.dx;
            return;
        }
        DebyeSlopes<R> s = debye_slopes<Terms, k>(z);
        if constexpr (is_hyp(F)) {
            R u = c<R>(0.5) * (x / v) * (x / (z.r + v));
            out[0] = z.a * z.p * s.A + c<R>(0.5) * z.b * z.b / v - digamma_tail(v) - log1p(u);
            out[1] = x / (v + z.r) + s.dx_small;
        } else {
            out[0] = s.dv;
            R main = is_scaled(F) ? (v / x) * (v / (z.r + x)) : z.r / x;
            out[1] = flip<k>(main) + s.dx_small;
        }
    } else if constexpr (is_ratio(F)) {
        debye_ratio_hess<F, Terms>(v, x, z, out);
    } else {
        Curvature<R> s = debye_curvature_small<Terms, k>(z);
        if constexpr (is_hyp(F)) {
            R above = c<R>(1) + z.a;
            R vv = z.b * ((x / v) / (z.r + v)) - c<R>(0.5) / v / v + trigamma_tail(v);
            out[0] = vv + s.vv;
            out[1] = s.vx - z.b * z.p / above;
            out[2] = z.a * z.p / above + s.xx;
        } else {
            out[0] = flip<k>(-z.p) + s.vv;
            out[1] = flip<k>(z.a / x) + s.vx;
            out[2] = flip<k>(-z.a * (v / x) / x) + s.xx;
        }
    }
}

// ---- below the Debye region
// -------------------------------------------------------------------

// d/dv log I from K and the ratios through the Wronskian, I_v K_{v+1} + I_{v+1} K_v = 1/x:
// log I = -log x - log K - log(kappa + rho), kappa = K_{v+1}/K_v, rho = I_{v+1}/I_v.
template <int N, class R>
struct FromWronskian {
    Ratio<R, N> ratio;
    Moments<R> m;
    R sum;  // kappa + rho
    R dv, dvv;
};

template <int N, bool HighOrder, class R>
CURVKERN_HD FromWronskian<N, R> from_wronskian(R v, R x) {
    FromWronskian<N, R> y;
    y.ratio = iv_ratio_fraction<N>(v, x);
    y.m = integrate_kv<HighOrder, N>(v, x);
    const Moments<R>& m = y.m;
    y.sum = v / x + (c<R>(1) + m.cosh) + y.ratio.rho.d[0];
    R slope = (c<R>(1) / x + y.ratio.rho.d[1]) + m.tcosh;
    R relative = slope / y.sum;
    y.dv = -(m.t + relative);
    if constexpr (N > 1) {
        y.dvv = -m.tt - ((m.ttcosh + y.ratio.rho.d[2]) / y.sum - relative * relative);
    }
    return y;
}

template <Function F, int Order, int Code, class R>
CURVKERN_HD void evaluate_i_small(R v, R x, R* out) {
    constexpr bool low = Code == small_low || Code == middle_low;
    constexpr bool near_zero = Code == small_low || Code == small_high;
    R inverse = c<R>(1) / x;
    if constexpr (F == Function::iv_ratio) {
        if constexpr (Order == 2) {
            Jet<R> ratio = iv_ratio_jet(v, x);
            out[0] = ratio.vv;
            out[1] = ratio.vx;
            out[2] = ratio.xx;
        } else {
            Ratio<R, Order> ratio = iv_ratio_fraction<Order>(v, x);
            out[0] = ratio.rho.d[Order];
            if constexpr (Order == 1) out[1] = ratio.dx;
        }
    } else if constexpr (is_hyp(F)) {
        if constexpr (Order == 0) {
            Pair<R> y = log_series(v, x);
            out[0] = y.hi + y.lo;
            return;
        }
        Taylor<R, Order> s = series_jet<Order>(v, x);
        Ratio<R, Order> ratio = iv_ratio_fraction<Order>(v, x);
        R slope = s.d[1] / s.d[0];
        if constexpr (Order == 1) {
            out[0] = slope;
            out[1] = ratio.rho.d[0];
        } else {
            out[0] = s.d[2] / s.d[0] - slope * slope;
            out[1] = ratio.rho.d[1];
            out[2] = ratio.dx;
        }
    } else if constexpr (Order == 0) {
        out[0] = log_iv_series<!low, is_scaled(F)>(v, x);
    } else {
        R dv, dvv{};
        Ratio<R, Order> ratio;
        if constexpr (near_zero) {
            Taylor<R, Order> s = series_jet<Order>(v, x);
            Taylor<R, 1> psi = digamma1p(v);
            R slope = s.d[1] / s.d[0];
            dv = (log_half(x) - psi.d[0]) + slope;
            if constexpr (Order > 1) dvv = (s.d[2] / s.d[0] - slope * slope) - psi.d[1];
            ratio = iv_ratio_fraction<Order>(v, x);
        } else {
            auto y = from_wronskian<Order, !low>(v, x);
            ratio = y.ratio;
            dv = y.dv;
            dvv = y.dvv;
        }
        if constexpr (Order == 1) {
            out[0] = dv;
            out[1] = v * inverse + (is_scaled(F) ? ratio.rho.d[0] - c<R>(1) : ratio.rho.d[0]);
        } else {
            out[0] = dvv;
            out[1] = mixed_derivative(v, x);
            out[2] = ratio.dx - (v / x) / x;
        }
    }
}

// What log K and the ratio K_{v+1}/K_v are made of below the Debye region.
template <class R>
struct KSlopes {
    R dv, dx, dvv, dvx, dxx;     // of log K
    R ratio, ratio_v, ratio_vv;  // kappa = v/x - dx, its derivatives in v
};

// y'' = 1 + v^2/x^2 - y'/x - y'^2 with y' = -(v + below)/x, below = x K_{v-1}/K_v
template <class R>
CURVKERN_HD R kv_curvature(R v, R x, R below) {
    return c<R>(1) + ((v + below - c<R>(2) * v * below - below * below) / x) / x;
}

template <int Order, class R>
CURVKERN_HD KSlopes<R> k_slopes_temme(R v, R x) {
    KSlopes<R> y{};
    SmallK<R, Order> k = temme<Order>(v, x);
    auto inverse = reciprocal(k.kappa);
    auto flat = k.n == c<R>(0);
    R half_square = c<R>(0.5) * x * x;
    R below = select(flat, c<R>(2), half_square) * (k.below.d[0] * inverse.d[0]);
    R twice = c<R>(2) / x;
    Pair<R> ratio = two_prod(k.ratio.d[0], twice);
    R twice_rest = (c<R>(2) - two_prod(twice, x).hi) - two_prod(twice, x).lo;  // of twice x
    R rest = select(flat, k.ratio_rest * twice, c<R>(0));
    y.ratio = ratio.hi + (ratio.lo + (rest + ratio.hi * (c<R>(0.5) * twice_rest)));
    y.dx = -(v + below) / x;
    y.dxx = kv_curvature(v, x, below);
    if constexpr (Order > 0) {
        y.dv = k.kappa.d[1] * inverse.d[0] + k.log_factor.d[1];
        // for n = 0 log K is even in v: d/dx log K = -even/(x K)
        R even_v = (k.even * inverse).d[1];
        y.ratio_v = select(flat, c<R>(1) + even_v, c<R>(2) * k.ratio.d[1]) / x;
        y.dvx = select(flat, -even_v, c<R>(1) - c<R>(2) * k.ratio.d[1]) / x;
    }
    if constexpr (Order > 1) {
        R slope = k.kappa.d[1] * inverse.d[0];
        y.dvv = (k.kappa.d[2] * inverse.d[0] - slope * slope) + k.log_factor.d[2];
        y.ratio_vv = select(flat, (k.even * inverse).d[2], c<R>(2) * k.ratio.d[2]) / x;
    }
    return y;
}

template <bool HighOrder, int Order, class R>
CURVKERN_HD KSlopes<R> k_slopes_integral(R v, R x) {
    Moments<R> m = integrate_kv<HighOrder, (Order > 0 ? Order : 1)>(v, x);
    R up = c<R>(1) + m.cosh;
    return {m.t, -up, m.tt, -m.tcosh, m.coshcosh, v / x + up, c<R>(1) / x + m.tcosh, m.ttcosh};
}

template <Function F, int Order, class R>
CURVKERN_HD void write_k(R v, R x, const KSlopes<R>& y, R* out) {
    if constexpr (is_ratio(F)) {
        Slope<R> slope = {y.ratio_v, -(v / x) / x - y.dxx};
        if constexpr (Order == 0) out[0] = y.ratio;
        if constexpr (Order == 1) {
            out[0] = slope.dv;
            out[1] = slope.dx;
        }
        if constexpr (Order == 2) riccati_hess(v, x, y.ratio, slope, y.ratio_vv, out);
    } else if constexpr (Order == 1) {
        out[0] = y.dv;
        out[1] = is_scaled(F) ? y.dx + c<R>(1) : y.dx;
    } else if constexpr (Order == 2) {
        out[0] = y.dvv;
        out[1] = y.dvx;
        out[2] = y.dxx;
    }
}

template <Function F, int Order, int Code, class R>
CURVKERN_HD void evaluate_k_small(R v, R x, R* out) {
    constexpr bool high = Code == middle_high;
    constexpr bool near_zero = Code == small_low || Code == small_high;
    if constexpr (Order == 0 && !is_ratio(F)) {
        out[0] = near_zero ? log_kv_small(v, x, is_scaled(F))
                           : log_kv_integral<high>(v, x, is_scaled(F));
    } else if constexpr (near_zero) {
        // the curvature of the ratio needs the second derivatives of log K
        write_k<F, Order>(v, x, k_slopes_temme<Order>(v, x), out);
    } else {
        // d/dx kappa is a variance: one order more than the ratio itself
        constexpr int moments = is_ratio(F) && Order == 1 ? 2 : Order;
        write_k<F, Order>(v, x, k_slopes_integral<high, moments>(v, x), out);
    }
}

// K where (x/2)^{2v} vanishes beside 1: the first of the two series of DLMF 10.27.4, 10.25.2,
//   K_v(x) = Gamma(v)/2 (2/x)^v (1 + s),  s = sum_{1 <= k < v} q^k / (k! (1-v)..(k-v)), q =
//   x^2/4.
template <Function F, int Order, class R>
CURVKERN_HD void evaluate_k_power(R v, R x, R* out) {
    using T = Taylor<R, Order>;
    R q = (c<R>(0.5) * x) * (c<R>(0.5) * x);
    T sum = T::constant(c<R>(0)), weighted = sum;  // s, q ds/dq
    T term = T::constant(c<R>(1));
    for (int k = 1; k <= 6; ++k) {
        auto wanted = v > c<R>(k + 0.1);
        T order = T::variable(select(wanted, v, c<R>(k + 0.5)));
        term = (q * (Scalar<R>(-1) / static_cast<Scalar<R>>(k))) *
               (term * reciprocal(order + c<R>(-k)));
        term = select(wanted, term, T::constant(c<R>(0)));
        sum = sum + term;
        weighted = weighted + c<R>(k) * term;
    }
    T total = reciprocal(sum + c<R>(1));
    T below = c<R>(-2) * (weighted * total);  // x K_{v-1}/K_v
    Pair<R> log_x = log_split(x, c<R>(-1));
    if constexpr (Order == 0 && !is_ratio(F)) {
        // log Gamma(v) - log 2 = log Gamma(v+1) - log(2v)
        Pair<R> y = add(lgamma1p_pair(v), negate(log_split(v, c<R>(1))));
        y = add(y, negate(mul(log_x, v)));
        y = add(y, log1p(sum.d[0]) + (is_scaled(F) ? x : c<R>(0)));
        out[0] = y.hi + y.lo;
        return;
    }
    KSlopes<R> y{};
    y.ratio = (c<R>(2) * v + below.d[0]) / x;
    y.dx = -(v + below.d[0]) / x;
    y.dxx = kv_curvature(v, x, below.d[0]);
    if constexpr (Order > 0) {
        Taylor<R, 1> psi = digamma1p(v);
        R inverse = c<R>(1) / v;
        R slope = sum.d[1] * total.d[0];
        y.dv = ((psi.d[0] - inverse) - log_x.hi) + slope;
        y.ratio_v = (c<R>(2) + below.d[1]) / x;
        y.dvx = -(c<R>(1) + below.d[1]) / x;
        if constexpr (Order > 1) {
            y.dvv = (psi.d[1] + inverse * inverse) + (sum.d[2] * total.d[0] - slope * slope);
            y.ratio_vv = below.d[2] / x;
        }
    }
    write_k<F, Order>(v, x, y, out);
}

// ---- special: d/dv log I where pi e^-2x matters, log 0F1 of low order
// --------------------------

template <Function F, int Order, class R>
CURVKERN_HD void evaluate_special(R v, R x, R* out) {
    constexpr int terms = Limits<R>::terms(0);
    if constexpr (is_hyp(F)) {
        if constexpr (Order == 0) {
            // beyond 2^400 log I is x to the last bit
            R near = min(x, c<R>(is_double<R> ? 0x1p400 : 0x1p45));
            R rest = debye_value<terms, false, false, false>(v, near) + (x - near);
            out[0] = (rest - v * log_half(x)) + lgamma1p_pair(v).hi;
            return;
        }
        evaluate_debye<Function::log_iv, Order, terms, true>(v, x, out);
        Taylor<R, 1> psi = digamma1p(v);
        Point<R> z = point<true>(v, x);
        if constexpr (Order == 1) {
            out[0] = out[0] + (psi.d[0] - log_half(x));
            out[1] = debye_ratio<Function::iv_ratio, terms>(v, x, z);
        } else {
            Slope<R> s = debye_ratio_slope<Function::iv_ratio, terms>(x, z);
            out[0] = out[0] + psi.d[1];
            out[1] = s.dv;
            out[2] = s.dx;
        }
    } else {
        evaluate_debye<F, Order, terms, false>(v, x, out);
        Point<R> z = point<false>(v, x);
        R tau = z.a * z.a;
        R odd = debye_sum<terms, 0>(-z.p, tau).s - debye_sum<terms, 0>(z.p, tau).s;
        Pair<R> main = debye_main<false, false>(scaling<false>(v, x), x, polar_scaled(v, x).r);
        R k_over_i = c<R>(pi) * exp(c<R>(-2) * main.hi) * exp(odd - c<R>(2) * main.lo);
        CosSin<R> turn = cos_sin_pi(v);
        if constexpr (Order == 2) {
            // d/dx (K/I) = -1/(x I^2) = -(K/I) (kappa + rho)
            R sum = c<R>(2) * z.r / x + (debye_slopes<terms, false>(z).dx_small -
                                         debye_slopes<terms, true>(z).dx_small);
            out[1] = out[1] + turn.cos * k_over_i * sum;
            return;
        }
        R sine = turn.sin * c<R>(1 / pi);
        out[0] = out[0] - k_over_i * (turn.cos + sine * (z.angle - out[0]));
    }
}

template <Function F, int Order, class R>
CURVKERN_HD void evaluate_wide_series(R v, R x, R* out) {
    if constexpr (Order == 0) {
        R z = (c<R>(0.5) * x) * (c<R>(0.5) * x) / (v + c<R>(1));
        R term = c<R>(1), sum = c<R>(0);  // sum of t_k / z, t_k = z^k / (k! (1+1/(v+1)) ...)
        for (int k = 2; k <= 30; ++k) {
            sum = sum + term;
            R spread = (v + c<R>(1)) / (v + c<R>(k));
            term = term * (z * spread * (Scalar<R>(1) / static_cast<Scalar<R>>(k)));
        }
        out[0] = log1p(z * sum);
    } else {
        constexpr int terms = Limits<R>::terms(0);
        Point<R> p = point<true>(v, x);
        auto sum = Taylor<R, Order>::constant(c<R>(1));
        auto term = sum;
        R quarter_square = c<R>(0.25) * x * x;
        for (int k = 1; k <= 30; ++k) {
            auto inverse = reciprocal(Taylor<R, Order>::variable(v) + c<R>(k));
            term = (quarter_square * (Scalar<R>(1) / static_cast<Scalar<R>>(k))) *
                   (term * inverse);
            sum = sum + term;
        }
        R slope = sum.d[1] / sum.d[0];
        if constexpr (Order == 1) {
            out[0] = slope;
            out[1] = debye_ratio<Function::iv_ratio, terms>(v, x, p);
        } else {
            Slope<R> s = debye_ratio_slope<Function::iv_ratio, terms>(x, p);
            out[0] = sum.d[2] / sum.d[0] - slope * slope;
            out[1] = s.dv;
            out[2] = s.dx;
        }
    }
}

template <Function F, int Order, int Code, class R>
CURVKERN_HD void evaluate(R v, R x, R* out) {
    if constexpr (Code == special) {
        if constexpr (is_k(F)) {
            evaluate_k_power<F, Order>(v, x, out);
        } else if constexpr (is_hyp(F) || is_slope_of_i(F, Order)) {
            evaluate_special<F, Order>(v, x, out);
        }
    } else if constexpr (Code == wide_series) {
        if constexpr (is_hyp(F)) evaluate_wide_series<F, Order>(v, x, out);
    } else if constexpr (Code == hankel) {
        if constexpr (has_hankel(F, Order)) {
            if constexpr (Order == 0) {
                out[0] = hankel_value<is_k(F), is_scaled(F)>(v, x);
            } else {
                write_low_order_slopes<is_k(F), is_scaled(F)>(v, x, hankel_slopes(v, x), out);
            }
        }
    } else if constexpr (Code >= fitted) {
        constexpr int piece = Code - fitted;
        if constexpr (has_fit(F, Order) && piece < Limits<R>::pieces) {
            if constexpr (Order == 0 && is_k(F)) {
                out[0] = fitted_kv_value<piece, is_scaled(F)>(v, x);
            } else if constexpr (Order == 0) {
                out[0] = fitted_ive_value<piece>(v, x);
            } else {
                write_low_order_slopes<is_k(F), is_scaled(F)>(v, x, fitted_slopes<piece>(v, x),
                                                              out);
            }
        }
    } else if constexpr (Code == careful) {
        evaluate_debye<F, Order, Careful<R>::terms, true>(v, x, out);
    } else if constexpr (Code >= debye && Code < debye + Limits<R>::tiers) {
        evaluate_debye<F, Order, Limits<R>::terms(Code - debye), false>(v, x, out);
    } else if constexpr (Code >= small_low && Code <= middle_high) {
        if constexpr (is_k(F)) {
            evaluate_k_small<F, Order, Code>(v, x, out);
        } else {
            evaluate_i_small<F, Order, Code>(v, x, out);
        }
    }
}

}  // namespace isa
}  // namespace curvkern::bessel
