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

#include "exponentials.hpp"
#include "tables.hpp"

namespace curvkern::bessel {
CURVKERN_PER_ISA {

// 1/Gamma(1-f) = even + f odd, 1/Gamma(1+f) = even - f odd
template <class R, int N>
struct ReciprocalGamma {
    Taylor<R, N> even, odd;
};

template <int N, class R>
CURVKERN_HD ReciprocalGamma<R, N> reciprocal_gamma(R f) {
    auto order = Taylor<R, N>::variable(f);
    auto w = order * order;
    ReciprocalGamma<R, N> y = {horner(w + c<R>(-0.125), tables::rgamma_even),
                               horner(w + c<R>(-0.125), tables::rgamma_odd)};
    y.even.d[0] = horner_exact(w.d[0] - c<R>(0.125), tables::rgamma_even);
    return y;
}

// The sums of the series without the factor Gamma(1+f) Gamma(1-f) that all have in common.
template <class R, int N>
struct TemmeSums {
    Taylor<R, N> plain;  // K_f
    Taylor<R, N> up;     // x/2 K_{f+1}
    Taylor<R, N> down;   // x/2 K_{f-1}
    Taylor<R, N> even;   // x/2 (K_{f+1} + K_{f-1}), even in f
    // values as pairs: the first term's rounding is most of the error
    Pair<R> plain_pair, up_pair, down_pair;
};

// Scaled: e is, and g is over 1/Gamma(1-f), so that p_0 is a constant and the derivative of
// what follows from it has no rounding of it.
template <int N, bool Scaled, class R>
CURVKERN_HD TemmeSums<R, N> temme_sums(R f, R quarter_square, R sigma,
                                       const Exponentials<R, N>& e,
                                       const ReciprocalGamma<R, N>& g) {
    using T = Taylor<R, N>;
    T order = T::variable(f), w = order * order;
    T p = Scaled ? e.up : e.up * (g.even + order * g.odd);
    T q = e.down * (g.even - order * g.odd);
    // e^+-sigma y as y + y (e^+-sigma - 1): one rounding instead of two
    R half = Scaled ? e.up.d[0] : c<R>(0.5);
    R plus = half * (g.even.d[0] + f * g.odd.d[0]);
    R minus = half * (g.even.d[0] - f * g.odd.d[0]);
    auto mild = abs(sigma) < c<R>(mild_sigma<Scaled>);
    Pair<R> p_first = fast_two_sum(plus, plus * e.up_less);
    Pair<R> q_first = fast_two_sum(minus, minus * e.down_less);
    if constexpr (Scaled) p_first = {p.d[0], c<R>(0)};
    p_first = {select(mild, p_first.hi, p.d[0]), select(mild, p_first.lo, c<R>(0))};
    q_first = {select(mild, q_first.hi, q.d[0]), select(mild, q_first.lo, c<R>(0))};
    p.d[0] = p_first.hi;
    q.d[0] = q_first.hi;
    T fk = e.cosh * g.odd + e.sinh * g.even;
    Pair<R> leading = two_prod(e.sinh.d[0], g.even.d[0]);
    leading.lo = leading.lo + e.sinh_rest * g.even.d[0];
    leading = add(leading, two_prod(e.cosh.d[0], g.odd.d[0]));
    fk.d[0] = leading.hi + leading.lo;
    // the same as (p_0 - q_0)/f, which cancels less once e^sigma leads
    auto led = sigma * sigma >= c<R>(1);
    fk.d[0] = select(led, (p.d[0] - q.d[0]) / select(led, f, c<R>(1)), fk.d[0]);
    T D = fk, P = e.cosh * g.even + w * (e.sinh * g.odd);
    TemmeSums<R, N> y{fk, p, q, P, {}, {}, {}};
    Pair<R> first = {fk.d[0], select(led, c<R>(0), (leading.hi - fk.d[0]) + leading.lo)};
    R others = c<R>(0), others_up = c<R>(0), others_down = c<R>(0), ck = c<R>(1);
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
        others = others + ck * fk.d[0];
        others_up = others_up + ck * (p.d[0] - c<R>(k) * fk.d[0]);
        others_down = others_down + ck * (q.d[0] - c<R>(k) * fk.d[0]);
        y.plain = y.plain + ck * fk;
        y.up = y.up + ck * (p - c<R>(k) * fk);
        y.down = y.down + ck * (q - c<R>(k) * fk);
        y.even = y.even + ck * (P - c<R>(2 * k) * fk);
    }
    y.plain_pair = add(first, others);
    y.up_pair = add(p_first, others_up);
    y.down_pair = add(q_first, others_down);
    y.plain.d[0] = y.plain_pair.hi;
    y.up.d[0] = y.up_pair.hi;
    y.down.d[0] = y.down_pair.hi;
    return y;
}

template <class R>
CURVKERN_HD R nearest_integer(R v) {
    return (v + c<R>(Float<R>::round_magic)) - c<R>(Float<R>::round_magic);
}

// f log(2/x)
template <class R>
CURVKERN_HD Pair<R> temme_sigma(R f, Pair<R> log_two_over_x) {
    Pair<R> sigma = two_prod(f, log_two_over_x.hi);
    sigma.lo = sigma.lo + f * log_two_over_x.lo;
    return sigma;
}

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

template <int N, class R>
CURVKERN_SHARED SmallK<R, N> temme(R v, R x) {
    using T = Taylor<R, N>;
    R n = nearest_integer(v), f = v - n;
    Pair<R> log_two_over_x = negate(log_split(x, c<R>(-1)));
    Pair<R> sigma = temme_sigma(f, log_two_over_x);
    R quarter_square = c<R>(0.25) * x * x;
    TemmeSums<R, N> sums =
        temme_sums<N, false>(f, quarter_square, sigma.hi,
                             exponentials<N>(f, log_two_over_x, sigma), reciprocal_gamma<N>(f));
    T ratio = sums.up * reciprocal(sums.plain), order = T::variable(f);
    // K_{f+1} = K_{f-1} + (2f/x) K_f: for f > 0 most of the ratio is f itself
    Pair<R> direct = div(sums.up_pair, sums.plain_pair);
    Pair<R> split = add(div(sums.down_pair, sums.plain_pair), f);
    auto upper = f > c<R>(0);
    ratio.d[0] = select(upper, split.hi, direct.hi);
    R ratio_rest = select(upper, split.lo, direct.lo);
    T log_factor = horner(order * order + c<R>(-0.125), tables::log_gamma_product);
    SmallK<R, N> y{sums.plain,         sums.up,    sums.down, sums.even,     ratio, log_factor,
                   sums.plain_pair.lo, ratio_rest, n,         log_two_over_x};
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
CURVKERN_HD R log_kv_small(R v, R x, Scalar<R> scale) {
    SmallK<R, 0> k = temme<0>(v, x);
    R rest = select(k.n == c<R>(0), k.kappa_rest / k.kappa.d[0], c<R>(0));
    rest = (rest + k.n * k.log_two_over_x.lo) + k.log_factor.d[0];
    return ((log(k.kappa.d[0]) + rest) + k.n * k.log_two_over_x.hi) + scale * x;
}

}  // namespace isa
}  // namespace curvkern::bessel
