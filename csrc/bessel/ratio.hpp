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

template <class R>
CURVKERN_HD int fraction_steps(R x) {
    return (is_double<R> ? 12 : 6) + static_cast<int>(largest(x));
}

template <int N, class R>
CURVKERN_SHARED Ratio<R, N> iv_ratio_fraction(R v, R x) {
    const int steps = fraction_steps(x);
    R w = v + c<R>(steps + 0.5);
    R root = sqrt(w * w + x * x);
    auto rho = Taylor<R, N>::constant(x / (w + root));
    if constexpr (N > 0) rho.d[1] = -rho.d[0] / root;
    if constexpr (N > 1) rho.d[2] = (rho.d[0] - rho.d[1] * w) / (root * root);
    R rho_x = (w / root) * (rho.d[0] / x);
    auto order = Taylor<R, N>::variable(v);
    for (int k = steps; k >= 1; --k) {
        R following = rho.d[0];
        auto over_x = reciprocal(c<R>(2) * (order + c<R>(k)) + x * rho);
        rho = x * over_x;
        if constexpr (N > 0) {
            R now = rho.d[0];
            rho_x = over_x.d[0] * (c<R>(1) - now * following) - now * now * rho_x;
        }
    }
    return {rho, rho_x};
}

// The ratio with its second derivatives: the same recurrence on jets. Derivatives of the start
// are left out, and with them four more steps.
template <class R>
CURVKERN_SHARED Jet<R> iv_ratio_jet(R v, R x) {
    using J = Jet<R>;
    const int steps = fraction_steps(x) + 4;
    R w = v + c<R>(steps + 0.5);
    J rho{}, order = J::order(v), argument = J::argument(x);
    rho.f = x / (w + sqrt(w * w + x * x));
    for (int k = steps; k >= 1; --k) {
        rho = argument * reciprocal(c<R>(2) * (order + c<R>(k)) + argument * rho);
    }
    return rho;
}

}  // namespace isa
}  // namespace curvkern::bessel
