// I_{v+1}(x) / I_v(x) from its continued fraction (DLMF 10.33.1), backwards, for v and x below
// the Debye region:
//   rho_v = x / (2 (v+1) + x rho_{v+1}),
// all terms positive, and each step shrinks the error of the tail by rho^2. The tail starts
// from Amos' bound, x / (w + sqrt(w^2 + x^2)) with w = v + n + 1/2 (Math. Comp. 28, 1974).
#pragma once

#include "jet.hpp"

namespace curvkern::bessel {
CURVKERN_PER_ISA {

template <class R, int N>
struct Ratio {
    Taylor<R, N> rho;  // with its derivatives in v
    R dx;              // its derivative in x, where N > 0
};

// Steps that a point needs, a whole number in each lane: a lane begins when its own first step
// has come, as a result must not depend on its neighbours.
template <class R>
CURVKERN_HD R fraction_steps(R x) {
    const R magic = c<R>(Float<R>::round_magic);
    return c<R>(is_double<R> ? 12 : 6) + ((x + magic) - magic);
}

template <int N, class R>
CURVKERN_SHARED Ratio<R, N> iv_ratio_fraction(R v, R x) {
    const R steps = fraction_steps(x);
    R w = v + (steps + c<R>(0.5));
    R root = sqrt(w * w + x * x);
    auto rho = Taylor<R, N>::constant(x / (w + root));
    if constexpr (N > 0) rho.d[1] = -rho.d[0] / root;
    if constexpr (N > 1) rho.d[2] = (rho.d[0] - rho.d[1] * w) / (root * root);
    R rho_x = (w / root) * (rho.d[0] / x);
    auto order = Taylor<R, N>::variable(v);
    for (int k = static_cast<int>(largest(steps)); k >= 1; --k) {
        auto begun = c<R>(k) <= steps;
        R following = rho.d[0];
        auto over_x = reciprocal(c<R>(2) * (order + c<R>(k)) + x * rho);
        auto next = x * over_x;
        for (int i = 0; i <= N; ++i) rho.d[i] = select(begun, next.d[i], rho.d[i]);
        if constexpr (N > 0) {
            R now = next.d[0];
            R slope = over_x.d[0] * (c<R>(1) - now * following) - now * now * rho_x;
            rho_x = select(begun, slope, rho_x);
        }
    }
    return {rho, rho_x};
}

// The ratio with its second derivatives: the same recurrence on jets. Derivatives of the start
// are left out, and with them four more steps.
template <class R>
CURVKERN_SHARED Jet<R> iv_ratio_jet(R v, R x) {
    using J = Jet<R>;
    const R steps = fraction_steps(x) + c<R>(4);
    R w = v + (steps + c<R>(0.5));
    J rho{}, order = J::order(v), argument = J::argument(x);
    rho.f = x / (w + sqrt(w * w + x * x));
    for (int k = static_cast<int>(largest(steps)); k >= 1; --k) {
        auto begun = c<R>(k) <= steps;
        J next = argument * reciprocal(c<R>(2) * (order + c<R>(k)) + argument * rho);
        rho = {select(begun, next.f, rho.f),   select(begun, next.v, rho.v),
               select(begun, next.x, rho.x),   select(begun, next.vv, rho.vv),
               select(begun, next.vx, rho.vx), select(begun, next.xx, rho.xx)};
    }
    return rho;
}

}  // namespace isa
}  // namespace curvkern::bessel
