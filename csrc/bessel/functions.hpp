// evaluate<F, Order, Code>(v, x, out): one function, one order of derivative, one region.
//
// Every branch here is taken at compile time; what runs is one formula per region.
#pragma once

#include "hyp0f1.hpp"
#include "iv_small.hpp"
#include "kv_small.hpp"
#include "matern.hpp"
#include "matern_climb.hpp"
#include "matern_debye.hpp"
#include "matern_product.hpp"

namespace curvkern::bessel {
CURVKERN_PER_ISA {

template <int Order, int Code, class R>
CURVKERN_HD void evaluate_matern(R v, R rho, int region, R* out) {
    if constexpr (Code == kv_power) {
        write_matern<Order>(v, rho, matern_power<Order>(v, rho), out);
    } else if constexpr (Code == small_low) {
        write_matern<Order>(v, rho, matern_temme<Order>(v, rho), out);
    } else if constexpr (Code >= fitted) {
        if constexpr (Order < 2) {
            write_matern<Order>(v, rho, matern_fitted<Order>(v, rho, region - fitted), out);
        }
    } else if constexpr (Code == middle_low) {
        // the fits have first derivatives only
        R z = sqrt(c<R>(2) * v) * rho;
        KernelOfMatern<R> k =
            region == middle_high ? matern_integral<true>(v, z) : matern_integral<false>(v, z);
        write_matern<Order>(v, rho, matern_product<Order>(v, z, k), out);
    } else if constexpr (Code == debye_gamma) {
        R z = sqrt(c<R>(2) * v) * rho;
        KernelOfMatern<R> k = matern_large_argument<Order>(v, z);
        write_matern<Order>(v, rho, matern_product<Order>(v, z, k), out);
    }
}

// Code: the lowest region of a formula, as formula_of() names it.
template <Function F, int Order, int Code, class R>
CURVKERN_HD void evaluate(R v, R x, Call<Scalar<R>> call, R* out) {
    const int tier_terms = Code == debye ? Limits<R>::terms(call.region - debye) : 0;
    if constexpr (is_matern(F)) {
        if constexpr (Code == debye) {
            evaluate_matern_debye<Order>(v, x, tier_terms, out);
        } else {
            evaluate_matern<Order, Code>(v, x, call.region, out);
        }
    } else if constexpr (Code == debye) {
        evaluate_debye<F, Order, false>(v, x, tier_terms, call.scale, out);
    } else if constexpr (Code == careful) {
        evaluate_debye<F, Order, true>(v, x, Careful<R>::terms, call.scale, out);
    } else if constexpr (Code == kv_power) {
        evaluate_k_power<F, Order>(v, x, call.scale, out);
    } else if constexpr (Code == recessive) {
        evaluate_i_recessive(v, x, out);
    } else if constexpr (Code == debye_gamma) {
        evaluate_hyp_gamma<Order>(v, x, out);
    } else if constexpr (Code == hyp_wide) {
        evaluate_hyp_wide<Order>(v, x, out);
    } else if constexpr (Code == hankel) {
        if constexpr (Order == 0) {
            out[0] = hankel_value<is_k(F)>(v, x, call.scale);
        } else {
            write_low_order_slopes<is_k(F)>(v, x, hankel_slopes(v, x), call.scale, out);
        }
    } else if constexpr (Code == fitted) {
        const int piece = call.region - fitted;
        if constexpr (Order == 1) {
            write_low_order_slopes<is_k(F)>(v, x, fitted_slopes(v, x, piece), call.scale, out);
        } else if constexpr (is_k(F)) {
            out[0] = fitted_kv_value(v, x, piece, call.scale);
        } else {
            out[0] = fitted_iv_value(v, x, piece, call.scale);
        }
    } else if constexpr (is_k(F)) {
        evaluate_k_small<F, Order, Code>(v, x, call.scale, out);
    } else if constexpr (is_hyp(F)) {
        evaluate_hyp_small<Order>(v, x, call.region, out);
    } else {
        evaluate_i_small<F, Order, Code>(v, x, call, out);
    }
}

}  // namespace isa
}  // namespace curvkern::bessel
