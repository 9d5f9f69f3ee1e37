// The Matern correlation of order nu at distance rho, in length scales, with its derivatives in
// nu and rho.
//
//   M = 2^{1-nu}/Gamma(nu) z^nu K_nu(z),  z = sqrt(2 nu) rho
// (M. Stein, "Interpolation of Spatial Data", Springer 1999, section 2.7). In z, at fixed nu,
//   M' = -M K_{nu-1}/K_nu,   M'' = M + (2 nu - 1)/z M'.
//   here                matern_power: (z/2)^{2(nu-1)} vanishes
//   matern_climb.hpp    matern_temme: z < 1.2; matern_fitted: above
//   matern_product.hpp  second derivatives from z = 1.2 on; nu < 11 (5) in the Debye region
//   matern_debye.hpp    the others
// The largest error is 10 eps of max(1, |log M|), near nu = 1/2 and z just below 1.2.
#pragma once

#include "taylor.hpp"

namespace curvkern::bessel {
CURVKERN_PER_ISA {

// M and dM/drho with their derivatives in nu, at fixed z and fixed dz/drho.
template <class R, int N>
struct AtFixedZ {
    Taylor<R, N> value, slope;
};

// z depends on nu and on rho: the chain rule, with M'' as above. Quotients by v come last:
// rho/v may overflow.
template <int Order, class R>
CURVKERN_HD void write_matern(R v, R rho, const AtFixedZ<R, Order>& m, R* out) {
    const auto& [value, slope] = m;
    R half = c<R>(0.5);
    if constexpr (Order == 0) {
        out[0] = min(value.d[0], c<R>(1));
    } else if constexpr (Order == 1) {
        out[0] = value.d[1] + half * ((rho * slope.d[0]) / v);
        out[1] = slope.d[0];
    } else {
        R both = rho * value.d[0] + slope.d[0];
        R twice = slope.d[1] + half * (both - slope.d[0] / v);
        out[0] = value.d[2] + (rho * twice) / v;
        out[1] = slope.d[1] + both;
        // the factor first, which is zero at nu = 1/2, where the quotient may overflow
        out[2] = c<R>(2) * v * value.d[0] + ((c<R>(2) * v - c<R>(1)) * slope.d[0]) / rho;
    }
}

// (z/2)^{2 nu} vanishes beside 1: sum_{k < nu} q^k / (k! (1-nu)..(k-nu))
template <int N, class R>
CURVKERN_HD AtFixedZ<R, N> matern_power(R v, R rho) {
    using T = Taylor<R, N>;
    R q = c<R>(0.5) * v * rho * rho;
    T value = T::constant(c<R>(1)), slope = T::constant(c<R>(0)), term = value;
    for (int k = 1; k <= 8; ++k) {
        auto wanted = v > c<R>(k + 0.1);  // what follows has vanished
        T order = T::variable(select(wanted, v, c<R>(k + 0.5)));
        T factor = c<R>(-1.0 / k) * reciprocal(order + c<R>(-k));
        // z dM/dz = 2 sum k q^k .., over rho: one factor q as nu rho / 2
        slope =
            slope + (c<R>(k) * v * rho) * select(wanted, term * factor, T::constant(c<R>(0)));
        term = select(wanted, q * (term * factor), T::constant(c<R>(0)));
        value = value + term;
    }
    return {value, slope};
}

}  // namespace isa
}  // namespace curvkern::bessel
