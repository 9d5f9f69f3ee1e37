// K_v(x) for small x: Temme's series at |f| <= 1/2 and the recurrence up to v = f + n.
//
// N. M. Temme, "On the numerical evaluation of the modified Bessel function of the third kind",
// J. Comput. Phys. 19 (1975). With sigma = f log(2/x), 1/Gamma(1+-f) = G_even -+ f G_odd, and
// P_k = p_k + q_k, D_k = (p_k - q_k)/f carried beside Temme's p_k, q_k: K_f is then made of
// terms even in f, and d/df log K is as exact near f = 0 as elsewhere. The denominator of f_0
// and P_0 is 1/(Gamma(1+f) Gamma(1-f)); it is left out and its logarithm added at the end.
//   p_0 = e^sigma Gamma(1+f)/2,  q_0 = e^-sigma Gamma(1-f)/2,  p_k = p_{k-1}/(k-f),  q_k = ..
//   f_0 = D_0 = [cosh(sigma) G_odd + (sinh(sigma)/f) G_even] / (G_even^2 - f^2 G_odd^2)
//   P_0 = [cosh(sigma) G_even + f^2 (sinh(sigma)/f) G_odd] / (G_even^2 - f^2 G_odd^2)
//   f_k = (k f + P)/(k^2 - f^2),  P_k = (k P + f^2 D)/(k^2 - f^2),  D_k = (k D + P)/(k^2 - f^2)
//   K_f = sum c_k f_k,  K_{f+-1} = (2/x) sum c_k (p_k or q_k - k f_k),  c_k = (x^2/4)^k / k!
// The recurrence runs on kappa_j = K_{f+j} (x/2)^j, which neither overflows nor cancels.
#pragma once

#include "tables.hpp"
#include "taylor.hpp"

namespace curvkern::bessel {
CURVKERN_PER_ISA {

template <class R, int N>
struct SmallK {
    // without the factor Gamma(1+f) Gamma(1-f) that all K have in common:
    Taylor<R, N> kappa;  // K_v (x/2)^n
    Taylor<R, N> above;  // K_{v+1} (x/2)^{n+1}
    Taylor<R, N> below;  // K_{v-1} (x/2)^{n-1}, divided by (x/2)^2 where n = 0
    Taylor<R, N> even;   // x/2 (K_{f+1} + K_{f-1}), even in f
    Taylor<R, N> ratio;  // above/kappa from its own recurrence, exact to the last derivative
    Taylor<R, N> log_factor;
    R kappa_rest, ratio_rest;  // what rounding left of the two, n = 0
    R n;
    Pair<R> log_two_over_x;
};

// sinh(f l)/f and its derivatives in f; l is a pair, as an error in it is one in f_0
template <int N, class R>
CURVKERN_HD Taylor<R, N> sinh_over(R f, Pair<R> log_two_over_x, R sinh_s, R cosh_s, R& rest) {
    R l = log_two_over_x.hi, s = f * l, s2 = s * s;
    auto series = s2 < c<R>(is_double<R> ? 1 : 4);  // the closed forms cancel
    // shc(s) = sinh(s)/s = sum s^2k/(2k+1)!, and its derivatives divided by s, and again
    constexpr double t[] = {1.0,
                            1.0 / 6,
                            1.0 / 120,
                            1.0 / 5040,
                            1.0 / 362880,
                            1.0 / 39916800,
                            1.0 / 6227020800,
                            1.0 / 1307674368000,
                            1.0 / 355687428096000};
    constexpr double t1[] = {
        2.0 / 6,         4.0 / 120,         6.0 / 5040,           8.0 / 362880,
        10.0 / 39916800, 12.0 / 6227020800, 14.0 / 1307674368000, 16.0 / 355687428096000};
    constexpr double t2[] = {
        2.0 / 6,         12.0 / 120,         30.0 / 5040,           56.0 / 362880,
        90.0 / 39916800, 132.0 / 6227020800, 182.0 / 1307674368000, 240.0 / 355687428096000};
    R inverse = c<R>(1) / select(series, c<R>(1), s);
    Taylor<R, N> y;
    Pair<R> product = two_prod(l, horner(s2, t));
    y.d[0] = select(series, product.hi, sinh_s / select(series, c<R>(1), f));
    rest = select(series, product.lo + log_two_over_x.lo * cosh_s, c<R>(0));
    if constexpr (N > 0) {
        R closed = (cosh_s - sinh_s * inverse) * inverse;
        y.d[1] = l * l * select(series, s * horner(s2, t1), closed);
        if constexpr (N > 1) {
            R closed2 = (sinh_s - c<R>(2) * closed) * inverse;
            y.d[2] = l * l * l * select(series, horner(s2, t2), closed2);
        }
    }
    return y;
}

template <int N, class R>
CURVKERN_SHARED SmallK<R, N> temme(R v, R x) {
    using T = Taylor<R, N>;
    R n = (v + c<R>(Float<R>::round_magic)) - c<R>(Float<R>::round_magic);
    R f = v - n;
    // sigma as a pair: an error in it is a relative error of e^sigma
    Pair<R> log_half = log_split(x, c<R>(-1));
    Pair<R> log_two_over_x = negate(log_half);
    R l = log_two_over_x.hi;
    Pair<R> sigma = two_prod(f, l);
    sigma.lo = sigma.lo + f * log_two_over_x.lo;
    R up = exp_normal(sigma);
    R down = c<R>(1) / up;
    R sinh_s = c<R>(0.5) * (up - down), cosh_s = c<R>(0.5) * (up + down);

    T order = T::variable(f);
    T w = order * order;
    T g_even = horner(w + c<R>(-0.125), tables::rgamma_even);
    T g_odd = horner(w + c<R>(-0.125), tables::rgamma_odd);
    g_even.d[0] = horner_exact(w.d[0] - c<R>(0.125), tables::rgamma_even);
    R sinh_rest;  // what rounding left of its value
    T sinh_t = sinh_over<N>(f, log_two_over_x, sinh_s, cosh_s, sinh_rest);
    T cosh_t = T::constant(cosh_s);
    if constexpr (N > 0) cosh_t.d[1] = l * (f * sinh_t.d[0]);
    if constexpr (N > 1) cosh_t.d[2] = l * l * cosh_s;
    R quarter_square = c<R>(0.25) * x * x, ck = c<R>(1);
    T up_t = T::constant(c<R>(0.5) * up), down_t = T::constant(c<R>(0.5) * down);
    if constexpr (N > 0) {
        up_t.d[1] = l * up_t.d[0];
        down_t.d[1] = -l * down_t.d[0];
    }
    if constexpr (N > 1) {
        up_t.d[2] = l * up_t.d[1];
        down_t.d[2] = -l * down_t.d[1];
    }
    T p = up_t * (g_even + order * g_odd), q = down_t * (g_even - order * g_odd);
    // e^+-sigma y as y + y (e^+-sigma - 1): one rounding instead of two
    R grown = expm1_reduced(sigma), shrunk = -grown * down;
    R plus = c<R>(0.5) * (g_even.d[0] + f * g_odd.d[0]);
    R minus = c<R>(0.5) * (g_even.d[0] - f * g_odd.d[0]);
    auto mild = abs(sigma.hi) < c<R>(0.34);
    Pair<R> p_first = fast_two_sum(plus, plus * grown);
    Pair<R> q_first = fast_two_sum(minus, minus * shrunk);
    p_first = {select(mild, p_first.hi, p.d[0]), select(mild, p_first.lo, c<R>(0))};
    q_first = {select(mild, q_first.hi, q.d[0]), select(mild, q_first.lo, c<R>(0))};
    p.d[0] = p_first.hi;
    q.d[0] = q_first.hi;
    T fk = cosh_t * g_odd + sinh_t * g_even;
    Pair<R> leading = two_prod(sinh_t.d[0], g_even.d[0]);
    Pair<R> other = two_prod(cosh_s, g_odd.d[0]);
    leading.lo = leading.lo + sinh_rest * g_even.d[0];
    leading = add(leading, other);
    fk.d[0] = leading.hi + leading.lo;
    // the same as (p_0 - q_0)/f, which cancels less once e^sigma leads
    auto led = sigma.hi * sigma.hi >= c<R>(1);
    fk.d[0] = select(led, (p.d[0] - q.d[0]) / select(led, f, c<R>(1)), fk.d[0]);
    T D = fk, P = cosh_t * g_even + w * (sinh_t * g_odd);
    T sum = fk, sum_up = p, sum_down = q, sum_even = P;
    // values as pairs: the first term's rounding is most of the error
    Pair<R> first = {fk.d[0], select(led, c<R>(0), (leading.hi - fk.d[0]) + leading.lo)};
    R others = c<R>(0), others_up = c<R>(0), others_down = c<R>(0);
    constexpr int terms = is_double<R> ? 12 : 7;
    for (int k = 1; k <= terms; ++k) {
        T inverse = reciprocal(T::constant(c<R>(double(k) * k)) - w);
        fk = (c<R>(k) * fk + P) * inverse;
        T P_next = (c<R>(k) * P + w * D) * inverse;
        D = (c<R>(k) * D + P) * inverse;
        P = P_next;
        p = p * inverse * (order + c<R>(k));
        q = q * inverse * (T::constant(c<R>(k)) - order);
        ck = ck * quarter_square * (Scalar<R>(1) / static_cast<Scalar<R>>(k));
        sum = sum + ck * fk;
        others = others + ck * fk.d[0];
        others_up = others_up + ck * (p.d[0] - c<R>(k) * fk.d[0]);
        others_down = others_down + ck * (q.d[0] - c<R>(k) * fk.d[0]);
        sum_up = sum_up + ck * (p - c<R>(k) * fk);
        sum_down = sum_down + ck * (q - c<R>(k) * fk);
        sum_even = sum_even + ck * (P - c<R>(2 * k) * fk);
    }
    Pair<R> whole = add(first, others);
    sum.d[0] = whole.hi;
    T ratio = sum_up * reciprocal(sum);
    // K_{f+1} = K_{f-1} + (2f/x) K_f: for f > 0 most of the ratio is f itself
    Pair<R> direct = div(add(p_first, others_up), whole);
    Pair<R> split = add(div(add(q_first, others_down), whole), f);
    auto upper = f > c<R>(0);
    ratio.d[0] = select(upper, split.hi, direct.hi);
    R ratio_rest = select(upper, split.lo, direct.lo);
    T log_factor = horner(w + c<R>(-0.125), tables::log_gamma_product);
    SmallK<R, N> y{sum,        sum_up,   sum_down,   sum_even, ratio,
                   log_factor, whole.lo, ratio_rest, n,        log_two_over_x};
    const int steps = static_cast<int>(largest(n));
    for (int j = 1; j <= steps; ++j) {
        auto active = n >= c<R>(j);
        T next = y.above * (order + c<R>(j)) + quarter_square * y.kappa;
        T next_ratio = quarter_square * reciprocal(y.ratio) + (order + c<R>(j));
        y.ratio = select(active, next_ratio, y.ratio);
        y.below = select(active, y.kappa, y.below);
        y.kappa = select(active, y.above, y.kappa);
        y.above = select(active, next, y.above);
    }
    return y;
}

template <class R>
CURVKERN_HD R log_kv_small(R v, R x, bool scaled) {
    SmallK<R, 0> k = temme<0>(v, x);
    R rest = select(k.n == c<R>(0), k.kappa_rest / k.kappa.d[0], c<R>(0));
    rest = (rest + k.n * k.log_two_over_x.lo) + k.log_factor.d[0];
    return ((log(k.kappa.d[0]) + rest) + k.n * k.log_two_over_x.hi) + (scaled ? x : c<R>(0));
}

}  // namespace isa
}  // namespace curvkern::bessel
