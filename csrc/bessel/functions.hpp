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
CURVKERN_HD R debye_ratio(R v, R x, const Polar<R>& z) {
    R small = debye_slopes<Terms, is_k(F)>(z).dx_small;
    if constexpr (is_k(F)) return (v + z.r) / x - small;
    return x / (v + z.r) + small;
}

// Derivatives of the ratios in v and x, from the second derivatives of the logarithms.
template <Function F, int Terms, class R>
CURVKERN_HD Slope<R> debye_ratio_slope(R x, const Polar<R>& z) {
    Curvature<R> s = debye_curvature_small<Terms, is_k(F)>(z);
    R above = c<R>(1) + z.a;
    if constexpr (is_k(F)) return {above / x - s.vx, -above * (z.a * z.r / x) / x - s.xx};
    return {s.vx - z.b * z.p / above, z.a * z.p / above + s.xx};
}

// Second derivatives in v of the ratios: the same formula in Taylor arithmetic.
template <Function F, int Terms, class R>
CURVKERN_HD R debye_ratio_vv(R v, R x, const Polar<R>& z) {
    using T = Taylor<R, 2>;
    T order = T::variable(v);
    T r = {z.r, z.a, z.b * z.b * z.p};
    T p = reciprocal(r), a = order * p, tau = a * a;
    T q = is_k(F) ? c<R>(-1) * p : p;
    T q1{}, t1{};
    for (int k = Terms; k >= 1; --k) {
        T e{}, e1{};
        for (int j = k; j >= 0; --j) {
            e1 = e1 * tau + e;
            e = e * tau + c<R>(tables::debye[k][j]);
        }
        q1 = (q1 + c<R>(k) * e) * q;
        t1 = (t1 + e1) * q;
    }
    T small = (x * (p * p)) * ((c<R>(-1) * q1 - c<R>(2) * (tau * t1)) + c<R>(-0.5));
    // leading terms: (v + r)/x and x/(v + r)
    if constexpr (is_k(F)) return r.d[2] / x - small.d[2];
    return (x * reciprocal(order + r)).d[2] + small.d[2];
}

// Riccati's equation, rho' = s (1 - rho^2) - (2v+1) rho/x with s = 1 for I, -1 for K, once more
// differentiated: in v and in x.
template <Function F, class R>
CURVKERN_HD void riccati_hess(R v, R x, R rho, Slope<R> slope, R vv, R* out) {
    R twice = is_k(F) ? c<R>(2) * rho : c<R>(-2) * rho;
    R order = (c<R>(2) * v + c<R>(1)) / x;
    out[0] = vv;
    out[1] = (twice - order) * slope.dv - c<R>(2) * (rho / x);
    out[2] = twice * slope.dx - order * (slope.dx - rho / x);
}

// log 0F1 for v >= 15 (7): log Gamma(v+1) - v log(x/2) + log I_v(x) with everything that cancels
// cancelled by hand, u = (r - v)/(2v).
template <int Terms, class R>
CURVKERN_HD R debye_hyp(R v, R x) {
    Polar<R> z = polar<few_pairs<R>>(v, x);
    R u = c<R>(0.5) * (x / v) * (x / (z.r + v));
    R s = debye_sum<Terms, 0>(z.p, z.a * z.a).s;
    R q = x / v;
    // log(r/v)/2; q^2 overflows where v is far below x
    R log_r = select(q < c<R>(0x1p30), c<R>(0.25) * log1p(q * q), c<R>(0.5) * log(z.r / v));
    return v * (c<R>(2) * u - log1p(u)) - log_r + (s + stirling_tail(v));
}

template <class R>
CURVKERN_HD R digamma_tail(R v) {  // log v + 1/(2v) - psi(v+1), v >= 15 (7)
    constexpr double t[] = {1.0 / 12, -1.0 / 120, 1.0 / 252, -1.0 / 240, 1.0 / 132, -691.0 / 32760,
                            1.0 / 12};
    R square = (c<R>(1) / v) / v;
    return square * horner(square, t);
}

template <class R>
CURVKERN_HD R trigamma_tail(R v) {  // psi'(v+1) - 1/v + 1/(2v^2)
    constexpr double t[] = {1.0 / 6, -1.0 / 30, 1.0 / 42, -1.0 / 30, 5.0 / 66, -691.0 / 2730,
                            7.0 / 6};
    R square = (c<R>(1) / v) / v;
    return (square / v) * horner(square, t);
}

template <Function F, int Order, int Terms, int Pairs, class R>
CURVKERN_HD void evaluate_debye(R v, R x, R* out) {
    constexpr bool k = is_k(F);
    if constexpr (Order == 0) {
        if constexpr (is_hyp(F)) {
            out[0] = debye_hyp<Terms>(v, x);
        } else if constexpr (is_ratio(F)) {
            out[0] = debye_ratio<F, Terms>(v, x, polar<few_pairs<R>>(v, x));
        } else {
            out[0] = debye_value<Terms, k, Pairs>(v, x, is_scaled(F) ? flip<k>(x) : c<R>(0));
        }
        return;
    }
    Polar<R> z = polar<few_pairs<R>>(v, x);
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
            R main = is_scaled(F) ? v * (v / (x * (z.r + x))) : z.r / x;
            out[1] = flip<k>(main) + s.dx_small;
        }
    } else if constexpr (is_ratio(F)) {
        Slope<R> s = debye_ratio_slope<F, Terms>(x, z);
        riccati_hess<F>(v, x, debye_ratio<F, Terms>(v, x, z), s, debye_ratio_vv<F, Terms>(v, x, z),
                        out);
    } else {
        Curvature<R> s = debye_curvature_small<Terms, k>(z);
        if constexpr (is_hyp(F)) {
            R above = c<R>(1) + z.a;
            R vv = z.b * (x / (v * (z.r + v))) - c<R>(0.5) / v / v + trigamma_tail(v);
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

// ---- below the Debye region -------------------------------------------------------------------

// d/dv log I from K and the ratios through the Wronskian, I_v K_{v+1} + I_{v+1} K_v = 1/x:
// log I = -log x - log K - log(kappa + rho), kappa = K_{v+1}/K_v, rho = I_{v+1}/I_v.
template <int N, class R>
struct FromWronskian {
    Ratio<R, N> ratio;
    Moments<R> m;
    R sum;       // kappa + rho
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

// d/dv log I for v <= 1/2: the even part of I, and the recessive K that breaks the symmetry.
//   I = E - sin(pi v)/pi K
template <int N, class R>
CURVKERN_HD R low_order_slope(R v, R x, const FromWronskian<N, R>& y) {
    R k = exp_normal(-x) * y.m.total;
    R over_i = x * k * y.sum;  // 1/I
    CosSin<R> turn = cos_sin_pi(v);
    R sine = turn.sin * c<R>(1 / pi);
    return -over_i * (v * even_part_slope(v, x) + k * (turn.cos + sine * y.m.t));
}

template <Function F, int Order, int Code, class R>
CURVKERN_HD void evaluate_i_small(R v, R x, R* out) {
    constexpr bool low = Code == small_low || Code == middle_low;
    constexpr bool near_zero = Code == small_low || Code == small_high;
    R inverse = c<R>(1) / x;
    if constexpr (F == Function::iv_ratio) {
        Ratio<R, Order> ratio = iv_ratio_fraction<Order>(v, x);
        if constexpr (Order == 0) out[0] = ratio.rho.d[0];
        if constexpr (Order == 1) {
            out[0] = ratio.rho.d[1];
            out[1] = ratio.dx;
        }
        if constexpr (Order == 2) {
            const auto& rho = ratio.rho;
            riccati_hess<F>(v, x, rho.d[0], Slope<R>{rho.d[1], ratio.dx}, rho.d[2], out);
        }
    } else if constexpr (is_hyp(F)) {
        if constexpr (Order == 0) {
            out[0] = log_series(v, x);
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
        R shift = is_scaled(F) ? x : c<R>(0);
        out[0] = low ? log_iv_low_order(v, x, shift) : log_iv_high_order(v, x, shift);
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
            if constexpr (low && Order == 1) dv = low_order_slope(v, x, y);
        }
        if constexpr (Order == 1) {
            out[0] = dv;
            out[1] = v * inverse + (is_scaled(F) ? ratio.rho.d[0] - c<R>(1) : ratio.rho.d[0]);
        } else {
            out[0] = dvv;
            out[1] = inverse + ratio.rho.d[1];
            out[2] = ratio.dx - (v / x) / x;
        }
    }
}

template <Function F, int Order, int Code, class R>
CURVKERN_HD void evaluate_k_small(R v, R x, R* out) {
    constexpr bool high = Code == middle_high;
    constexpr bool near_zero = Code == small_low || Code == small_high;
    if constexpr (Order == 0 && !is_ratio(F)) {
        out[0] = near_zero ? log_kv_small(v, x, is_scaled(F))
                           : log_kv_integral<high>(v, x, is_scaled(F));
        return;
    }
    // m: -d/dx log K - v/x = K_{v-1}/K_v
    R kappa, kappa_v{}, kappa_vv{}, dv{}, dx, dvv{}, dvx{}, dxx{};
    if constexpr (near_zero) {
        SmallK<R, Order> k = temme<Order>(v, x);
        auto inverse = reciprocal(k.kappa);
        auto up = k.above * inverse;
        kappa = (c<R>(2) * k.above.d[0]) / (x * k.kappa.d[0]);
        R half_square = c<R>(0.5) * x * x;
        R factor = select(k.n == c<R>(0), c<R>(2), half_square);
        auto down = k.below * inverse;
        dx = -(v + factor * down.d[0]) / x;
        if constexpr (Order > 0) {
            kappa_v = c<R>(2) * up.d[1] / x;
            dv = k.kappa.d[1] * inverse.d[0];
            dvx = c<R>(1) / x - kappa_v;
        }
        if constexpr (Order > 1) {
            dvv = k.kappa.d[2] * inverse.d[0] - dv * dv;
            kappa_vv = c<R>(2) * up.d[2] / x;
        }
        R below = factor * down.d[0];  // x K_{v-1}/K_v
        // y'' = 1 + v^2/x^2 - y'/x - y'^2 with y' = -(v + below)/x, divided by x twice at the end
        dxx = c<R>(1) + ((v + below - c<R>(2) * v * below - below * below) / x) / x;
    } else {
        Moments<R> m = integrate_kv<high, (Order > 0 ? Order : 1)>(v, x);
        kappa = v / x + (c<R>(1) + m.cosh);
        dv = m.t;
        dx = -(c<R>(1) + m.cosh);
        dvx = -m.tcosh;
        kappa_v = c<R>(1) / x - dvx;
        dvv = m.tt;
        kappa_vv = m.ttcosh;
        dxx = m.coshcosh;
    }
    if constexpr (is_ratio(F)) {
        if constexpr (Order == 0) out[0] = kappa;
        // kappa' = kappa^2 - (2v+1) kappa/x - 1
        R slope = kappa * (kappa - (c<R>(2) * v + c<R>(1)) / x) - c<R>(1);
        if constexpr (Order == 1) {
            out[0] = kappa_v;
            out[1] = slope;
        }
        if constexpr (Order == 2) {
            riccati_hess<F>(v, x, kappa, Slope<R>{kappa_v, slope}, kappa_vv, out);
        }
    } else if constexpr (Order == 1) {
        out[0] = dv;
        out[1] = is_scaled(F) ? dx + c<R>(1) : dx;
    } else if constexpr (Order == 2) {
        out[0] = dvv;
        out[1] = dvx;
        out[2] = dxx;
    }
}

// ---- special: d/dv log I where pi e^-2x matters, log 0F1 of low order --------------------------

template <Function F, int Order, class R>
CURVKERN_HD void evaluate_special(R v, R x, R* out) {
    constexpr int terms = Limits<R>::terms(0);
    if constexpr (is_hyp(F)) {
        if constexpr (Order == 0) {
            R rest = debye_value<terms, false, few_pairs<R>>(v, x, c<R>(0));
            out[0] = (rest - v * log_half(x)) + lgamma1p_pair(v).hi;
            return;
        }
        evaluate_debye<Function::log_iv, Order, terms, few_pairs<R>>(v, x, out);
        Taylor<R, 1> psi = digamma1p(v);
        if constexpr (Order == 1) {
            out[0] = out[0] + (psi.d[0] - log_half(x));
            Polar<R> z = polar<few_pairs<R>>(v, x);
            out[1] = debye_ratio<Function::iv_ratio, terms>(v, x, z);
        } else {
            Slope<R> s = debye_ratio_slope<Function::iv_ratio, terms>(x, polar<few_pairs<R>>(v, x));
            out[0] = out[0] + psi.d[1];
            out[1] = s.dv;
            out[2] = s.dx;
        }
    } else {
        evaluate_debye<F, Order, terms, few_pairs<R>>(v, x, out);
        Polar<R> z = polar<few_pairs<R>>(v, x);
        R tau = z.a * z.a;
        R odd = debye_sum<terms, 0>(-z.p, tau).s - debye_sum<terms, 0>(z.p, tau).s;
        R k_over_i = c<R>(pi) * exp(c<R>(-2) * z.main.hi) * exp(odd - c<R>(2) * z.main.lo);
        CosSin<R> turn = cos_sin_pi(v);
        R sine = turn.sin * c<R>(1 / pi);
        out[0] = out[0] - k_over_i * (turn.cos + sine * (z.angle.hi - out[0]));
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
        Polar<R> p = polar<few_pairs<R>>(v, x);
        constexpr int terms = Limits<R>::terms(0);
        auto sum = Taylor<R, Order>::constant(c<R>(1));
        auto term = sum;
        R quarter_square = c<R>(0.25) * x * x;
        for (int k = 1; k <= 30; ++k) {
            auto inverse = reciprocal(Taylor<R, Order>::variable(v) + c<R>(k));
            term = (quarter_square * (Scalar<R>(1) / static_cast<Scalar<R>>(k))) * (term * inverse);
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
        if constexpr (is_hyp(F) || (Order == 1 && !is_k(F) && !is_ratio(F))) {
            evaluate_special<F, Order>(v, x, out);
        }
    } else if constexpr (Code == wide_series) {
        if constexpr (is_hyp(F)) evaluate_wide_series<F, Order>(v, x, out);
    } else if constexpr (Code == zero_band) {
        if constexpr (has_zero_band(F, Order)) {
            evaluate_debye<F, Order, Limits<R>::terms(Limits<R>::tiers - 1), all_pairs<R>>(v, x, out);
        }
    } else if constexpr (Code >= debye && Code < debye + Limits<R>::tiers) {
        evaluate_debye<F, Order, Limits<R>::terms(Code - debye), few_pairs<R>>(v, x, out);
    } else if constexpr (Code >= small_low && Code <= middle_high) {
        if constexpr (is_k(F)) {
            evaluate_k_small<F, Order, Code>(v, x, out);
        } else {
            evaluate_i_small<F, Order, Code>(v, x, out);
        }
    }
}

}
}  // namespace curvkern::bessel
