// What the denominators of a step need beside a root: x^k and atan2 for x >= 0.
// Included by sources that are compiled once per instruction set.
//
//   function        largest error                valid for
//   power           1e-6 float32, 1e-14 float64  x in [0, 1e30], k in [0, 2]; 0^k = 0 if k > 0
//   atan2_positive  4 ulp                        x >= 0, any y; atan2(0, 0) = 0
//
// atan2: the smaller of |y| and x over the larger, w = min / max in [0, 1]; beyond tan(pi/8)
// atan w = pi/4 + atan((w - 1) / (w + 1)); then a Chebyshev fit of atan(u) / u in u^2, relative
// error 1.3e-18 (float64) and 2.2e-11 (float32).
#pragma once

#include "core/math.hpp"

namespace curvkern::hutchinson {
CURVKERN_PER_ISA {

template <class R>
CURVKERN_HD R power(R x, double k) {
    return exp(c<R>(k) * log(x));
}

template <class R>
CURVKERN_HD R atan_small(R u) {  // |u| <= tan(pi/8)
    if constexpr (is_double<R>) {
        constexpr double t[] = {
            0.99999999999999999874,   -0.33333333333333120948, 0.19999999999940837328,
            -0.14285714279244968487,  0.11111110744657099602,  -0.090908968014728134434,
            0.07692045194561481467,   -0.06662950246036791267, 0.058468667522751389837,
            -0.050350497953124393166, 0.037963903161110833033, -0.017803896394812563193};
        return u * horner(u * u, t);
    } else {
        constexpr double t[] = {0.99999999997838467283, -0.33333332096926027744,
                                0.1999988380385323347,  -0.14281587307090122446,
                                0.11040471009581072209, -0.08456089466998970454,
                                0.047071296552574509307};
        return u * horner(u * u, t);
    }
}

template <class R>
CURVKERN_HD R atan2_positive(R y, R x) {
    const R zero = c<R>(0), one = c<R>(1), height = abs(y);
    const auto steep = height > x;
    const R large = select(steep, height, x), small = select(steep, x, height);
    const R w = select(large > zero, small / large, large + small);  // 0 / 0 is 0, NaN stays
    const auto beyond = w > c<R>(0.41421356237309503);
    R angle = atan_small(select(beyond, (w - one) / (w + one), w));
    angle = select(beyond, angle + c<R>(0.78539816339744831), angle);
    angle = select(steep, c<R>(1.5707963267948966) - angle, angle);
    return select(y < zero, -angle, angle);
}

}  // namespace isa
}  // namespace curvkern::hutchinson
